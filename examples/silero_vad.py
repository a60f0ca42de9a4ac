"""Speech probabilities of silero-vad, frame by frame, from the ONNX file in its package.

    pip install "cylstm[onnx]" onnxruntime
    pip install --no-deps silero-vad
    python examples/silero_vad.py speech.wav

Its recurrent nodes run in cylstm, its convolutions in ONNX Runtime. The file is mono, of 16 bits,
at 8 or 16 kHz; one line is printed for each frame of 32 ms.

The network's state is more than its LSTM's: every frame is preceded by the last samples of the one
before, 64 at 16 kHz, without which the probabilities are others.
"""

import sys
import wave
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import cylstm

#: Samples of a frame, and of the context before it, by sampling rate.
FRAME = {16000: 512, 8000: 256}
CONTEXT = {16000: 64, 8000: 32}


def model_path():
    """Path of the network in the installed package, which is not imported."""
    spec = find_spec("silero_vad")
    if spec is None:
        raise SystemExit("silero-vad is not installed: pip install --no-deps silero-vad")
    return Path(spec.submodule_search_locations[0]) / "data" / "silero_vad.onnx"


class VoiceActivity:
    """The probability of speech in each frame, with the state in between.

    Parameters
    ----------
    rate : {8000, 16000}
        Samples a second.
    rows : int, default 1
        Signals that are fed together.
    """

    def __init__(self, rate, rows=1):
        self.rate = np.array(rate)
        self.stream = cylstm.from_onnx(model_path(), streaming={"state": "stateN"})
        self.stream.reset(batch_size=rows)
        self.context = np.zeros((rows, CONTEXT[rate]), np.float32)

    def step(self, frame):
        """Probability of speech (rows,) in a frame (rows, samples)."""
        x = np.concatenate((self.context, frame), axis=1)
        self.context = x[:, -self.context.shape[1] :]
        return self.stream.step({"input": x, "sr": self.rate})["output"][:, 0]


def main():
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    with wave.open(sys.argv[1]) as file:
        rate = file.getframerate()
        if rate not in FRAME or file.getnchannels() != 1 or file.getsampwidth() != 2:
            raise SystemExit("expected a mono file of 16 bits at 8000 or 16000 Hz")
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    samples = (samples / 32768).astype(np.float32)
    detector, size = VoiceActivity(rate), FRAME[rate]
    for start in range(0, len(samples) - size + 1, size):
        (probability,) = detector.step(samples[None, start : start + size])
        print(f"{start / rate:8.3f} s  {probability:.3f}")


if __name__ == "__main__":
    main()
