"""No file makes the library run code, read past its end, or allocate what it does not justify."""

import io
import json
import os
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import refused, run_python

import cylstm
from cylstm.io import describe, npz, tensors

GRU = cylstm.GRU(3, 4, rng=0)
#: More than any of these small files needs.
LIMIT = 2**22
CASES = int(os.environ.get("CYLSTM_CASES", 1500))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.safetensors"


@pytest.fixture(autouse=True)
def nothing_is_unpickled(monkeypatch):
    def never(*arguments):
        raise AssertionError("unpickled")

    monkeypatch.setattr("pickle.load", never)
    monkeypatch.setattr("pickle.loads", never)


def write(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if length is None else length
    path.write_bytes(length.to_bytes(8, "little") + text + data)


def parts(path):
    """Header and data of a good file."""
    GRU.save(path)
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def refuses(path, got, read=cylstm.load, **options):
    """Assert that a file is refused, for this reason, in little memory."""
    tracemalloc.start()
    try:
        refused(cylstm.FormatError, str(path), got, read, path, **options)
        assert tracemalloc.get_traced_memory()[1] < LIMIT
    finally:
        tracemalloc.stop()


def one(shape, offsets, dtype="F32", **more):
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets} | more}


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"", "got 0"),
        (b"\x02\0\0\0\0\0\0", "got 7"),
        (b"\x02\0\0\0\0\0\0\0{", "got 9"),
        ((2**63).to_bytes(8, "little") + b"{}", str(2**63)),
        ((2**22 + 1).to_bytes(8, "little") + b"{}", str(2**22 + 1)),
        ((2**22).to_bytes(8, "little") + b"{}", "got 10"),
    ],
)
def test_beginnings(path, content, got):
    path.write_bytes(content)
    refuses(path, got)


@pytest.mark.parametrize(
    ("header", "got"),
    [
        (b"", "JSON"), (b"{", "JSON"), (b"\xff{}", "decode"), (b"[]", "[]"), (b"1", "1"),
        (b'\xef\xbb\xbf{"a": 1}', "BOM"), (b'{"a": NaN}', "NaN"), (b'{"a": 1, "a": 1}', "twice"),
        (b'{"__metadata__": {"a": "1", "a": "1"}}', "twice"),
        (b"[" * 200_000, "levels"), (b'{"a":' * 100_000, "levels"),
        (b'{"a": ' + b"9" * 5000 + b"}", "4300"),
        ({"__metadata__": []}, "[]"), ({"__metadata__": {"a": 1}}, "{'a': 1}"),
        ({"__metadata__": None}, "None"),
        ({"a": 1}, "1"), ({"a": {}}, "{}"), ({"a": {"dtype": "F32", "shape": []}}, "shape"),
        (one([], [0, 4], more=1), "more"),
        (one([1], [0, 4], "BF16"), "'BF16'"), (one([1], [0, 4], None), "None"),
        (one([1], [0, 4], ["F32"]), "['F32']"), (one([1], [0, 4], "|O8"), "'|O8'"),
        (one(1, [0, 4]), "1"), (one([1.0], [0, 4]), "[1.0]"), (one([True], [0, 4]), "[True]"),
        (one([-1, -1], [0, 4]), "[-1, -1]"), (one([2**63], [0, 4]), str(2**63)),
        (one([1] * 33, [0, 4]), "[1, 1"), (one({"0": 1}, [0, 4]), "{'0': 1}"),
        (one([0, 2**62, 2**62], [0, 0]), "[0, 46"), (one([2**32, 2**32], [0, 0]), "[42"),
        (one([1], [0]), "[0]"), (one([1], [0, 4, 4]), "[0, 4, 4]"), (one([1], [4, 0]), "[4, 0]"),
        (one([1], [-4, 0]), "[-4, 0]"), (one([1], [0.0, 4.0]), "[0.0, 4.0]"),
        (one([1], "04"), "'04'"), (one([1], [0, 8]), "[0, 8]"), (one([2], [0, 4]), "[0, 4]"),
        (one([2], [0, 8]), "as its header says"),
        (one([], [4, 8]), "got 4"), (one([0], [4, 4]), "got 4"),
        (one([2**40], [0, 2**42]), "got"),
        (one([[[[1]]]], [0, 4]), "[[[[1]]]]"),
    ],
)  # fmt: skip
def test_headers(path, header, got):
    write(path, header, bytes(4))
    refuses(path, got)
    refuses(path, got, lambda path: list(describe.lines(path)))


@pytest.mark.parametrize(
    ("first", "second"), [((0, 8), (4, 12)), ((0, 4), (8, 12)), ((0, 4), (0, 8)), ((4, 8), (8, 12))]
)
def test_overlaps_and_holes(path, first, second):
    header = {
        name: {"dtype": "U8", "shape": [b - a], "data_offsets": [a, b]}
        for name, (a, b) in (("a", first), ("b", second))
    }
    write(path, header, bytes(12))
    refuses(path, "got", lambda path: list(describe.lines(path)))


def test_arrays_in_another_order_are_read(path):
    header, data = parts(path)
    write(path, dict(reversed(header.items())), data)
    assert cylstm.load(path).flat_params.tobytes() == GRU.flat_params.tobytes()


@pytest.mark.parametrize("count", [-1, 1])
def test_length_of_the_data(path, count):
    header, data = parts(path)
    write(path, header, data[:-1] if count < 0 else data + b"\0")
    refuses(path, f"got {path.stat().st_size}")


def test_max_bytes(path):
    parts(path)
    size = path.stat().st_size
    cylstm.load(path, max_bytes=size)
    refuses(path, str(size), max_bytes=size - 1)
    for wrong in (-1, 1.5, True, 2**64):
        refused(ValueError, "max_bytes", str(wrong), cylstm.load, path, max_bytes=wrong)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        refuses(path, "device")
    refused(TypeError, "path", "int", cylstm.load, 3)
    with pytest.raises(FileNotFoundError):
        cylstm.load(tmp_path / "none")


def test_a_file_that_becomes_shorter(path):
    parts(path)
    with tensors.TensorFile(path) as file:
        os.truncate(path, path.stat().st_size - 4)
        name = list(file.entries)[-1]
        refused(cylstm.FormatError, str(path), "beginning", file.array, name)


CONFIG = dict(GRU.config)
NESTED = {}
for _ in range(100):
    NESTED = {"class": NESTED}


@pytest.mark.parametrize(
    ("config", "got"),
    [
        ("", "JSON"), ("[]", "[]"), ("[" * 100_000, "levels"), ("{}", "None"),
        ('{"class": "GRU", "class": "GRU"}', "twice"),
        (NESTED, "levels"), ({"class": "Gru"}, "'Gru'"), ({"class": None}, "None"),
        ({"class": ["GRU"]}, "['GRU']"), ({"class": "__version__"}, "'__version__'"),
        ({"class": "config"}, "'config'"), ({"class": "Adam"}, "'Adam'"),
        ({"class": "Module"}, "'Module'"), ({"class": "kernels"}, "'kernels'"),
        ({"class": "Ellipsis"}, "'Ellipsis'"), ({"class": "os"}, "'os'"),
        (CONFIG | {"unknown": 1}, "'unknown'"), (CONFIG | {"self": 1}, "'self'"),
        (CONFIG | {"num_layers": 10**5}, str(10**5)),
        (CONFIG | {"num_layers": [{"num_layers": 3}, {"num_layers": 3}]}, "6"),
        (CONFIG | {"hidden_size": 10**12}, str(10**12)),
        (CONFIG | {"hidden_size": 2**31 - 1}, "4 of"), (CONFIG | {"input_size": 10**9}, "4 of"),
        (CONFIG | {"hidden_size": "4"}, "'4'"), (CONFIG | {"hidden_size": []}, "0"),
        (CONFIG | {"hidden_size": [4, 2**30]}, "8 of"),
        (CONFIG | {"hidden_size": 5}, "4 of"), (CONFIG | {"hidden_size": 3}, "3"),
        (CONFIG | {"bias": False}, "differ"), (CONFIG | {"dtype": "float64"}, "float32"),
        (CONFIG | {"dtype": "O"}, "'O'"), (CONFIG | {"class": "RNN"}, "arguments"),
        (CONFIG | {"dropout": "x" * 100_000}, "'xxx"),
        ({"class": "Embedding", "num_embeddings": 2**31 - 1, "embedding_dim": 2**31 - 1}, "1 of"),
        ({"class": "Linear", "in_features": 3, "out_features": 4, "tied_to": "a"}, "str"),
    ],
)  # fmt: skip
def test_configurations(path, config, got):
    header, data = parts(path)
    text = config if isinstance(config, str) else json.dumps(config)
    header["__metadata__"]["cylstm.config"] = text
    write(path, header, data)
    refuses(path, got)


def test_networks_that_grow(path):
    """Each level names the one inside twice: 2**15 modules in 15 lines."""
    cylstm.Sequential(cylstm.Dropout(0.5))  # imports what takes memory of its own
    inner = {"class": "Dropout"}
    for level in range(15):
        at = ".".join(["a"] * (15 - level))
        inner = {"class": "Sequential", "modules": {"a": inner, "b": at}}
    header, data = parts(path)
    header["__metadata__"]["cylstm.config"] = json.dumps(inner)
    write(path, header, data)
    refuses(path, "10000 modules")
    wide = {str(i): {"class": "Dropout"} for i in range(1200)}
    header["__metadata__"]["cylstm.config"] = json.dumps({"class": "Sequential", "modules": wide})
    write(path, header, data)
    refuses(path, "too many")


def test_parameters_of_other_names_and_shapes(path):
    header, data = parts(path)
    weight = header["weight_hh_l0"]
    for changed in (
        {"weight_hh_l0": weight | {"shape": [4, 12]}},
        {"weight_hh_l0": weight | {"dtype": "I32"}},
        {"weight_hh_l0": weight | {"dtype": "U16", "shape": [24, 4]}},
        {"bias": weight},
    ):
        kept = header if "bias" not in changed else {
            name: entry for name, entry in header.items() if name != "weight_hh_l0"
        }  # fmt: skip
        write(path, kept | changed, data)
        refuses(path, "differ")


def test_mapped_parameters_must_be_in_order_and_aligned(path):
    header, data = parts(path)
    text = json.dumps(header).encode()
    start = (8 + len(text)) % 4
    write(path, text + b" " * (-start % 4 + 1), data)
    refuses(path, "another", mapped=True)
    assert cylstm.load(path).flat_params.tobytes() == GRU.flat_params.tobytes()
    write(path, text + b" " * (-start % 4), data)
    cylstm.load(path, mapped=True)
    first, second = header["bias_ih_l0"], header["bias_hh_l0"]
    header["bias_ih_l0"], header["bias_hh_l0"] = second, first
    write(path, json.dumps(header).encode() + b" " * (-start % 4), data)
    refuses(path, "another", mapped=True)
    turned = cylstm.load(path)
    assert turned.params["bias_ih_l0"].tobytes() == GRU.params["bias_hh_l0"].tobytes()


def test_modules_without_parameters_are_counted():
    from cylstm.module import Module, Source

    with Source({}, 3, 10, without=3):
        for _ in range(3):
            Module({}, np.dtype("float32"))
        Module({"a": (2, 2), "b": (6,)}, np.dtype("float32"))
        with pytest.raises(ValueError, match="too many"):
            Module({}, np.dtype("float32"))
        with pytest.raises(ValueError, match=" 1 parameters of 0 numbers"):
            Module({"a": (1,)}, np.dtype("float32"))
    Module({"a": (1,)}, np.dtype("float32"))


@pytest.mark.parametrize(
    ("values", "got"),
    [
        ("", "JSON"), ("[]", "names"), ('{"a": {}}', "{}"), ('{"a": {"tuple": 1}}', "{'tuple': 1}"),
        ('{"a": {"float": "1"}}', "{'float': '1'}"), ('{"a": {"float": [1]}}', "{'float': [1]}"),
        ('{"a": {"tuple": [], "b": 1}}', "'b': 1"), ('{"x": 1}', "names"),
        ('{"a": ' + "[" * 9 + "]" * 9 + "}", "[]"), ('{"a": NaN}', "NaN"),
    ],
)  # fmt: skip
def test_states(path, values, got):
    header = one([1], [0, 4], "F32") | {
        "__metadata__": {
            "cylstm.kind": "state", "cylstm.format": "1", "cylstm.values": values,
        }
    }  # fmt: skip
    header["x"] = header.pop("a")
    write(path, header, bytes(4))
    refuses(path, got, cylstm.load_state)


def npy(shape, dtype="<f4", version=b"\x01\x00", data=bytes(16)):
    header = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY" + version + len(header).to_bytes(2, "little") + header + data


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"", "EOF"), (npy((4,))[:9], "EOF"), (b"PK" + npy((4,)), "magic"),
        (npy((10**12,)), "1000000000000"), (npy((-4,)), "-4"), (npy((-2, -2)), "-2"),
        (npy((5,)), "5"), (npy((3,)), "3"), (npy((2**62, 4)), "46"), (npy(4), "shape"),
        (npy((4,), "|O"), "object"), (npy((4,), "__import__('os')"), "descr"),
        (npy((4,), version=b"\x03\x00"), "(3, 0)"), (npy((4,), version=b"\x01\x07"), "(1, 7)"),
        (npy("(" * 200), "shape"), (b"\x93NUMPY\x01\0\x28\x23" + b"-" * 9000 + b"1", "deep"),
    ],
)  # fmt: skip
def test_npz(tmp_path, content, got):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", content)
    with pytest.raises(cylstm.FormatError) as caught:
        npz.read(path)
    assert str(caught.value).startswith(str(path)) and got in str(caught.value)


def test_npz_that_would_inflate(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", array := npy((2**22,), data=bytes(2**24)))
    tracemalloc.start()
    refused(cylstm.FormatError, str(path), str(len(array)), npz.read, path, max_bytes=2**20)
    claimed = bytearray(path.read_bytes())
    at = claimed.rindex(b"PK\x01\x02") + 24
    claimed[at : at + 4] = (2**30 - 1).to_bytes(4, "little")
    path.write_bytes(claimed)
    with pytest.raises(cylstm.FormatError, match=f"less than {2**30 - 1}"):
        npz.read(path)
    assert tracemalloc.get_traced_memory()[1] < LIMIT
    tracemalloc.stop()
    for kind in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(path, "w", kind) as archive:
            archive.writestr("a.npy", npy((4,)))
        refused(cylstm.FormatError, str(path), f"got {kind}", npz.read, path)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("a.npy", "a"):
            archive.writestr(name, npy((4,)))
    path.write_bytes(file.getvalue())
    refused(cylstm.FormatError, str(path), "twice", npz.read, path)


def test_damaged_files():
    """A sample; CYLSTM_CASES says how many, and tests/fuzz/files.py is for more."""
    script = Path(__file__).parent / "fuzz" / "files.py"
    code = f"""
import runpy, sys
sys.argv = ["files.py", "--cases", "{CASES}"]
runpy.run_path({str(script)!r}, run_name="__main__")
"""
    assert " 0 wrong, in " in run_python(code)
