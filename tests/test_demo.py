"""The command line and the demo, run in this process on few epochs."""

import re
from pathlib import Path

import numpy as np
import pytest
from helpers import run_python

import cylstm
from cylstm.__main__ import main
from cylstm.datasets.japanese_vowels import load_japanese_vowels
from cylstm.examples import japanese_vowels as demo

CELLS = ("lstm", "gru", "rnn")


@pytest.fixture(autouse=True)
def restore_threads():
    yield
    cylstm.set_num_threads(None)


@pytest.fixture(scope="module")
def data():
    return demo.scaled(load_japanese_vowels())


def net(cell="lstm", seed=0):
    return demo.SpeakerNet(cell, np.random.default_rng(seed))


def run_demo(*options):
    return main(["demo", "--epochs", "1", *map(str, options)])


@pytest.mark.parametrize("cell", CELLS)
def test_runs(cell, capsys):
    assert run_demo("--cell", cell) == 0
    out, err = capsys.readouterr()
    assert f"bidirectional {cell.upper()}" in out
    assert out.count("same bits") == 2
    named, batch = re.search(r"speaker (\d); batch: (\d)", out).groups()
    assert named == batch
    share, right = re.search(r"test ([\d.]+)% \((\d+) of 370\)", out).groups()
    assert float(share) == pytest.approx(100 * int(right) / 370, abs=0.05)
    for reported in ("train ", "parameters", "ms per epoch", "us per utterance", "CC BY 4.0"):
        assert reported in out
    assert all(len(line) < 80 for line in out.splitlines())
    assert "1/1" in err and "Traceback" not in err


@pytest.mark.parametrize("cell", CELLS)
def test_streaming_has_the_bits_of_the_whole_sequence(cell, data, capsys):
    assert demo.print_stream(net(cell), data.test)
    assert capsys.readouterr().out.count("same bits") == 2


@pytest.mark.parametrize("where", ["y", "state"])
@pytest.mark.parametrize("call", [1, 2])
def test_one_wrong_bit_in_the_stream_fails(where, call, capsys, monkeypatch):
    stream, calls = demo.stream, []

    def with_wrong_bit(layer, frames):
        calls.append(layer)
        streamed = stream(layer, frames)
        if len(calls) == call:
            wrong = streamed.y if where == "y" else streamed.state[1]
            wrong.view(np.uint32).flat[3] ^= 1
        return streamed

    monkeypatch.setattr(demo, "stream", with_wrong_bit)
    assert run_demo() == 1
    out, err = capsys.readouterr()
    assert (out.count("same bits"), out.count("NOT the bits")) == (1, 1)
    assert "streaming changed the result" in err


def test_learns(data):
    epochs = list(demo.train(net(), data, 6, np.random.default_rng(0)))
    assert epochs[-1].loss < 0.5 * epochs[0].loss
    assert epochs[-1].train > 0.9 and epochs[-1].test > 0.9
    assert all(epoch.seconds > 0 for epoch in epochs)


def test_every_batch_starts_from_zero_gradients(data, monkeypatch):
    model = net()
    backpropagate, before = model.backpropagate, []

    def spy(*batch):
        before.append(max(np.abs(module.flat_grads).max() for module in model.modules))
        return backpropagate(*batch)

    monkeypatch.setattr(model, "backpropagate", spy)
    list(demo.train(model, data, 1, np.random.default_rng(0)))
    assert before == [0.0] * 10


def test_seed_decides(data):
    def last(seed):
        rng = np.random.default_rng(seed)
        return list(demo.train(demo.SpeakerNet("gru", rng), data, 2, rng))[-1][:3]

    assert last(1) == last(1) != last(2)


def test_padding_is_not_read(data):
    part = data.test
    padding = np.arange(len(part.frames))[:, np.newaxis] >= part.lengths
    other = np.where(padding[..., np.newaxis], np.float32(np.nan), part.frames)
    np.testing.assert_array_equal(net()(other, part.lengths), net()(part.frames, part.lengths))


def test_gradient_is_that_of_the_loss(data):
    model, part = net(), data.train
    rows = slice(0, 270, 20)
    batch = part.frames[:, rows], part.lengths[rows], part.speaker[rows]
    model.backpropagate(*batch)
    for module in model.modules:
        start, step = module.flat_params.copy(), 1e-2
        direction = module.flat_grads / np.linalg.norm(module.flat_grads)
        losses = []
        for sign in (1, -1):
            module.assign(start + sign * step * direction)
            losses.append(cylstm.cross_entropy(model(*batch[:2]), batch[2])[0])
        module.assign(start)
        slope = (losses[0] - losses[1]) / (2 * step)
        assert slope == pytest.approx(np.linalg.norm(module.flat_grads), rel=1e-2)


def test_scaled_by_the_training_frames(data):
    frames = demo.valid_frames(data.train)
    assert frames.shape == (4274, 12) and frames.dtype == np.float32
    np.testing.assert_allclose(frames.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(frames.std(axis=0), 1, atol=1e-5)
    raw, scaled = (demo.valid_frames(d.test) for d in (load_japanese_vowels(), data))
    train = demo.valid_frames(load_japanese_vowels().train)
    back = scaled * train.std(axis=0) + train.mean(axis=0)
    np.testing.assert_allclose(back, raw, atol=1e-5)


def test_accuracy_asked_for(capsys):
    assert run_demo("--assert-accuracy", 1) == 1
    err = capsys.readouterr().err
    assert re.search(r"cylstm: test accuracy 0\.\d{4} is below the 1 asked for", err)
    assert run_demo("--assert-accuracy", 0.2) == 0
    assert "is below" not in capsys.readouterr().err


@pytest.mark.parametrize("cell", CELLS)
def test_plot(cell, tmp_path, capsys):
    from matplotlib.image import imread

    path = tmp_path / "figure.png"
    assert run_demo("--cell", cell, "--plot", path) == 0
    image = imread(path)
    assert image.shape[:2] == (1140, 1680)
    ink = 1 - image[..., :3].mean(axis=2)
    curves, gates, flows = ink[:500, :560], ink[:500, 560:], ink[530:1000]
    assert all(part.mean() > 0.01 for part in (curves, gates, flows))
    assert str(path) in capsys.readouterr().out


def test_gradient_flow():
    from cylstm.examples.japanese_vowels_figure import gradient_flow

    layer = cylstm.GRU(2, 3, dtype="float64", rng=0)
    x = np.random.default_rng(1).normal(size=(4, 2, 2))
    weights = np.random.default_rng(0).standard_normal(3)
    dx, step = np.zeros_like(x), 1e-6
    for at in np.ndindex(x.shape):
        for sign in (1, -1):
            moved = x.copy()
            moved[at] += sign * step
            dx[at] += sign * (layer(moved)[0][-1] @ weights).sum() / (2 * step)
    norms = [np.mean([np.hypot(*row) for row in frame]) for frame in dx[::-1]]
    np.testing.assert_allclose(gradient_flow(layer, x), np.array(norms) / norms[0], rtol=1e-6)


def test_gradients_vanish_in_untrained_cells_unless_the_forget_gate_is_open(data):
    from cylstm.examples.japanese_vowels_figure import gradient_flows

    rnn, gru, lstm = (gradient_flows(net(cell), data.test) for cell in ("rnn", "gru", "lstm"))
    at = 60
    assert rnn["untrained"][at] < 1e-14
    assert 1e-14 < gru["untrained"][at] < 1e-9 and 1e-14 < lstm["untrained"][at] < 1e-9
    assert lstm["untrained, forget bias 1"][at] > 1e-6
    assert lstm["untrained, forget bias 3"][at] > 1e-1


@pytest.mark.parametrize("name", ["figure.pdf", "nowhere/figure.png", "folder.png"])
def test_plot_that_cannot_be_written(name, tmp_path, capsys):
    (tmp_path / "folder.png").mkdir()
    assert run_demo("--plot", tmp_path / name) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("cylstm: --plot") and name in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["demo", "--cell", "peephole"], "'lstm', 'gru', 'rnn'"),
        (["demo", "--seed", "-1"], "--seed: expected at least 0, got -1"),
        (["demo", "--epochs", "0"], "--epochs: expected at least 1, got 0"),
        (["demo", "--threads", "0"], "--threads: expected at least 1, got 0"),
        (["demo", "--threads", "two"], "--threads: invalid integer value: 'two'"),
        (["demo", "--assert-accuracy", "97"], "expected a number from 0 to 1, got 97"),
        (["dance"], "invalid choice: 'dance'"),
        ([], "required: command"),
    ],
)
def test_wrong_usage(options, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(options)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    # Python 3.12 and later do not quote the choices.
    assert out == "" and message.replace("'", "") in err.replace("'", "")


MISSING = """
import sys
sys.modules[sys.argv[1]] = None
from cylstm.__main__ import main
sys.stderr = sys.stdout
print("status", main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    ("package", "extra", "user", "options"),
    [("tqdm", "demo", "the demo", ()), ("matplotlib", "plot", "--plot", ("--plot", "a.png"))],
)
def test_missing_package(package, extra, user, options):
    message = f'cylstm: {user} needs {package}: pip install "cylstm[{extra}]"'
    assert run_python(MISSING, package, "demo", *options).splitlines() == [message, "status 2"]


def test_needs_matplotlib_only_to_plot():
    out = run_python(MISSING, "matplotlib", "demo", "--epochs", 1)
    assert out.splitlines()[-1] == "status 0"


def test_options_reach_the_demo(monkeypatch):
    calls = []
    monkeypatch.setattr(demo, "run", lambda *args, **options: calls.append((args, options)))
    main("demo --cell gru --seed 3 --epochs 4 --plot a.png --assert-accuracy 0.5".split())
    options = {"seed": 3, "epochs": 4, "plot": Path("a.png"), "assert_accuracy": 0.5}
    assert calls == [(("gru",), options)]


def test_threads(monkeypatch):
    monkeypatch.setattr(demo, "run", lambda *args, **options: cylstm.get_num_threads())
    assert main(["demo"]) == 1
    cylstm.set_num_threads(None)
    most = cylstm.get_num_threads()
    assert main(["demo", "--threads", "2"]) == min(2, most)


def test_info(capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    cylstm.show_config()
    assert printed == capsys.readouterr().out
    assert cylstm.__version__ in printed


AS_A_MODULE = """
import runpy, sys
sys.argv = ["cylstm", "info"]
try:
    runpy.run_module("cylstm", run_name="__main__")
except SystemExit as end:
    print("status", end.code)
"""


def test_runs_as_a_module():
    first, *_, last = run_python(AS_A_MODULE).splitlines()
    assert first.split() == ["cylstm", cylstm.__version__] and last == "status 0"
