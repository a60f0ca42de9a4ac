"""Options that make no sense or contradict each other: errors that name the arguments."""

import copy
import inspect
import itertools
import pickle
import pydoc
import re
import warnings

import numpy as np
import pytest
from helpers import LAYERS, assert_same_bits, problem, refused

import cylstm

CELLS = ("lstm", "gru", "rnn_tanh")
EVERY = pytest.mark.parametrize("cell", CELLS)

# cell or None for every, sizes, options, the two arguments that the message names
CONTRADICTIONS = [
    *[(None, (2, 4), {"merge_mode": mode}, "bidirectional")
      for mode in ("sum", "mul", "ave", "separate")],
    (None, (2, 4, 2), {"merge_mode": "separate", "bidirectional": True}, "num_layers"),
    (None, (2, (4, 5)), {"merge_mode": "separate", "bidirectional": True}, "num_layers"),
    (None, (2, 4), {"go_backwards": True, "bidirectional": True}, "bidirectional"),
    (None, (2, (4, 5), 3), {"hidden_size": None}, "num_layers"),
    (None, (2, (4, 5, 6), 2), {"hidden_size": None}, "num_layers"),
    ("rnn_tanh", (2, 4), {"independent": True, "dropconnect": 0.5}, "dropconnect"),
    ("gru", (2, 4), {"layer_norm": "haste", "reset_after": False}, "reset_after"),
    ("lstm", (2, 4), {"proj_size": 4}, "hidden_size"),
    ("lstm", (2, 4), {"proj_size": 5}, "hidden_size"),
    ("lstm", (2, (6, 4)), {"proj_size": 4}, "hidden_size"),
    ("lstm", (2, 4), {"forget_bias": 1.0, "bias": False}, "bias"),
    ("lstm", (2, 4), {"forget_bias": 1.0, "coupled": True}, "coupled"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("cell", "sizes", "options", "other"),
    [(c, *rest) for cell, *rest in CONTRADICTIONS for c in ([cell] if cell else CELLS)],
    ids=lambda v: str(v).replace(" ", ""),
)
def test_contradictions_name_both(cell, sizes, options, other):
    name = next(iter(options))
    options = {n: v for n, v in options.items() if v is not None}
    with pytest.raises(ValueError) as caught:
        LAYERS[cell](*sizes, **options)
    for word in (name, other):
        assert re.search(rf"\b{word}\b", str(caught.value)), str(caught.value)


PROBABILITY = [
    (-0.1, ValueError, "-0.1"),
    (1.0, ValueError, "1.0"),
    (1.5, ValueError, "1.5"),
    (np.nan, ValueError, "nan"),
    ("0.5", TypeError, "0.5"),
    (None, TypeError, "None"),
    (True, TypeError, "True"),
]
BOUND = [
    (0, ValueError, "0"),
    (-1.0, ValueError, "-1"),
    (np.nan, ValueError, "nan"),
    ("1", TypeError, "1"),
    (True, TypeError, "True"),
]
FLAG = [("no", TypeError, "no"), (2, TypeError, "2"), (None, TypeError, "None")]
WORD = [("none", ValueError, "none"), (1, (TypeError, ValueError), "1")]
ACTIVATION = [
    ("gelu", ValueError, "gelu"),
    (None, (TypeError, ValueError), "None"),
    ((), (TypeError, ValueError), "()"),
    (("Elu", np.nan), ValueError, "nan"),
    (("Elu", "1"), TypeError, "1"),
    (("HardSigmoid", 1, 2, 3), ValueError, "3"),
    ((0.5, "Elu"), (TypeError, ValueError), "0.5"),
]
SIZES = [
    ((), ValueError, "()"),
    ((4, 0), ValueError, "0"),
    ((4, -1), ValueError, "-1"),
    ((4, 2.0), TypeError, "2.0"),
    ((4, True), TypeError, "True"),
    (((4,),), TypeError, "(4,)"),
    ("45", TypeError, "4"),
    ({4: 5}, TypeError, "4"),
]
BAD = {
    None: {
        "variational": FLAG,
        "recurrent_dropout": PROBABILITY,
        "zoneout": PROBABILITY,
        "dropconnect": PROBABILITY,
        "clip": BOUND,
        "merge_mode": [*WORD, (None, (TypeError, ValueError), "None")],
        "go_backwards": FLAG,
        "learn_initial_state": FLAG,
        "hidden_size": SIZES,
    },
    "lstm": {
        "proj_size": [(-1, ValueError, "-1"), (1.0, TypeError, "1.0"), (True, TypeError, "True")],
        "peepholes": FLAG,
        "coupled": FLAG,
        "cell_clip": BOUND,
        "layer_norm": [*WORD, (True, (TypeError, ValueError), "True")],
        "zoneout_cell": PROBABILITY,
        "activations": [
            ("tanh", (TypeError, ValueError), "tanh"),
            (("tanh", "tanh"), ValueError, "('tanh', 'tanh')"),
            (("tanh",) * 4, ValueError, "('tanh', 'tanh', 'tanh', 'tanh')"),
            ({"reset": "tanh"}, ValueError, "reset"),
            *[({"cell": a}, *rest) for a, *rest in ACTIVATION],
            *[(("tanh", a, "tanh"), *rest) for a, *rest in ACTIVATION],
        ],
    },
    "gru": {
        "reset_after": FLAG,
        "layer_norm": [*WORD, ("tflite", ValueError, "tflite")],
        "activations": [
            (("tanh",) * 3, ValueError, "('tanh', 'tanh', 'tanh')"),
            ({"cell": "tanh"}, ValueError, "cell"),
            *[({"update": a}, *rest) for a, *rest in ACTIVATION],
        ],
    },
    "rnn_tanh": {"independent": FLAG, "nonlinearity": ACTIVATION},
}
BAD_VALUES = [
    (cell, name, *bad)
    for which, arguments in BAD.items() for name, values in arguments.items()
    for cell in ([which] if which else CELLS) for bad in values
]  # fmt: skip


@pytest.mark.parametrize(
    ("cell", "name", "value", "error", "got"), BAD_VALUES,
    ids=[f"{cell}-{name}-{value!r}".replace(" ", "") for cell, name, value, *_ in BAD_VALUES],
)  # fmt: skip
def test_bad_values(cell, name, value, error, got):
    sizes = {"input_size": 2, "hidden_size": 4}
    refused(error, name, got, LAYERS[cell], **(sizes | {name: value}))


FOREIGN = {
    "lstm": ("nonlinearity", "independent", "reset_after"),
    "gru": ("proj_size", "peepholes", "coupled", "cell_clip", "zoneout_cell", "forget_bias",
            "nonlinearity", "independent"),
    "rnn_tanh": ("proj_size", "peepholes", "layer_norm", "activations", "reset_after"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("cell", "name"), [(cell, name) for cell, names in FOREIGN.items() for name in names]
)
def test_options_of_another_cell(cell, name):
    layer = {"lstm": cylstm.LSTM, "gru": cylstm.GRU, "rnn_tanh": cylstm.RNN}[cell]
    with pytest.raises(TypeError, match=name):
        layer(2, 4, **{name: None})


# What a layer says of itself

KINDS = (cylstm.LSTM, cylstm.GRU, cylstm.RNN)
KIND = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
OPTIONS = {
    None: {"batch_first": True, "dropout": 0.25, "variational": True, "recurrent_dropout": 0.125,
           "zoneout": 0.5, "dropconnect": 0.25, "clip": 3.0, "bidirectional": True,
           "merge_mode": "sum", "bias": "single", "dtype": "float64"},
    "LSTM": {"proj_size": 2, "peepholes": True, "cell_clip": 2.0, "layer_norm": "haste",
             "activations": {"input": "relu", "cell": ("elu", 0.5)}, "zoneout_cell": 0.25,
             "forget_bias": 1.0},
    "GRU": {"layer_norm": "haste", "activations": {"update": ("hardsigmoid", 0.25, 0.5)}},
    "RNN": {"nonlinearity": ("scaledtanh", 2.0, 0.5)},
}  # fmt: skip
OTHERS = {
    "LSTM": {"coupled": True, "go_backwards": True, "bias": False, "learn_initial_state": True},
    "GRU": {"reset_after": False, "go_backwards": True, "learn_initial_state": True},
    "RNN": {"independent": True, "go_backwards": True, "learn_initial_state": True},
}


def arguments(kind):
    return inspect.signature(kind).parameters


@KIND
def test_repr_makes_the_same_layer(kind):
    name = kind.__name__
    for sizes, options in [((3, 5, 2), OPTIONS[None] | OPTIONS[name]), ((3, 5), OTHERS[name])]:
        layer = kind(*sizes, **options)
        for option, value in options.items():
            assert getattr(layer, option) == value or option == "activations"
        assert all(f"{option}={value!r}" in repr(layer) for option, value in options.items())
        twin = eval(repr(layer), vars(cylstm))
        assert repr(twin) == repr(layer)
        assert twin._cell == layer._cell and twin._shapes == layer._shapes
        for option in arguments(kind).keys() - {"rng"}:
            assert getattr(twin, option) == getattr(layer, option), option
    assert repr(kind(3, 5)) == f"{name}(3, 5)"
    assert repr(kind(3, 5, 2)) == f"{name}(3, 5, num_layers=2)"
    assert repr(kind(3, [5, 6], 2)) == f"{name}(3, (5, 6))"


@KIND
def test_every_option_is_covered_by_the_tests_above(kind):
    tried = {*OPTIONS[None], *OPTIONS[kind.__name__], *OTHERS[kind.__name__]}
    assert arguments(kind).keys() - tried == {"input_size", "hidden_size", "num_layers", "rng"}


@KIND
def test_options_are_read_only(kind):
    layer = kind(3, 5, 2, dropout=0.25, rng=0)
    shown, x = repr(layer), np.ones((2, 1, 3))
    before = layer(x)[0]
    names = [*arguments(kind), "num_directions", "hidden_sizes", "gates", "states"]
    for name in names:
        value = getattr(layer, name, None)
        for given in (value, 5, None):
            with pytest.raises(AttributeError, match=f"^{name}: options are fixed at construction"):
                setattr(layer, name, given)
        with pytest.raises(AttributeError, match=f"^{name}: options are fixed at construction"):
            delattr(layer, name)
    assert repr(layer) == shown
    assert_same_bits(layer(x)[0], before)
    for name in ("dropuot", "training", "requires_grad", "weight_hh_l0", "weight_hh", "bias_ih_l1"):
        with pytest.raises(AttributeError, match=f"^{name}: expected "):
            setattr(layer, name, 1)
    if hasattr(layer, "activations"):
        with pytest.raises(TypeError):
            layer.activations["candidate"] = "relu"


@KIND
def test_options_show_only_where_they_are(kind):
    every = {name for other in KINDS for name in arguments(other)} - {"rng"}
    for where in (kind, kind(3, 5), kind.from_state_dict(kind(3, 5).state_dict())):
        for name in every - arguments(kind).keys():
            assert not hasattr(where, name), name
            assert name not in dir(where)
    assert all(hasattr(kind(3, 5), name) for name in arguments(kind).keys() - {"rng"})


def test_activations_are_public():
    assert dict(cylstm.LSTM(3, 5).activations) == {
        "input": "sigmoid", "forget": "sigmoid", "candidate": "tanh", "output": "sigmoid",
        "cell": "tanh"}  # fmt: skip
    coupled = cylstm.LSTM(3, 5, coupled=True, activations=("Elu", "relu", "tanh"))
    assert dict(coupled.activations) == {
        "input": "elu", "candidate": "relu", "output": "elu", "cell": "tanh"}  # fmt: skip
    assert dict(cylstm.GRU(3, 5, activations=(("HardSigmoid", 0.5), "Tanh")).activations) == {
        "reset": ("hardsigmoid", 0.5, 0.5), "update": ("hardsigmoid", 0.5, 0.5),
        "candidate": "tanh"}  # fmt: skip
    assert cylstm.RNN(3, 5, nonlinearity="hard_sigmoid_keras3").nonlinearity == (
        "hardsigmoid", 1 / 6, 0.5)  # fmt: skip


@KIND
def test_a_wrong_keyword_names_the_class(kind):
    class Mine(kind):
        pass

    for cls in (kind, Mine):
        message = rf"^{kind.__name__}\.__init__\(\) got an unexpected keyword argument 'dropuot'"
        with pytest.raises(TypeError, match=message):
            cls(3, 5, dropuot=0.5)
        with pytest.raises(TypeError, match=rf"^{kind.__name__}\.__init__\(\) missing 1 required"):
            cls(3)


def documented(kind):
    """Text of each argument in the docstring."""
    doc = inspect.cleandoc(kind.__doc__)
    section = doc.partition("Parameters\n----------\n")[2].partition("\n\nAttributes\n")[0]
    found = {}
    for entry in re.split(r"\n(?=\S)", section):
        head, _, text = entry.partition("\n")
        for name in head.partition(" : ")[0].split(", "):
            found[name] = head.partition(" : ")[2] + "\n" + text
    return found


@KIND
def test_every_argument_is_documented_in_order_with_its_default(kind):
    found, signature = documented(kind), arguments(kind)
    assert list(found) == list(signature)
    for name, parameter in signature.items():
        assert parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        assert len(found[name]) > 20
        if parameter.default is parameter.empty:
            assert "default" not in found[name]
        elif parameter.default is not None:
            shown = parameter.default
            shown = f'"{shown}"' if isinstance(shown, str) else str(shown)
            assert f"default {shown}\n" in found[name], name


def test_what_the_layers_share_is_said_alike():
    lstm, gru, rnn = map(documented, KINDS)
    shared = lstm.keys() & gru.keys() & rnn.keys()
    assert len(shared) == 17
    for name in shared:
        assert lstm[name] == gru[name] == rnn[name], name
    for section in ("Attributes", "Raises"):
        texts = {
            inspect.cleandoc(kind.__doc__).partition(f"\n{section}\n---")[2].partition("\n\n")[0]
            for kind in KINDS
        }
        assert len(texts) == 1 and texts != {""}


def sections(method):
    """Text of each argument and result in a method's docstring, by section and name."""
    doc, found = inspect.getdoc(method), {}
    for title, section in re.findall(r"^(\w+)\n-+\n(.*?)(?=\n\n\w+\n---|\Z)", doc, re.S | re.M):
        for entry in re.split(r"\n(?=\S)", section.strip()):
            head, _, text = entry.partition("\n")
            for name in head.partition(" : ")[0].split(", "):
                found[title, name] = head.partition(" : ")[2] + "\n" + text
    return found


def test_every_method_says_what_its_arguments_are():
    call = sections(cylstm.LSTM.__call__)
    for method, others in ((cylstm.LSTM.forward, {"out"}), (cylstm.LSTM.trace, {"x", "reset"})):
        found = sections(method)
        for name in inspect.signature(method).parameters.keys() - {"self"}:
            assert ("Parameters", name) in found, (method, name)
            if ("Parameters", name) in call and name not in others:
                assert found["Parameters", name] == call["Parameters", name]
        assert ("Raises", "ValueError") in found


def public_docstrings():
    """Every docstring that `help(cylstm)` leads to, by name."""
    for name in dir(cylstm):
        value = getattr(cylstm, name)
        if name.startswith("_") or not getattr(value, "__module__", "").startswith("cylstm"):
            continue
        yield name, inspect.getdoc(value)
        if inspect.isclass(value):
            for of in dir(value):
                if of == "__call__" or not (of.startswith("_") or hasattr(BaseException, of)):
                    yield f"{name}.{of}", inspect.getdoc(getattr(value, of))


def test_no_docstring_sends_the_reader_elsewhere():
    found = dict(public_docstrings())
    assert {"LSTM.forward", "Linear.backward", "Adam.step", "truncated_bptt"} <= found.keys()
    for name, text in found.items():
        assert text, name
        assert not re.search(
            r"\b([Aa]s for|[Aa]s a plain call|likewise|as above|see above|ditto)\b", text
        ), name


@KIND
def test_help_needs_no_other_page(kind):
    text = pydoc.plain(pydoc.render_doc(kind))
    for name in arguments(kind):
        assert re.search(rf"\b{name}\b", text)
    for word in ("As for", "as for `Recurrent`", "**options: 'Any') -> 'None'", "likewise"):
        assert word not in kind.__doc__ + text.partition("Methods defined here")[0]
    for internal in ("_checks", "_signature", "_changed", "_stage", "ClassVar"):
        assert internal not in text


@KIND
def test_what_kind_of_cell_a_subclass_is_does_not_depend_on_its_name(kind):
    plain = kind(3, 5, 2, bidirectional=True, rng=0)
    x = np.random.default_rng(0).normal(size=(4, 2, 3))
    for name in ("Encoder", *(other.__name__ for other in KINDS)):
        made = type(name, (kind,), {})(3, 5, 2, bidirectional=True, rng=0)
        assert repr(made) == repr(plain).replace(kind.__name__, name)
        y, _, tape = made.forward(x)
        expected, _, tape0 = plain.forward(x)
        assert_same_bits(y, expected)
        assert_same_bits(made.backward(tape, y)[0], plain.backward(tape0, y)[0])


class Encoder(cylstm.GRU):
    """A layer with a vocabulary, as users write one."""

    def __init__(self, vocabulary, size, **options):
        self.vocabulary = vocabulary
        self.hidden_size = "overwritten by the layer"
        super().__init__(len(vocabulary), size, **options)
        self.counts = dict.fromkeys(vocabulary, 0)

    def __call__(self, words, **options):
        x = np.zeros((len(words), self.input_size))
        for step, word in enumerate(words):
            x[step, self.vocabulary.index(word)] = 1
            self.counts[word] += 1
        self.last = words
        return super().__call__(x, **options)

    last = ()


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))]
)
def test_a_subclass_with_attributes_of_its_own(duplicate):
    encoder = Encoder(["a", "b", "c"], 5, num_layers=2, rng=0)
    y = encoder(["a", "c", "c"])[0]
    twin = duplicate(encoder)
    assert type(twin) is Encoder
    assert (twin.vocabulary, twin.counts, twin.last) == (
        ["a", "b", "c"], {"a": 1, "b": 0, "c": 2}, ["a", "c", "c"])  # fmt: skip
    assert_same_bits(twin(["a", "c", "c"])[0], y)
    assert encoder.counts["c"] == 2 and twin.counts["c"] == 4
    assert repr(twin) == "Encoder(3, 5, num_layers=2)"
    for name in ("hidden_size", "dropout", "vocabluary", "weight_ih_l0"):
        with pytest.raises(AttributeError, match=f"^{name}: "):
            setattr(twin, name, 3)
    twin.vocabulary = ["x", "y", "z"]


def test_a_subclass_cannot_change_options_after_they_have_been_read():
    class Careless(cylstm.LSTM):
        def __init__(self):
            super().__init__(3, 5)
            self.own = 1
            self.dropout = 0.5

    with pytest.raises(AttributeError, match=r"^dropout: options are fixed"):
        Careless()


@KIND
def test_dropout_of_one_layer_warns(kind):
    class Mine(kind):
        pass

    for cls in (kind, Mine):
        with pytest.warns(
            UserWarning, match="dropout=0.5 does nothing with num_layers=1"
        ) as caught:
            cls(3, 5, dropout=0.5)
        assert len(caught) == 1 and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kind(3, 5, 2, dropout=0.5)
        kind(3, 5, dropout=0.0)


@KIND
def test_a_sweep_over_dropout_includes_0(kind):
    for dropout in (0.0, 0, 0.5):
        assert kind(3, 5, 2, dropout=dropout, variational=True).variational


BIASES = [
    ("both", TypeError), (2, TypeError), (None, TypeError), ("", TypeError), (1, TypeError),
    (np.ones(3), TypeError),
]  # fmt: skip


@pytest.mark.parametrize(("value", "error"), BIASES, ids=lambda v: repr(v)[:9])
@KIND
def test_bias(kind, value, error):
    refused(error, "bias", repr(value), kind, 3, 5, bias=value)


@KIND
def test_names_of_one_bias(kind):
    layer = kind(3, 5, 2, bias="single", bidirectional=True)
    assert layer.bias == "single"
    biases = [name for name in layer.params if name.startswith("bias")]
    assert biases == ["bias_ih_l0", "bias_ih_l0_reverse", "bias_ih_l1", "bias_ih_l1_reverse"]


@KIND
def test_rng_that_is_none(kind):
    for wrong in (True, False, np.True_, "seed", 1.5):
        refused(TypeError, "rng", repr(wrong), kind, 3, 5, rng=wrong)
    refused(ValueError, "rng", "-1", kind, 3, 5, rng=-1)


@KIND
def test_sizes_beyond_any_memory_are_named(kind):
    for size in (2**31 - 1, 2**30):
        with pytest.raises(
            MemoryError, match=rf"{kind.__name__}\({size}, {size}\): expected .*bytes"
        ):
            kind(size, size)


# Calls


def calls(layer):
    return [layer, layer.forward]


@EVERY
def test_mask(cell):
    p = problem(cell, (3, 5), steps=4, rows=3)
    right = np.ones((4, 3), bool)
    cases = [
        (right + 1, ValueError, "2 to 2"),
        (right.astype(int) - 2, ValueError, "-1 to -1"),
        (right.astype("f"), TypeError, "float32"),
        (right.astype(object), TypeError, "object"),
        (right.T, ValueError, "(3, 4)"),
        (right[0], ValueError, "(3,)"),
        (right[..., None], ValueError, "(4, 3, 1)"),
        (True, ValueError, "()"),
    ]
    for call in [*calls(p.layer), p.layer.trace]:
        for wrong, error, got in cases:
            refused(error, "mask", got, call, p.x, mask=wrong)
        with pytest.raises(ValueError, match=r"(?s)mask.*lengths|lengths.*mask"):
            call(p.x, lengths=[1, 2, 3], mask=right)
    refused(ValueError, "mask", "(4, 3)", p.layer, p.x[:, 0], mask=right)
    first = LAYERS[cell](3, 5, batch_first=True)
    refused(ValueError, "mask", "(4, 3)", first, p.x.swapaxes(0, 1), mask=right)


@EVERY
def test_return(cell):
    p = problem(cell, (3, 5))
    cases = [
        ("first", ValueError, "first"),
        (0, ValueError, "0"),
        (-1, ValueError, "-1"),
        (True, TypeError, "True"),
        (False, TypeError, "False"),
        (1.0, TypeError, "1.0"),
        (None, TypeError, "None"),
        (("all",), TypeError, "all"),
    ]
    for call in calls(p.layer):
        for wrong, error, got in cases:
            refused((error, ValueError), "return_", got, call, p.x, return_=wrong)


SHAPES = {"all": (5, 3, 10), "last": (3, 10), 2: (2, 3, 10), 9: (0, 3, 10), "mean": (3, 10),
          "max": (3, 10)}  # fmt: skip


@EVERY
def test_shapes_of_out_and_dy_for_each_return(cell):
    p = problem(cell, (3, 5), bidirectional=True)
    for right, wrong in itertools.product(SHAPES, SHAPES):
        if SHAPES[right] == SHAPES[wrong]:
            continue
        bad = np.full(SHAPES[wrong], 7, np.float32)
        for call in calls(p.layer):
            refused(ValueError, "out", str(bad.shape), call, p.x, return_=right, out=bad)
        tape = p.layer.forward(p.x, return_=right)[2]
        refused(ValueError, "dy", str(bad.shape), p.layer.backward, tape, bad)
        assert np.all(bad == 7) and not np.any(p.layer.flat_grads)


@EVERY
def test_gradients_of_separate_directions(cell):
    p = problem(cell, (3, 5), bidirectional=True, merge_mode="separate")
    tape = p.forward()[2]
    a, b = p.dy
    for wrong in (a, np.stack(p.dy), (a,), (a, b, b), {0: a, 1: b}):
        refused((TypeError, ValueError), "dy", "", p.layer.backward, tape, wrong)
    refused(ValueError, "dy", str(b[1:].shape), p.layer.backward, tape, (a, b[1:]))
    refused(ValueError, "dy", str(a[1:].shape), p.layer.backward, tape, (a[1:], b))
    assert not np.any(p.layer.flat_grads)


@EVERY
def test_checkpoint(cell):
    p = problem(cell, (3, 5))
    for wrong, error, got in [(0, ValueError, "0"), (-2, ValueError, "-2"), (1.5, TypeError, "1.5"),
                              (True, TypeError, "True"), ("log", ValueError, "log")]:  # fmt: skip
        refused((error, TypeError), "checkpoint", got, p.layer.forward, p.x, checkpoint=wrong)
    with pytest.raises(TypeError):
        p.layer(p.x, checkpoint=2)


@EVERY
def test_clip_step(cell):
    p = problem(cell, (3, 5))
    tape = p.forward()[2]
    for wrong, error, got in BOUND:
        refused(error, "clip_step", got, p.layer.backward, tape, p.dy, clip_step=wrong)
    assert not np.any(p.layer.flat_grads)


@EVERY
def test_rng_of_a_call(cell):
    p = problem(cell, (3, 5, 2), dropout=0.5)
    for wrong in ("seed", 1.5, -1):
        with pytest.raises((TypeError, ValueError), match="rng"):
            p.layer.forward(p.x, rng=wrong)
    with pytest.raises(TypeError):
        p.layer(p.x, rng=3)


@EVERY
def test_lists(cell):
    p = problem(cell, (3, 5, 2))
    x = [p.x[:n, row] for row, n in enumerate((2, 5, 0))]
    for call in calls(p.layer):
        for name, value in (("lengths", [2, 5, 0]), ("mask", np.ones((5, 3), bool))):
            with pytest.raises(ValueError, match=name):
                call(x, **{name: value})
        refused((TypeError, ValueError), "x", "(2, 4)", call, [x[0], np.ones((2, 4))])
        refused((TypeError, ValueError), "x", "", call, [x[0], np.ones(3)])
        refused(TypeError, "x", "complex", call, [x[0], x[1] * 1j])
        refused(ValueError, "state", "", call, x, tuple(np.zeros((2, 2, 5)) for _ in p.state)
                if cell == "lstm" else np.zeros((2, 2, 5)))  # fmt: skip
    y, _, tape = p.layer.forward(x)
    for wrong in (y[:2], [*y[:2], np.zeros((1, 5))], [*y[:2], y[2][:, :4]], [*y, y[0]]):
        refused((TypeError, ValueError), "dy", "", p.layer.backward, tape, wrong)
    assert not np.any(p.layer.flat_grads)
    variational = LAYERS[cell](3, 5, 2, dropout=0.5, variational=True)
    with pytest.raises(ValueError, match="variational"):
        variational.forward(x)
    assert len(variational(x)[0]) == 3  # a plain call has no masks


@EVERY
def test_state_of_a_size_per_layer(cell):
    p = problem(cell, (3, (5, 6)), bidirectional=True)
    h = p.state[0]
    rest = p.state[1:]
    for wrong in (h[:1], (*h, h[0]), h[::-1], (h[0], h[1][:1]), (h[0], h[1][:, :2]), h[0],
                  np.zeros((4, 3, 5)), (h[0][0], h[1][0])):  # fmt: skip
        state = (wrong, *rest) if rest else wrong
        refused((TypeError, ValueError), "state", "", p.layer, p.x, state)
        tape = p.forward()[2]
        refused((TypeError, ValueError), "dstate", "", p.layer.backward, tape, p.dy, state)
    assert not np.any(p.layer.flat_grads)
    assert_same_bits(p.infer(), p.forward()[:2])
