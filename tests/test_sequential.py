"""`Sequential`: a row of modules as one, its parameters, states, configurations and errors."""

import concurrent.futures
import copy
import json
import os
import pickle
import re

import numpy as np
import pytest
from helpers import DTYPES, assert_same_bits
from networks import check_gradients, check_rows, leaves, normal

import cylstm


def tagger(dtype="float64", **options):
    """Ids in, scores of each step out, through everything that is stepwise."""
    return cylstm.Sequential(
        cylstm.Embedding(20, 5, dtype=dtype, rng=0),
        cylstm.LSTM(5, 4, bidirectional=True, dtype=dtype, rng=1, **options),
        cylstm.Dropout(0.4, rng=2),
        cylstm.Sequential(
            {
                "inner": cylstm.GRU(8, 6, dtype=dtype, rng=3, **options),
                "scores": cylstm.Linear(6, 3, dtype=dtype, rng=4),
            }
        ),
        cylstm.Activation("tanh"),
    )


def ids(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 20, shape)


@pytest.mark.parametrize("dtype", DTYPES)
def test_as_its_modules_one_after_the_other(dtype):
    net, x = tagger(dtype), ids(7, 3)
    state = net(x)[1]
    y, final = net(x, state)
    h, c = net[1](net[0](x), state[0])
    inner = net[3]["inner"](h, state[1][0])
    assert_same_bits(y, np.asarray(net[4](net[3]["scores"](inner[0]))))
    assert_same_bits(tuple(leaves(final)), tuple(leaves((c, (inner[1],)))))
    assert y.dtype == dtype


def test_forward_is_the_call_but_for_dropout():
    net, x = tagger(), ids(7, 3)
    y = net(x)[0]
    assert not np.array_equal(net.forward(x)[0], y)
    assert_same_bits(net.forward(x, rng=5)[0], net.forward(x, rng=5)[0])
    without = net[:2](x)[0], net[:2].forward(x)[0]
    assert_same_bits(*without)


@pytest.mark.parametrize("call", [{}, {"lengths": [6, 0, 3]}, "mask", "list"])
def test_gradients(call):
    net, x = tagger(), ids(6, 3)
    if call == "mask":
        call = {"mask": np.random.default_rng(3).random((6, 3)) < 0.6}
    elif call == "list":
        x, call = [x[:6, 0], x[:0, 1], x[:3, 2]], {}
    state = net(x, **call)[1]
    check_gradients(net, x, state, rng=7, **call)


@pytest.mark.parametrize("shape", [(6, 3), (6,), (0, 3), (6, 0)])
def test_gradients_of_numbers(shape):
    net = cylstm.Sequential(
        cylstm.Linear(4, 5, dtype="float64", rng=0),
        cylstm.Activation("softplus"),
        cylstm.LSTM(5, 4, dtype="float64", rng=1),
        cylstm.Softmax(),
    )
    x = normal(*shape, 4)
    if 0 not in shape:
        check_gradients(net, x, net(x)[1])
    y, _, tape = net.forward(x)
    net.zero_grad()
    assert net.backward(tape, y)[0].shape == x.shape and y.shape == (*shape, 4)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_have_the_bits_they_have_alone(dtype, batch_first):
    net = tagger(dtype, batch_first=batch_first)
    check_rows(net, ids(9, 4), [9, 4, 0, 7], batch_first=batch_first)
    after = cylstm.Sequential(cylstm.Linear(3, 4, dtype=dtype), net[3:] if 0 else net[4])
    check_rows(after, normal(9, 4, 3, dtype=dtype), [9, 4, 0, 7])


def test_what_is_not_read_reaches_no_gradient():
    net = cylstm.Sequential(
        cylstm.Linear(3, 4, rng=0), cylstm.RNN(4, 3, rng=1), cylstm.Linear(3, 2)
    )
    x = normal(5, 2, 3, dtype="float32")
    x[2:, 1] = np.nan
    y, _, tape = net.forward(x, lengths=[5, 2])
    dy = np.ones_like(y)
    dy[2:, 1] = np.nan
    dx, _ = net.backward(tape, dy)
    assert np.isfinite(net.flat_grads).all() and net.flat_grads.any()
    assert np.isfinite(dx).all() and not dx[2:, 1].any()
    assert not y[2:, 1].any()


def test_tapes_may_be_used_again_and_remember_weights():
    net, x = tagger(), ids(5, 2)
    y, _, tape = net.forward(x, rng=0)
    net.backward(tape, y)
    once = net.flat_grads.copy()
    net.assign(normal(once.size))
    net.zero_grad()
    net.backward(tape, y)
    assert_same_bits(net.flat_grads, once)
    net.backward(tape, y)
    np.testing.assert_allclose(net.flat_grads, 2 * once, rtol=1e-12)
    net.zero_grad()
    net.backward(tape, None)
    assert not net.flat_grads.any()


def test_parameters_are_the_modules():
    net = tagger()
    names = list(net.params)
    assert names[:3] == ["0.weight", "1.weight_ih_l0", "1.weight_hh_l0"]
    assert names[-1] == "3.scores.bias"
    assert names == list(net.grads) == list(net.state_dict()) == list(net.split(net.flat_params))
    assert np.shares_memory(net.params["3.scores.bias"], net[3]["scores"].params["bias"])
    net.grads["3.scores.bias"][...] = 3
    assert (net[3]["scores"].grads["bias"] == 3).all() and (net.flat_grads[-3:] == 3).all()
    net.flat_grads = np.arange(net.flat_grads.size)
    assert net[0].flat_grads[7] == 7 and net.flat_grads[-1] == net.flat_grads.size - 1
    net.assign({"3.scores.bias": [1, 2, 3], "0.weight": np.zeros((20, 5))})
    assert net.flat_params[-3:].tolist() == [1, 2, 3] and not net[0].flat_params.any()
    flat = normal(net.flat_params.size)
    net.assign(flat)
    assert_same_bits(net.flat_params, flat)
    for vector in (net.flat_params, net.flat_grads, net.params["0.weight"]):
        with pytest.raises(ValueError, match="read-only"):
            vector[...] = 0
    other = tagger()
    assert other.load_state_dict(net.state_dict()) == ([], [])
    assert_same_bits(other.flat_params, flat)
    net.zero_grad()
    assert not net.flat_grads.any()


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"0.weight": np.zeros((20, 5)), "no": 1}, KeyError, "no"),
        ({"0.weight": np.zeros((20, 5)), "3.scores.bias": [1]}, ValueError, "3.scores.bias"),
        ({"0.weight": np.zeros((20, 5)), "3.scores.bias": ["a"] * 3}, TypeError, "3.scores.bias"),
        (np.zeros(5), ValueError, "values"),
    ],
)
def test_nothing_is_assigned_where_something_is_wrong(values, error, message):
    net = tagger()
    before = net.flat_params
    with pytest.raises(error, match=re.escape(message)):
        net.assign(values)
    assert_same_bits(net.flat_params, before)


def test_freezing():
    net = tagger()
    net.freeze("0.*", "*.bias")
    assert net.frozen == {"0.weight", "3.scores.bias"} and net[0].frozen == {"weight"}
    before = {name: value.copy() for name, value in net.params.items()}
    net.flat_grads = np.ones(net.flat_grads.size)
    assert sum(s.stop - s.start for s in net.trainable_slices()) == net.flat_params.size - 103
    cylstm.SGD(net, lr=1.0).step()
    for name, value in net.params.items():
        assert_same_bits(value, before[name] if name in net.frozen else before[name] - 1)
    net.unfreeze("0.weight")
    assert net.frozen == {"3.scores.bias"}
    with pytest.raises(ValueError, match="nothing"):
        net.freeze("0.weight", "nothing*")
    assert net.frozen == {"3.scores.bias"}


def test_optimisers_take_networks():
    net, alone = tagger(), tagger()
    one, other = cylstm.Adam(net, lr=0.1), cylstm.Adam([alone[0], alone[1], *alone[3]], lr=0.1)
    for n in (net, alone):
        y, _, tape = n.forward(ids(5, 2), rng=0)
        n.backward(tape, y)
    assert cylstm.clip_grad_norm(net, 0.01) == cylstm.clip_grad_norm([*alone[:2], *alone[3]], 0.01)
    one.step()
    other.step()
    assert_same_bits(net.flat_params, alone.flat_params)
    assert list(one.state_dict()) == list(other.state_dict())
    with pytest.raises(ValueError, match="got one twice"):
        cylstm.Adam([net, net[0]])


def tied():
    embedding = cylstm.Embedding(20, 5, dtype="float64", rng=0)
    return cylstm.Sequential(
        embedding,
        cylstm.GRU(5, 5, dtype="float64", rng=1),
        cylstm.Sequential(cylstm.Linear(5, 20, tied_to=embedding, dtype="float64")),
    )


def test_tied_weights():
    net = tied()
    assert "2.0.weight" not in net.params
    check_gradients(net, ids(5, 2))
    for again in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)),
                  cylstm.Sequential.from_config(net.config)):  # fmt: skip
        assert again[2][0].tied_to is again[0] is not net[0]
    with pytest.raises(ValueError, match=r"tied_to: expected a module before '0\.0'"):
        _ = cylstm.Sequential(net[2]).config


def test_a_module_that_comes_twice():
    shared = cylstm.Linear(4, 4, dtype="float64", rng=0)
    net = cylstm.Sequential(shared, cylstm.Activation("tanh"), shared)
    assert list(net.params) == ["0.weight", "0.bias"]
    check_gradients(net, normal(3, 4))
    again = cylstm.Module.from_config(json.loads(json.dumps(dict(net.config))))
    assert again[0] is again[2]
    layer = cylstm.GRU(4, 4, dtype="float64", rng=0)
    net = cylstm.Sequential(layer, layer)
    check_gradients(net, normal(3, 2, 4), net(normal(3, 2, 4, seed=1))[1])


def test_configurations():
    net = tagger("float32", batch_first=True)
    described = json.loads(json.dumps(dict(net.config)))
    for again in (cylstm.Module.from_config(described), cylstm.Sequential.from_config(net.config)):
        assert repr(again) == repr(net) and again.config == net.config
        again.load_state_dict(net.state_dict())
        assert_same_bits(again(ids(3, 4))[0], net(ids(3, 4))[0])
    assert_same_bits(
        cylstm.Sequential.from_config(described, rng=3).flat_params,
        cylstm.Sequential.from_config(described, rng=3).flat_params,
    )
    named = cylstm.Sequential({"a": cylstm.Linear(2, 3), "b": cylstm.Activation("elu", 0.5)})
    assert eval(repr(named), vars(cylstm)).config == named.config
    assert eval(repr(net), vars(cylstm)).config == net.config
    for wrong, message in [
        ({"modules": {}}, "'class'"),
        ({"class": "Sequential", "modules": {"0": {"class": "os"}}}, "'class'"),
        ({"class": "Sequential", "modules": {"0": "1"}}, "path of a module before"),
        ({"class": "Sequential", "modules": {"0": 3}}, "expected a mapping for '0'"),
        ({"class": "Sequential", "modules": 3}, "mapping of modules"),
        ({"class": "Sequential", "modules": {}, "what": 3}, "what"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            cylstm.Module.from_config(wrong)


@pytest.mark.parametrize(
    "make", [copy.copy, copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))]
)
def test_copies(make):
    net = tagger()
    net.freeze("0.weight")
    net.flat_grads = np.ones(net.flat_grads.size)
    twin = make(net)
    assert_same_bits(twin.flat_params, net.flat_params)
    assert twin.frozen == net.frozen and not twin.flat_grads.any()
    before = net.flat_params
    twin.assign(np.zeros(before.size))
    assert_same_bits(net.flat_params, before)
    assert not twin(ids(3, 2))[0].any()


def test_in_a_forked_child():
    net, x = tagger(), ids(5, 2)
    y = net(x)[0]
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(write, net(x)[0].tobytes())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        assert pipe.read() == y.tobytes()


def test_from_many_threads_at_once():
    net, x = tagger(), [ids(5 + i, 2, seed=i) for i in range(4)]
    expected = [net(part)[0] for part in x]
    taped = [net.forward(part, rng=0) for part in x]
    for y, _, tape in taped:
        net.backward(tape, y)
    once = net.flat_grads.copy()
    net.zero_grad()

    def work(i):
        y, _, tape = net.forward(x[i], rng=0)
        net.backward(tape, y)
        return [net(x[i])[0] for _ in range(5)]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for found, y in zip(pool.map(work, range(4)), expected, strict=True):
            for again in found:
                assert_same_bits(again, y)
    np.testing.assert_allclose(net.flat_grads, once, rtol=1e-10, atol=1e-12)


def test_tensors_are_arrays():
    """Whatever has `__array__`, whose memory is the caller's."""

    class Tensor:
        def __init__(self, a):
            self.a = a

        def __array__(self, dtype=None, copy=None):
            return self.a

    x = normal(4, 3, dtype="float32")
    y, _ = cylstm.Sequential(cylstm.Dropout(0.5))(Tensor(x))
    assert_same_bits(y, x)
    assert not np.shares_memory(x, y)
    _, _, tape = (net := cylstm.Sequential(cylstm.Dropout(0.0))).forward(Tensor(x))
    assert not np.shares_memory(net.backward(tape, Tensor(x))[0], x)


def test_as_a_collection():
    net = tagger()
    assert len(net) == 5 and next(iter(net)) is net[0] is net["0"] and net[-1] is net["4"]
    part = net[1:4]
    assert isinstance(part, cylstm.Sequential) and part["1"] is net[1] and len(part) == 3
    assert net.modules == tuple(net)
    paths = [path for path, _ in net.named_modules()]
    assert paths == ["", "0", "1", "2", "3", "3.inner", "3.scores", "4"]
    assert dict(net.named_modules())["3.scores"] is net[3]["scores"]
    with pytest.raises(KeyError, match=r"'x' not among the modules \['0', '1'"):
        net["x"]
    with pytest.raises(IndexError):
        net[5]
    with pytest.raises(AttributeError, match="options are fixed"):
        net.modules = ()


def test_of_nothing():
    net = cylstm.Sequential()
    x = normal(2, 3)
    y, state = net(x)
    assert_same_bits(y, x)
    assert (
        y is not x and state == () and net.flat_params.shape == (0,) and repr(net) == "Sequential()"
    )
    y, _, tape = net.forward(x)
    assert_same_bits(net.backward(tape, x)[0], x)


def test_results_are_fresh():
    net = cylstm.Sequential(cylstm.Dropout(0.5), cylstm.Sequential())
    x = normal(2, 3, dtype="float32")
    assert not np.shares_memory(net(x)[0], x)
    net = cylstm.Sequential(cylstm.Dropout(0.0))
    y, _, tape = net.forward(x)
    assert not np.shares_memory(net.backward(tape, x)[0], x) and not np.shares_memory(x, y)


@pytest.mark.parametrize("given", ["list", "float32", "Fortran", "misaligned"])
def test_takes_any_layout(given):
    net = cylstm.Sequential(cylstm.Linear(3, 4, dtype="float64", rng=0), cylstm.Activation("relu"))
    x = normal(5, 2, 3).astype("float32").astype("float64")
    as_given = {
        "list": lambda a: a.tolist(),
        "float32": lambda a: a.astype("float32"),
        "Fortran": np.asfortranarray,
        "misaligned": lambda a: np.frombuffer(b"x" + a.tobytes(), a.dtype, offset=1).reshape(
            a.shape
        ),
    }[given](x)
    assert_same_bits(net(as_given)[0], net(x)[0])


LSTM = cylstm.LSTM(3, 4)


@pytest.mark.parametrize(
    ("modules", "error", "message"),
    [
        ([3], TypeError, "modules['0']: expected a module of cylstm, got int"),
        ([[LSTM]], TypeError, "modules['0']: expected a module of cylstm, got list"),
        ([LSTM, {"a": LSTM}], TypeError, "modules['1']: expected a module of cylstm, got dict"),
        ([{1: LSTM}], TypeError, "names of type str, got 1"),
        ([{"a.b": LSTM}], ValueError, "names without dots, got 'a.b'"),
        ([{"": LSTM}], ValueError, "names without dots, got ''"),
        ([LSTM, cylstm.Linear(5, 2)], ValueError, "reads 4 features, which the output of '0' has"),
        ([LSTM, cylstm.Sequential(cylstm.Linear(5, 2))], ValueError, "got one that reads 5"),
        ([LSTM, cylstm.Linear(4, 2, dtype="float64")], ValueError, "dtype: expected that of '0'"),
        (
            [LSTM, cylstm.GRU(4, 2, batch_first=True)],
            ValueError,
            "batch_first: expected that of '0', False, in all modules, got True in '1'",
        ),
        ([LSTM, cylstm.Embedding(4, 2)], ValueError, "expected an Embedding at the beginning"),
        ([cylstm.AUGRU(3, 4)], TypeError, "attention"),
        (
            [cylstm.LSTM(3, 4, bidirectional=True, merge_mode="separate")],
            ValueError,
            "merge_mode='separate'",
        ),
    ],
)
def test_modules_that_do_not_go_together(modules, error, message):
    with pytest.raises(error, match=re.escape(message)):
        cylstm.Sequential(*modules)


@pytest.mark.parametrize(
    ("x", "call", "error", "message"),
    [
        (normal(5, 2, 4), {}, ValueError, "x: expected shape (..., 3), got (5, 2, 4)"),
        ([normal(5, 4)], {}, ValueError, "x[0]: expected shape (..., 3), got (5, 4)"),
        (["a"], {}, TypeError, "x: expected real numbers"),
        (normal(2, 5, 2, 3), {}, ValueError, "x: expected shape (T, B, C) or (T, C), got"),
        (normal(5, 2, 3), {"lengths": [5]}, ValueError, "lengths: expected shape (2,), got (1,)"),
        (normal(5, 2, 3), {"lengths": [5, 6]}, ValueError, "lengths: expected values from 0 to 5"),
        (normal(5, 2, 3), {"mask": np.ones((2, 5), bool)}, ValueError, "mask: expected shape (5,"),
        (
            normal(5, 2, 3),
            {"lengths": [5, 5], "mask": np.ones((5, 2), bool)},
            ValueError,
            "at most one",
        ),
        ([normal(5, 3)], {"lengths": [5]}, ValueError, "lengths: expected None with a list as x"),
        (normal(5, 2, 3), {"state": 3}, TypeError, "state: expected a tuple with an entry"),
        (normal(5, 2, 3), {"state": (1, 2, 3)}, ValueError, "['1', '2'], got 3 entries"),
        (normal(5, 2, 3), {"state": (None, (3,))}, ValueError, "2.0 (GRU): state h"),
        (normal(5, 2, 3), {"num_threads": 0}, ValueError, "num_threads"),
    ],
)
def test_wrong_arguments(x, call, error, message):
    net = cylstm.Sequential(
        cylstm.Linear(3, 4), cylstm.LSTM(4, 5), cylstm.Sequential(cylstm.GRU(5, 5))
    )
    with pytest.raises(error, match=re.escape(message)):
        net(x, **call)
    with pytest.raises(error, match=re.escape(message)):
        net.forward(x, **call)


@pytest.mark.parametrize(
    ("tape", "dy", "dstate", "error", "message"),
    [
        (3, None, None, TypeError, "tape: expected what forward returned, got int"),
        ("other", None, None, ValueError, "tape: expected one of this module"),
        (None, np.zeros((5, 2, 4)), None, ValueError, "dy: expected shape (5, 2, 5), got"),
        (None, np.zeros((5, 2, 5)), (3,), TypeError, "1 (LSTM): dstate"),
        (None, np.zeros((5, 2, 5)), 3, TypeError, "dstate: expected a tuple with an entry"),
        (None, np.zeros((5, 2, 5)), (None, None), ValueError, "got 2 entries"),
    ],
)
def test_wrong_gradients(tape, dy, dstate, error, message):
    net = cylstm.Sequential(cylstm.Linear(3, 4), cylstm.LSTM(4, 5))
    _, _, own = net.forward(normal(5, 2, 3))
    given = own if tape is None else tape
    if tape == "other":
        given = cylstm.Sequential(cylstm.Linear(3, 4)).forward(normal(5, 2, 3))[2]
    with pytest.raises(error, match=re.escape(message)):
        net.backward(given, dy, dstate)
    assert not net.flat_grads.any()


def test_ids_are_checked_where_they_are_read():
    net = tagger()
    x = ids(5, 2)
    x[3:, 1] = 99
    net(x, lengths=[5, 3])
    with pytest.raises(ValueError, match="x: expected integers from 0 to 19, got 99"):
        net(x)
    with pytest.raises(ValueError, match="x: expected integers from 0 to 19, got 99"):
        net(x, lengths=[5, 4])
    with pytest.raises(ValueError, match=r"x\[1\]: expected integers from 0 to 19, got 99"):
        net([x[:, 0], x[:, 1]])
    with pytest.raises(TypeError, match="x: expected integers"):
        net(x / 2)
