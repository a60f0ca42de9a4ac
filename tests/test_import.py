"""What `import cylstm` brings along and what it leaves alone."""

from helpers import run_python

UNWANTED = [
    "scipy", "torch", "onnx", "onnxruntime", "sklearn", "matplotlib", "tqdm", "numba",
    "threadpoolctl", "multiprocessing", "concurrent.futures", "asyncio",
]  # fmt: skip


def test_imports_numpy_only():
    code = """
import sys
import numpy
before = set(sys.modules)
import cylstm
print(*sys.modules.keys() - before)
"""
    assert not set(run_python(code).split()) & set(UNWANTED)


def test_inference_needs_no_scipy():
    code = """
import sys
import numpy as np
import cylstm
for layer in (cylstm.LSTM(3, 5), cylstm.GRU(3, 5), cylstm.RNN(3, 5)):
    layer(np.ones((4, 2, 3)))
print(*sys.modules)
"""
    assert "scipy" not in run_python(code).split()


def test_leaves_the_process_as_it_was():
    code = """
import ctypes, os, signal, sys, threading
import numpy as np

def snapshot():
    small = np.array([1e-310, 5e-324])
    return (
        dict(os.environ), threading.active_count(), os.getcwd(), list(sys.path), sys.flags,
        [signal.getsignal(s) for s in signal.valid_signals()],
        np.geterr(), np.random.get_state()[2],
        (small * 1.0).tobytes(), (small.astype(np.longdouble) / 2 == 0).tolist(),
        (np.float32([1e-38]) * np.float32(0.1)).tobytes(), sys.getswitchinterval(),
    )

before = snapshot()
import cylstm
assert snapshot() == before
assert np.float32(1e-40) * np.float32(0.5) > 0
"""
    run_python(code)
