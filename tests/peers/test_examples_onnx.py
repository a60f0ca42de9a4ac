"""Networks from other packages' files, against these packages' own runtimes."""

import importlib.util
import io
import warnings
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import assert_close, run_python

import cylstm

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


silero = example("silero_vad")


def signal(rate, frames, seed=0):
    """Something that opens and closes the detector: voiced sound that comes and goes, in noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(frames * silero.FRAME[rate]) / rate
    pitch = 2 * np.pi * (120 * t + 3 * np.sin(2 * np.pi * 3 * t))
    voice = sum(np.sin(k * pitch) * a for k, a in ((1, 1.0), (4, 0.6), (6, 0.7), (20, 0.3)))
    loud = np.clip(np.sin(2 * np.pi * 0.9 * t), 0, 1)
    return (0.2 * voice * loud + 0.003 * rng.normal(size=t.shape)).astype(np.float32)


def frames(samples, rate):
    return samples.reshape(-1, 1, silero.FRAME[rate])


@pytest.mark.parametrize("rate", [16000, 8000])
def test_silero_vad(rate):
    """The package's own wrapper and runtime, at both rates: branches of an If in the file."""
    from silero_vad.utils_vad import OnnxWrapper

    theirs = OnnxWrapper(str(silero.model_path()), force_onnx_cpu=True)
    ours = silero.VoiceActivity(rate)
    found, wanted = [], []
    for frame in frames(signal(rate, 60), rate):
        found.append(ours.step(frame))
        wanted.append(theirs(torch.from_numpy(frame), rate).numpy()[:, 0])
    assert np.ptp(wanted) > 0.3  # there is something to be seen
    assert_close(np.array(found), np.array(wanted), 1e-5)


def test_silero_vad_needs_its_context():
    rate = 16000
    assert silero.CONTEXT[rate] == 64
    whole, without = silero.VoiceActivity(rate), silero.VoiceActivity(rate)
    differences = []
    for frame in frames(signal(rate, 60), rate):
        without.context = np.zeros_like(without.context)
        differences.append(abs(whole.step(frame) - without.step(frame)))
    assert np.max(differences) > 0.05


def test_silero_vad_rows_together():
    rate = 16000
    both = [frames(signal(rate, 12, seed), rate) for seed in (0, 1)]
    alone = [silero.VoiceActivity(rate) for _ in both]
    together = silero.VoiceActivity(rate, rows=2)
    for pair in zip(*both, strict=True):
        found = together.step(np.concatenate(pair))
        wanted = [a.step(frame)[0] for a, frame in zip(alone, pair, strict=True)]
        assert_close(found, np.array(wanted, np.float32), 1e-5)


def test_silero_vad_at_the_command_line(tmp_path):
    samples = (signal(8000, 5) * 32767).astype("<i2")
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(samples.tobytes())
    code = (EXAMPLES / "silero_vad.py").read_text()
    printed = run_python(code, str(tmp_path / "a.wav"))
    lines = printed.splitlines()
    assert len(lines) == 5 and all(" s  0." in line for line in lines)


def test_a_tagger_exported_by_pytorch():
    class Tagger(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.words = torch.nn.Embedding(50, 12)
            self.lstm = torch.nn.LSTM(12, 16, 2, bidirectional=True, batch_first=True)
            self.out = torch.nn.Linear(32, 5)

        def forward(self, ids):
            return torch.log_softmax(self.out(self.lstm(self.words(ids))[0]), -1)

    torch.manual_seed(0)
    module, file, open_ = Tagger().eval(), io.BytesIO(), {0: "b", 1: "t"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (torch.randint(50, (3, 7)),), file, dynamo=False,
                          input_names=["ids"], output_names=["y"],
                          dynamic_axes={"ids": open_, "y": open_})  # fmt: skip
    network = cylstm.from_onnx(file.getvalue())
    ids = np.random.default_rng(0).integers(50, size=(2, 11))
    with torch.no_grad():
        wanted = module(torch.from_numpy(ids)).numpy()
    assert_close(network({"ids": ids})["y"], wanted, 2e-6)
    # ONNX -> cylstm -> PyTorch
    (first,), (second,) = network.layers.values()
    state = module.lstm.state_dict()
    for k, layer in enumerate((first, second)):
        for name, value in layer.state_dict().items():
            assert np.array_equal(value, state[name.replace("_l0", f"_l{k}")].numpy())
