"""Storage of parameters: one way to change them, no way around it, copies that are independent."""

import abc
import contextlib
import copy
import operator
import pickle
import re
import threading

import numpy as np
import pytest
from helpers import DTYPES, assert_same_bits

from cylstm.module import Module

SHAPES = {"weight": (3, 2), "matrix": (2, 2), "bias": (3,), "scalar": ()}
SIZE = 6 + 4 + 3 + 1


class Counting(Module):
    """Parameters with something derived from them."""

    def __init__(self, shapes, dtype):
        super().__init__(shapes, dtype)
        self.changes = 0

    def _changed(self):
        self.changes += 1


@pytest.fixture
def module():
    module = Counting(SHAPES, np.dtype("float64"))
    module.assign(np.arange(1.0, SIZE + 1))
    module.flat_grads[...] = np.arange(SIZE) / 7
    return module


@pytest.mark.parametrize("dtype", DTYPES)
def test_layout(dtype):
    module = Module(SHAPES, np.dtype(dtype))
    assert module.flat_params.dtype == module.flat_grads.dtype == dtype
    assert module.flat_params.shape == module.flat_grads.shape == (SIZE,)
    assert not module.flat_params.any() and not module.flat_grads.any()
    module.assign(np.arange(SIZE))
    module.flat_grads[...] = np.arange(SIZE)
    for views in (module.params, module.grads, module.split(np.arange(SIZE))):
        assert {name: view.shape for name, view in views.items()} == SHAPES
        assert np.concatenate([v.ravel() for v in views.values()]).tolist() == list(range(SIZE))
        assert all(view.flags.c_contiguous for view in views.values())


def test_split_gives_views_of_vectors_of_the_right_size(module):
    moments = np.zeros(SIZE)
    module.split(moments)["bias"][1] = 5
    assert moments.tolist() == [0] * 11 + [5] + [0] * 2
    for wrong in (np.zeros(SIZE - 1), np.zeros(SIZE + 1), np.zeros((1, SIZE))):
        with pytest.raises(ValueError, match=re.escape(f"expected shape ({SIZE},)")):
            module.split(wrong)


def test_read_only_cannot_be_undone(module):
    before = module.flat_params.copy()
    for view in (module.flat_params, module.params["weight"], module.params["weight"][0]):
        assert not view.flags.writeable
        with pytest.raises(ValueError, match="WRITEABLE"):
            view.flags.writeable = True
        with pytest.raises(ValueError, match="WRITEABLE"):
            view.setflags(write=True)
        with pytest.raises(ValueError, match="read-only"):
            view[...] = 0
        with pytest.raises(ValueError, match="read-only"):
            np.add(view, 1, out=view)
        with pytest.raises(ValueError, match="WRITEABLE"):
            view.view().flags.writeable = True
    assert_same_bits(module.flat_params, before)


def test_parameters_cannot_be_replaced(module):
    before = module.flat_params.copy()
    with pytest.raises(TypeError, match="does not support item assignment"):
        module.params["bias"] = np.zeros(3)
    for name in ("params", "flat_params", "grads"):
        with pytest.raises(AttributeError, match="no setter"):
            setattr(module, name, np.zeros(SIZE))
    assert_same_bits(module.flat_params, before)
    assert module.changes == 1


def test_assigned_gradients_reach_the_vector(module):
    vector = module.flat_grads
    module.flat_grads = np.arange(SIZE)
    module.grads["bias"][...] = [7, 8, 9]
    module.grads["scalar"][...] = 5
    module.flat_grads *= 2
    module.grads["weight"] += 1
    assert vector is module.flat_grads
    expected = [1, 3, 5, 7, 9, 11, 12, 14, 16, 18, 14, 16, 18, 10]
    assert vector.tolist() == expected
    assert np.concatenate([g.ravel() for g in module.grads.values()]).tolist() == expected
    for wrong, error in [(np.zeros(SIZE - 1), ValueError), (np.zeros((2, SIZE)), ValueError),
                         (0.0, ValueError), (None, TypeError), ("x", TypeError),
                         (np.zeros(SIZE, complex), TypeError)]:  # fmt: skip
        with pytest.raises(error, match=r"flat_grads: expected"):
            module.flat_grads = wrong
    assert vector.tolist() == expected
    module.zero_grad()
    assert not vector.any()


DETACH = {
    "update": lambda grads: grads.update(bias=np.zeros(3)),
    "|=": lambda grads: operator.ior(grads, {"bias": np.zeros(3)}),
    "setdefault": lambda grads: grads.setdefault("new", np.zeros(3)),
    "pop": lambda grads: grads.pop("bias"),
    "popitem": lambda grads: grads.popitem(),
    "clear": lambda grads: grads.clear(),
    "del": lambda grads: operator.delitem(grads, "bias"),
    "set": lambda grads: operator.setitem(grads, "bias", np.zeros(3)),
    "set to None": lambda grads: operator.setitem(grads, "bias", None),
    "set to itself": lambda grads: operator.setitem(grads, "bias", grads["bias"].copy()),
    "another's": lambda grads: operator.setitem(grads, "bias", grads["weight"]),
    "set unknown": lambda grads: operator.setitem(grads, "unknown", 0),
    "reshape": lambda grads: setattr(grads["bias"], "shape", (1, 3)),
}


@pytest.mark.parametrize("how", DETACH)
def test_no_name_can_be_detached_from_the_vector(module, how):
    before = module.flat_grads.copy()
    with (
        contextlib.nullcontext()
        if how == "reshape"
        else pytest.raises((TypeError, AttributeError, KeyError))
    ):
        DETACH[how](module.grads)
    assert list(module.grads) == list(SHAPES)
    assert_same_bits(module.flat_grads, before)
    for name in SHAPES:
        module.grads[name][...] = 7
    assert np.all(module.flat_grads == 7)
    assert module._grad_views["bias"].shape == (3,)  # what backward adds to


def test_assigning_a_gradient_says_how(module):
    with pytest.raises(TypeError, match=re.escape("grads['bias'][...] = value")):
        module.grads["bias"] = np.zeros(3)
    assert "bias" in module.grads and len(module.grads) == len(SHAPES)
    assert repr(module.grads).startswith("{'weight': array(")


@pytest.mark.parametrize("kind", ["float64", "float32", "float16", "int64", "uint16", ">f8"])
def test_assign_the_vector(module, kind):
    view = module.params["bias"]
    module.assign(np.arange(SIZE).astype(kind)[::-1])
    assert module.flat_params.tolist() == list(range(SIZE))[::-1]
    assert view.tolist() == [3, 2, 1]
    assert module.flat_params.dtype == np.float64
    assert module.changes == 2


def test_assign_by_name(module):
    module.assign({"scalar": 50, "bias": [10, 20, 30]})
    assert module.flat_params.tolist() == [*range(1, 11), 10, 20, 30, 50]
    assert module.changes == 2


def test_assign_copies(module):
    values = np.zeros(SIZE)
    bias = np.zeros(3)
    module.assign(values)
    module.assign({"bias": bias})
    values[...] = bias[...] = 7
    assert not module.flat_params.any()


def test_assign_its_own_views(module):
    old = {name: value.copy() for name, value in module.params.items()}
    module.assign({"weight": module.params["weight"][::-1], "matrix": module.params["weight"][:2],
                   "bias": module.params["bias"][::-1]})  # fmt: skip
    assert_same_bits(module.params["weight"], old["weight"][::-1])
    assert_same_bits(module.params["matrix"], old["weight"][:2])
    assert_same_bits(module.params["bias"], old["bias"][::-1])
    flat = module.flat_params.copy()
    module.assign(module.flat_params[::-1])
    assert_same_bits(module.flat_params, flat[::-1])


def test_failures_change_nothing(module):
    before = module.flat_params.copy()
    good = {"weight": np.zeros((3, 2))}
    failures = [
        (KeyError, {**good, "unknown": 0}, r"\['unknown'\] not among the parameters \['weight'"),
        (ValueError, {**good, "bias": np.zeros(4)}, r"bias: expected shape \(3,\), got \(4,\)"),
        (ValueError, {**good, "bias": 0}, r"bias: expected shape \(3,\), got \(\)"),
        (TypeError, {**good, "bias": np.zeros(3, complex)}, "bias: expected real .* complex128"),
        (TypeError, {**good, "bias": np.zeros(3, bool)}, "bias: expected real .* bool"),
        (TypeError, {**good, "bias": None}, "bias: expected real .* object"),
        (TypeError, {**good, "bias": ["1", "2", "3"]}, "bias: expected real .* <U1"),
        (TypeError, {**good, "bias": np.zeros(3, np.int8)}, "bias: expected real .* int8: .*scale"),
        (TypeError, np.zeros(SIZE, np.uint8), "values: expected real .* uint8: .*scale"),
        (KeyError, {**good, 3: np.zeros(3)}, r"\['3'\] not among"),
        (ValueError, np.zeros(SIZE - 1), r"values: expected shape \(14,\), got \(13,\)"),
        (ValueError, np.zeros((1, SIZE)), r"values: expected shape \(14,\), got \(1, 14\)"),
        (ValueError, 0.0, r"values: expected shape \(14,\), got \(\)"),
        (TypeError, np.zeros(SIZE, complex), "values: expected real .* complex128"),
    ]
    for error, values, message in failures:
        with pytest.raises(error, match=message):
            module.assign(values)
    assert_same_bits(module.flat_params, before)
    assert module.changes == 1


def test_failing_cast_changes_nothing():
    module = Counting(SHAPES, np.dtype("float32"))
    values = {"weight": np.ones((3, 2)), "bias": np.array([1, 2, 1e300])}
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        module.assign(values)
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        module.assign(np.full(SIZE, 1e300))
    assert not module.flat_params.any()
    assert module.changes == 0


def test_state_dict(module):
    state = module.state_dict()
    assert list(state) == list(SHAPES)
    for name, value in state.items():
        assert_same_bits(value, module.params[name])
        value[...] = 0  # a copy
    assert module.flat_params.all()
    module.load_state_dict(dict(reversed(state.items())))
    assert not module.flat_params.any()
    assert module.changes == 2


def test_load_state_dict_is_strict(module):
    before = module.flat_params.copy()
    good = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    some = {name: value for name, value in good.items() if name != "bias"}
    failures = [
        (KeyError, some, r"missing \['bias'\], unexpected \[\]"),
        (KeyError, {**good, "weights": 0}, r"missing \[\], unexpected \['weights'\]"),
        (KeyError, {**some, "Bias": 0}, r"missing \['bias'\], unexpected \['Bias'\]"),
        (KeyError, {}, "missing"),
        (ValueError, {**good, "bias": np.zeros((3, 1))}, r"bias: expected shape \(3,\)"),
        (TypeError, {**good, "bias": np.zeros(3, complex)}, "bias: expected real"),
    ]
    for error, state, message in failures:
        with pytest.raises(error, match=message):
            module.load_state_dict(state)
    assert_same_bits(module.flat_params, before)
    assert module.changes == 1


def with_protocol(protocol):
    return lambda module: pickle.loads(pickle.dumps(module, protocol))


def out_of_band(module):
    """A copy over read-only buffers, as joblib, dask and ray make them."""
    buffers = []
    data = pickle.dumps(module, 5, buffer_callback=buffers.append)
    return pickle.loads(data, buffers=[bytes(buffer.raw()) for buffer in buffers])


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "out of band": out_of_band,
    **{f"pickle {p}": with_protocol(p) for p in range(2, pickle.HIGHEST_PROTOCOL + 1)},
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_copies(dtype, how):
    module = Counting(SHAPES, np.dtype(dtype))
    module.assign(np.arange(SIZE))
    module.flat_grads[...] = np.arange(SIZE) / 7
    before = module.flat_params.copy(), module.flat_grads.copy()
    twin = COPIES[how](module)
    assert type(twin) is Counting
    assert_same_bits(twin.flat_params, before[0])
    assert twin.flat_grads.dtype == dtype and not twin.flat_grads.any()  # gradients stay behind
    assert_same_bits(tuple(twin.params.values()), tuple(module.params.values()))
    with pytest.raises(ValueError, match="WRITEABLE"):
        twin.flat_params.flags.writeable = True
    twin.assign({"bias": [50, 60, 70]})
    twin.grads["weight"] += 9
    assert twin.flat_params[10:13].tolist() == [50, 60, 70]
    assert twin.flat_grads.tolist() == [9] * 6 + [0] * 8
    assert_same_bits((module.flat_params, module.flat_grads), before)
    kept = twin.flat_params.copy(), twin.flat_grads.copy()
    module.assign(np.zeros(SIZE))
    module.zero_grad()
    assert_same_bits((twin.flat_params, twin.flat_grads), kept)


def test_copies_keep_who_shares_whom(module):
    first, second = copy.deepcopy([module, module])
    assert first is second is not module
    first, second = pickle.loads(pickle.dumps([module, module]))
    assert first is second


def test_a_change_is_whole_for_other_threads():
    done = threading.Event()
    finished_meanwhile = []

    class Slow(Module):
        def _changed(self):
            if not threads:
                threads.append(threading.Thread(target=change))
                threads[0].start()
                finished_meanwhile.append(done.wait(0.2))

    def change():
        module.assign({"scalar": 2})
        done.set()

    threads = []
    module = Slow(SHAPES, np.dtype("float64"))
    module.assign({"scalar": 1})
    threads[0].join()
    assert finished_meanwhile == [False]
    assert module.params["scalar"] == 2


class Own(Module):
    """A module with attributes of its own."""

    declared: int
    known = None

    def __init__(self, note):
        self.before = note
        super().__init__(SHAPES, np.dtype("float64"))
        self.after = [note]


class Further(Own):
    def __init__(self, *notes):
        super().__init__(notes[0])
        self.notes = notes


class Mixin:
    def __init__(self, *notes, tag="mixed"):
        super().__init__(*notes)
        self.tag = tag


class Mixed(Mixin, Own):
    pass


class Lean(Own, abc.ABC):
    __slots__ = ("slot",)

    def __init__(self, note):
        super().__init__(note)
        self.slot = note


@pytest.mark.parametrize("kind", [Own, Further, Mixed, Lean])
def test_a_subclass_has_attributes_of_its_own(kind):
    module = kind("a")
    for name in ("before", "after", "declared", "known", "_private", *vars(module)):
        if not name.startswith("_") and name != "dtype":
            setattr(module, name, 5)
            assert getattr(module, name) == 5
    module._anything = 6
    for name, hint in [("befor", "before"), ("knwon", "known"), ("flat_grad", "flat_grads")]:
        with pytest.raises(AttributeError, match=f"^{name}: .*{kind.__name__}.*{hint!r}"):
            setattr(module, name, 1)
        assert not hasattr(module, name)
    with pytest.raises(AttributeError, match=r"^zzz: .*got an unknown name$"):
        module.zzz = 1
    for name in SHAPES:
        with pytest.raises(AttributeError, match=re.escape(f"{name}: expected assign({{{name!r}")):
            setattr(module, name, np.zeros(SHAPES[name]))
    with pytest.raises(AttributeError, match=r"^dtype: options are fixed"):
        module.dtype = np.dtype("float32")
    with pytest.raises(AttributeError, match=r"^dtype: options are fixed"):
        del module.dtype
    del module.before
    assert not hasattr(module, "before")


@pytest.mark.parametrize("how", COPIES)
def test_copies_keep_attributes_and_what_is_refused(how):
    module = Further("a", ["b"])
    module.freeze("bias")
    twin = COPIES[how](module)
    assert (twin.before, twin.after, twin.notes) == ("a", ["a"], ("a", ["b"]))
    assert twin.after is not module.after and twin.notes[1] is not module.notes[1]
    assert twin.frozen == {"bias"}
    twin.before = "c"
    with pytest.raises(AttributeError, match=r"^befor: "):
        twin.befor = 1


@pytest.mark.parametrize("how", COPIES)
def test_copies_of_other_subclasses(how):
    mixed, lean = COPIES[how](Mixed("a", tag="b")), COPIES[how](Lean("a"))
    assert (mixed.before, mixed.tag, lean.before, lean.slot) == ("a", "b", "a", "a")
    for module in (mixed, lean):
        with pytest.raises(AttributeError, match=r"^tagg: "):
            module.tagg = 1


def test_deep_copies_of_what_refers_to_itself():
    module = Further("a")
    module.notes = [module]
    twin = copy.deepcopy(module)
    assert twin.notes[0] is twin is not module


def test_freezing(module):
    assert module.frozen == frozenset() and module.trainable_slices() == [slice(0, SIZE)]
    cases = [
        (("weight",), {"weight"}, [slice(6, SIZE)]),
        (("scalar",), {"weight", "scalar"}, [slice(6, 13)]),
        (("mat*", "weight"), {"weight", "scalar", "matrix"}, [slice(10, 13)]),
        ((), set(SHAPES), []),
    ]
    for names, frozen, slices in cases:
        module.freeze(*names)
        assert module.frozen == frozen and isinstance(module.frozen, frozenset)
        assert module.trainable_slices() == slices
    module.unfreeze("*a*t*", "bias")  # neither of these fits the scalar
    assert module.frozen == {"weight", "scalar"}
    assert module.trainable_slices() == [slice(6, 13)]
    module.unfreeze("weight")
    module.freeze("bias")
    assert module.trainable_slices() == [slice(0, 10)]
    module.unfreeze("scalar")
    assert module.trainable_slices() == [slice(0, 10), slice(13, 14)]
    module.unfreeze()
    assert module.trainable_slices() == [slice(0, SIZE)]
    for change in (module.freeze, module.unfreeze):
        with pytest.raises(
            ValueError, match=r"^names: expected some of .*'weight'.* got 'weights'"
        ):
            change("bias", "weights")
        with pytest.raises(TypeError, match=r"^names: expected names of parameters, got 3"):
            change("bias", 3)
        with pytest.raises(TypeError, match=r"^names: expected names of parameters, got None"):
            change(None)
    assert module.frozen == frozenset()
    with pytest.raises(AttributeError):
        module.frozen = {"bias"}


def versions(read):
    """What `read(module)` gives while another thread changes all numbers at once."""
    module = Module({"a": (20_000,), "b": (20_000,), "c": (3,)}, np.dtype("float64"))
    values = [np.full(module.flat_params.size, float(i)) for i in range(2)]
    stop = threading.Event()

    def change():
        while not stop.is_set():
            for value in values:
                module.assign(value)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        return [{v for a in read(module).values() for v in np.unique(a)} for _ in range(200)]
    finally:
        stop.set()
        thread.join()


SNAPSHOTS = {
    "state_dict": lambda module: module.state_dict(),
    "copy": lambda module: copy.copy(module).params,
    "deepcopy": lambda module: copy.deepcopy([module])[0].params,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)).params,
}


@pytest.mark.parametrize("how", SNAPSHOTS)
def test_copies_are_of_one_moment(how):
    assert all(len(seen) == 1 for seen in versions(SNAPSHOTS[how]))


@pytest.mark.parametrize("how", SNAPSHOTS)
def test_copies_wait_for_a_change_to_be_whole(module, how):
    """The same without luck: the lock is held by a change that is half done."""
    with module._changing():
        module.split(module._storage)["weight"][...] = -1
        seen = []
        thread = threading.Thread(target=lambda: seen.append(SNAPSHOTS[how](module)))
        thread.start()
        thread.join(0.05)
        assert not seen
        module.split(module._storage)["bias"][...] = -1
    thread.join()
    assert np.all(seen[0]["weight"] == -1) and np.all(seen[0]["bias"] == -1)


def test_pickles_have_no_gradients():
    module = Module({"weight": (1000, 100)}, np.dtype("float32"))
    assert len(pickle.dumps(module)) < 1.01 * module.flat_params.nbytes + 2000


def test_a_change_that_fails_half_way_is_not_ignored(module):
    with pytest.raises(ZeroDivisionError), module._changing():
        raise ZeroDivisionError
    assert module.changes == 2


def test_parameters_beyond_any_memory():
    for shape in ((2**31 - 1, 2**33), (2**62,), (2**70,)):
        with pytest.raises(MemoryError, match=r"^Module\(\): expected parameters that fit"):
            Module({"weight": shape}, np.dtype("float32"))
