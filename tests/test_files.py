"""Modules and states in files: what comes back, what is proved, what a failure leaves."""

import json
import os
import re
import stat
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from helpers import bits, refused, run_python
from test_config import MODULES

import cylstm
from cylstm import __main__ as command_line
from cylstm.io import certificate, convert, npz, tensors

STORED = Path(__file__).parent / "files"
RNG = np.random.default_rng(3)
X = RNG.normal(size=(5, 3, 4)).astype(np.float32)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.safetensors"


def network(**options):
    return cylstm.LSTM(4, 5, 2, bidirectional=True, rng=0, **options)


def rewritten(path, metadata=(), **arrays):
    """Change metadata and arrays of a file, whose digest is that of what it then holds."""
    with tensors.TensorFile(path) as file:
        found = {name: file.array(name) for name in file.entries} | arrays
        words = file.metadata | {"cylstm.blake2b": tensors.digest_of(found)} | dict(metadata)
    tensors.write(path, found, words)


class Encoder(cylstm.GRU):
    """A class of a user."""


def nested():
    table = cylstm.Embedding(50, 8, rng=0)
    encoder = cylstm.Sequential(
        cylstm.LSTM(8, 6, bidirectional=True, rng=1), cylstm.BatchNorm(12), cylstm.Dropout(0.1)
    )
    net = cylstm.Sequential(
        {
            "table": table,
            "windows": cylstm.Conv1d(8, 8, 3, padding="same", activation=("elu", 0.5), rng=4),
            "more": cylstm.Residual(cylstm.GRU(8, 8, rng=5)),
            "encoder": encoder, "norm": cylstm.LayerNorm(12),
            "own": cylstm.Sequential(Encoder(12, 8, rng=2)), "pool": cylstm.Pool("mean"),
            "scores": cylstm.Linear(8, 50, tied_to=table, rng=3),
        }
    )  # fmt: skip
    net["encoder"].forward(RNG.normal(size=(5, 2, 8)))  # moves running statistics
    return net


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("module", MODULES, ids=repr)
def test_what_comes_back(path, module, mapped):
    module.save(str(path))
    loaded = cylstm.load(path, mapped=mapped)
    assert type(loaded) is type(module)
    assert repr(loaded) == repr(module)
    assert loaded.config == module.config
    assert loaded.flat_params.tobytes() == module.flat_params.tobytes()
    assert loaded.flat_params.flags.aligned
    before = path.read_bytes()
    module.assign(module.flat_params * 2)
    loaded.assign(loaded.flat_params * 2)
    assert loaded.flat_params.tobytes() == module.flat_params.tobytes()
    assert path.read_bytes() == before


@pytest.mark.parametrize("mapped", [False, True])
def test_networks_of_modules(path, mapped):
    net, ids = nested(), RNG.integers(0, 50, (6, 3))
    net.save(path, probe={"x": ids, "lengths": [6, 2, 3]})
    refused(cylstm.FormatError, str(path), "'Encoder': pass", cylstm.load, path)
    loaded = cylstm.load(path, classes=[Encoder], verify=True, mapped=mapped)
    assert repr(loaded) == repr(net) and loaded.config == net.config
    assert list(loaded.params) == list(net.params)
    for name, value in net.params.items():
        assert loaded.params[name].tobytes() == value.tobytes()
    assert loaded["scores"].tied_to is loaded["table"]
    one, other = (certificate.outputs(module, {"x": ids}) for module in (net, loaded))
    assert len(one) == 5 and [a.tobytes() for a in one] == [a.tobytes() for a in other]
    before = path.read_bytes()
    loaded.assign(loaded.flat_params * 2)
    net.assign(net.flat_params * 2)
    assert loaded(ids)[0].tobytes() == net(ids)[0].tobytes()
    assert path.read_bytes() == before


@pytest.mark.parametrize("mapped", [False, True])
def test_outputs_and_gradients_have_the_same_bits(path, mapped):
    module, head = network(), cylstm.Linear(10, 3, rng=1)
    found = []
    module.save(path)
    head.save(path.with_name("head.safetensors"))
    loaded = cylstm.load(path, mapped=mapped)
    loaded_head = cylstm.load(path.with_name("head.safetensors"), mapped=mapped)
    for one, other in ((module, head), (loaded, loaded_head)):
        y, _, tape = one.forward(X)
        out, head_tape = other.forward(y)
        one.backward(tape, other.backward(head_tape, np.cos(out)))
        found.append([out, one.flat_grads.copy(), other.flat_grads.copy()])
    assert [a.tobytes() for a in found[0]] == [a.tobytes() for a in found[1]]


def test_the_package_of_the_format_reads_it(path):
    module = network(dtype="float64")
    module.save(path)
    found = safetensors.numpy.load_file(path)
    assert found.keys() == module.params.keys()
    for name, value in module.params.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)
    with safetensors.safe_open(path, "np") as file:
        words = file.metadata()
    assert words["cylstm.kind"] == "module" and words["cylstm.format"] == "1"
    assert words["cylstm.version"] == cylstm.__version__
    assert json.loads(words["cylstm.config"])["hidden_size"] == 5


@pytest.mark.parametrize("name", tensors.DTYPES)
def test_every_dtype_as_the_package_writes_and_reads_it(path, name):
    dtype = np.dtype(tensors.DTYPES[name])
    values = RNG.integers(0, 2 if name == "BOOL" else 100, (2, 3)).astype(dtype)
    arrays = {"a": values, "none": values[:0], "number": np.array(values[0, 0]), "z": X}
    safetensors.numpy.save_file(arrays, path, {"word": "w"})
    with tensors.TensorFile(path) as file:
        assert file.metadata == {"word": "w"}
        assert file.entries.keys() == arrays.keys()
        for key, value in arrays.items():
            assert file.array(key).dtype == value.dtype
            np.testing.assert_array_equal(file.array(key), value)
    turned = {key: np.asfortranarray(value) for key, value in arrays.items()}
    tensors.write(path, turned | {"big": X.astype(">f4")}, {})
    for key, value in safetensors.numpy.load_file(path).items():
        np.testing.assert_array_equal(value, X if key == "big" else arrays[key])
    with tensors.TensorFile(path) as file:
        assert file.digest() == tensors.digest_of(turned | {"big": X.astype(">f4")})


def test_files_of_version_1():
    module = cylstm.load(STORED / "module-1.safetensors", verify=True)
    options = "num_layers=2, bias='single', bidirectional=True, peepholes=True, forget_bias=1.0"
    assert repr(module) == f"LSTM(3, 4, {options})"
    stored = safetensors.numpy.load_file(STORED / "module-1.safetensors")
    x, lengths = (stored[f"certificate/input/{name}"] for name in ("x", "lengths"))
    y, (h, c) = module(x, lengths=lengths)
    for i, value in enumerate((y, h, c)):
        expected = stored[f"certificate/output/{i}"]
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-6)
        if cylstm.config()["isa"] != "base":  # which has no FMA
            np.testing.assert_array_equal(bits(value), bits(expected))
    state = cylstm.load_state(STORED / "state-1.safetensors")
    assert state["note"] == "two steps" and state["best"] == np.inf
    assert state["history"] == [0.5, 0.25] and state["betas"] == (0.9, 0.999)
    optimizer = cylstm.Adam([cylstm.Linear(3, 2)], lr=0.1)
    optimizer.load_state_dict({k: state[k] for k in optimizer.state_dict()})
    assert optimizer.steps == 2 and optimizer.lr == 0.25


def test_a_network_of_version_1():
    path = STORED / "network-1.safetensors"
    net = cylstm.load(path, verify=True)
    assert list(net) == [net[n] for n in ("table", "encoder", "both", "pool", "scores")]
    assert net["scores"].tied_to is net["table"]
    stored = safetensors.numpy.load_file(path)
    x, lengths = (stored[f"certificate/input/{name}"] for name in ("x", "lengths"))
    for i, value in enumerate(certificate.outputs(net, {"x": x, "lengths": lengths})):
        np.testing.assert_allclose(value, stored[f"certificate/output/{i}"], rtol=0, atol=1e-6)


def test_a_later_version_is_refused(path):
    network().save(path)
    rewritten(path, {"cylstm.format": "2"})
    refused(cylstm.FormatError, str(path), "'2'", cylstm.load, path)


def test_classes_of_users(path):
    Encoder(3, 4, rng=0).save(path)
    refused(cylstm.FormatError, str(path), "'Encoder': pass a class", cylstm.load, path)
    loaded = cylstm.load(path, classes=[Encoder])
    assert type(loaded) is Encoder
    assert type(cylstm.load(path, classes=iter([cylstm.LSTM, Encoder]))) is Encoder
    refused(TypeError, "classes", "'Encoder'", cylstm.load, path, classes=["Encoder"])
    refused(TypeError, "classes", "dict", cylstm.load, path, classes=dict)


def test_a_class_of_the_library_s_name(path):
    own = type("GRU", (cylstm.GRU,), {"__doc__": "A user's."})
    own(3, 4).save(path)
    assert type(cylstm.load(path, classes=[own])) is own
    assert type(cylstm.load(path)) is cylstm.GRU


def test_nothing_is_drawn(path, monkeypatch):
    network().save(path)

    def draw(*arguments):
        raise AssertionError("drawn")

    monkeypatch.setattr("cylstm.layers.structure.draw_uniform", draw)
    cylstm.load(path)
    with pytest.raises(AssertionError, match="drawn"):
        network()


def test_what_cannot_be_saved(path):
    path.write_bytes(b"old")
    embedding = cylstm.Embedding(5, 3)
    refused(ValueError, "tied_to", "Embedding", cylstm.Linear(3, 5, tied_to=embedding).save, path)
    refused(ValueError, "probe", "['y']", network().save, path, probe={"y": X})
    refused(ValueError, "probe", "80000", network().save, path, probe=np.zeros((10, 2000, 4)))
    refused(TypeError, "path", "int", network().save, 3)
    with pytest.raises(ValueError, match=r"^x: expected"):
        network().save(path, probe=X[..., :2])
    assert path.read_bytes() == b"old"


# Certificates


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_certificate(path, dtype):
    module = network(dtype=dtype)
    module.save(path, probe={"x": X, "lengths": [5, 0, 2]})
    stored = safetensors.numpy.load_file(path)
    y, (h, c) = module(X, lengths=[5, 0, 2])
    for i, value in enumerate((y, h, c)):
        np.testing.assert_array_equal(stored[f"certificate/output/{i}"], value)
    assert cylstm.load(path, verify=True).params.keys() == module.params.keys()


def test_changed_data_are_found(path):
    module = network()
    module.save(path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    cylstm.load(path)
    refused(cylstm.FormatError, str(path), "others", cylstm.load, path, verify=True)
    cylstm.Linear(600, 600, rng=0).save(path)  # more than is read at once
    data = bytearray(path.read_bytes())
    cylstm.load(path, verify=True)
    data[-1] ^= 1
    path.write_bytes(data)
    refused(cylstm.FormatError, str(path), "others", cylstm.load, path, verify=True)
    module.save(path, probe=X)
    rewritten(path, bias_hh_l0=module.params["bias_hh_l0"] + np.float32(1e-6))
    cylstm.load(path)
    refused(cylstm.FormatError, str(path), "differences", cylstm.load, path, verify=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("where", ["isa", "numpy", "version"])
def test_elsewhere_results_may_differ_by_rounding(path, where, dtype):
    module = network(dtype=dtype)
    module.save(path, probe=X)
    y, largest = module(X)[0], np.abs(module(X)[0]).max()
    tolerance = certificate.TOLERANCES[y.itemsize]
    other = {"cylstm.certificate": json.dumps(certificate.machine() | {where: "other"})}
    for words, factor, good in (({}, 0, True), ({}, 0.5, False), (other, 0.5, True),
                                (other, 2, False)):  # fmt: skip
        moved = y.copy()
        moved[2, 1, 3] += y.dtype.type(factor * tolerance * largest)
        rewritten(path, words, **{"certificate/output/0": moved})
        if good:
            cylstm.load(path, verify=True)
        else:
            refused(cylstm.FormatError, str(path), "up to", cylstm.load, path, verify=True)


def test_certificates_that_do_not_fit(path):
    network().save(path, probe=X)
    good = path.read_bytes()
    for arrays, words in (
        ({"certificate/input/x": X[..., :3]}, "(5, 3, 3)"),
        ({"certificate/input/lengths": np.array([1.5, 1, 1])}, "float64"),
        ({"certificate/input/other": X}, "'other'"),
        ({"certificate/input/x": np.zeros((70000, 1, 4), np.int8)}, "more"),
        ({"certificate/input/x": X[:3]}, "(3, 3, 10)"),
        ({"certificate/output/0": X}, "(5, 3, 10)"),
        ({"certificate/output/3": X}, "3"),
        ({"certificate/output/0": np.zeros((5, 3, 10), int)}, "float32"),
    ):
        path.write_bytes(good)
        rewritten(path, **arrays)
        refused(cylstm.FormatError, str(path), words, cylstm.load, path, verify=True)


def test_differences():
    nan, inf = np.nan, np.inf
    for one, other, expected in (
        ([1, 2], [1, 2.5], 0.5), ([nan, inf], [nan, inf], 0), ([nan], [1], inf), ([inf], [1], inf),
        ([inf], [-inf], inf), ([], [], 0), ([True], [False], 1),
    ):  # fmt: skip
        a, b = np.array(one), np.array(other)
        assert certificate.difference(a, b) == certificate.difference(b, a) == expected
        assert certificate.close(a, b) == certificate.close(b, a) == (expected == 0)


# Writing


def test_it_is_on_the_disk_before_it_gets_its_name(path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace

    def noted(file):
        done.append("folder" if stat.S_ISDIR(os.fstat(file).st_mode) else "file")
        fsync(file)

    def named(source, target):
        assert Path(source).parent == Path(target).parent
        done.append(Path(source).stat().st_size)
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "replace", named)
    network().save(path)
    assert done == ["file", path.stat().st_size, "folder"]


@pytest.mark.parametrize("name", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file(path, monkeypatch, name, error):
    network().save(path)
    old = path.read_bytes()

    def fails(*arguments):
        raise error("no room")

    with monkeypatch.context() as patch:
        patch.setattr(os, name, fails)
        with pytest.raises(error):
            cylstm.GRU(2, 3).save(path)
        with pytest.raises(error):
            cylstm.save_state(path, {"a": 1})
    assert path.read_bytes() == old
    assert os.listdir(path.parent) == [path.name]


def test_where_it_is_written(path):
    path.write_bytes(b"old")
    path.chmod(0o600)
    link = path.with_name("link")
    link.symlink_to(path)
    mask = os.umask(0o027)
    try:
        network().save(link)
    finally:
        os.umask(mask)
    assert link.is_symlink() and cylstm.load(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert sorted(os.listdir(path.parent)) == ["link", path.name]
    with pytest.raises(FileNotFoundError):
        network().save(path.parent / "none" / "net")


# Memory


def test_loading_takes_the_memory_of_the_parameters(path):
    """At most 1.1 times the file; mapped, the pages are the file's, in forked processes too."""
    code = """
import os, sys
import numpy as np
import cylstm

def peak(reset=False):
    if reset:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    with open("/proc/self/status") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))

def kinds(path):
    with open("/proc/self/smaps") as file:
        text = file.read().partition(path)[2].splitlines()[1:24]
    return {line.split(":")[0]: 1024 * int(line.split()[1]) for line in text if line.endswith("kB")}

path = sys.argv[1]
size = 2**25
cylstm.Linear(2**11, 2**12, bias=False, rng=0).save(path)
cylstm.load(path)
before = peak(reset=True)
linear = cylstm.load(path)
print((peak() - before) / size)

shared = cylstm.load(path, mapped=True)
assert np.array_equal(shared.flat_params, linear.flat_params)
for child in range(2):
    reading, writing = os.pipe()
    if not os.fork():
        shared.flat_params.sum()
        found = kinds(path)
        os.write(writing, str(found["Rss"] / size).encode() + b" " + str(
            (found["Private_Dirty"] + found["Anonymous"]) / size).encode())
        os._exit(0)
    os.wait()
    print(os.read(reading, 100).decode())
"""
    loaded, *children = run_python(code, path).splitlines()
    assert 0.9 < float(loaded) < 1.1
    assert len(children) == 2
    for child in children:
        resident, own = map(float, child.split())
        assert resident > 0.99 and own == 0


# States


def test_an_optimiser_goes_on_with_the_same_bits(path):
    def steps(module, optimizer, count):
        for i in range(count):
            module.flat_grads = np.cos(module.flat_params * (i + 3))
            optimizer.step()

    module = network()
    module.freeze("*_l1")
    optimizer = cylstm.AdamW([module], lr=0.01, weight_decay=0.1)
    steps(module, optimizer, 3)
    cylstm.save_state(path, optimizer.state_dict())
    twin = network()
    twin.assign(module.flat_params)
    twin.freeze("*_l1")
    other = cylstm.AdamW([twin])
    other.load_state_dict(cylstm.load_state(path))
    steps(module, optimizer, 2)
    steps(twin, other, 2)
    assert module.flat_params.tobytes() == twin.flat_params.tobytes()


def test_values_keep_their_types(path):
    state = {
        "none": None, "yes": True, "n": 2**130, "x": 0.1, "inf": np.inf, "-inf": -np.inf,
        "word": "W\ud800\n", "pair": (0.9, (1, "a")), "list": [1, [2.5, (None,)], []], "": 0,
        "array": X, "number": np.array(3), "bits": X > 0, "none of it": X[:0],
    }  # fmt: skip
    cylstm.save_state(path, state | {"nan": np.nan, "np": np.float32(0.1), "flag": np.True_})
    found = cylstm.load_state(path)
    assert np.isnan(found.pop("nan"))
    assert type(found["np"]) is float and found.pop("np") == float(np.float32(0.1))
    assert found.pop("flag") is True
    assert found.keys() == state.keys()
    for name, value in state.items():
        assert type(found[name]) is type(value)
        if isinstance(value, np.ndarray):
            assert found[name].dtype == value.dtype
            np.testing.assert_array_equal(found[name], value)
            assert found[name].flags.writeable
        else:
            assert found[name] == value and repr(found[name]) == repr(value)


def test_what_is_no_state(path):
    deep = []
    for _ in range(9):
        deep = [deep]
    for name, value, got in (
        ("a", {"b": 1}, "{'b': 1}"), ("a", object, "object"), ("a", [1, {2}], "{2}"),
        ("a", np.array(["w"]), "<U1"), ("a", np.array([None]), "object"), ("a", deep, "[]"),
        ("a", np.array([1j]), "complex128"),
    ):  # fmt: skip
        refused(TypeError, name, got, cylstm.save_state, path, {name: value})
    refused(TypeError, "state", "[1]", cylstm.save_state, path, [1])
    refused(TypeError, "state", "1", cylstm.save_state, path, {1: 1})
    refused(ValueError, "names", "", cylstm.save_state, path, {"__metadata__": X})
    refused(ValueError, "header", "", cylstm.save_state, path, {"a": "a" * 2**22})
    assert not path.exists()


def test_the_kind_of_a_file(path):
    network().save(path)
    refused(cylstm.FormatError, str(path), "'module'", cylstm.load_state, path)
    cylstm.save_state(path, {})
    refused(cylstm.FormatError, str(path), "'state'", cylstm.load, path)
    assert cylstm.load_state(path) == {}
    safetensors.numpy.save_file({"a": X}, path)
    refused(cylstm.FormatError, str(path), "without", cylstm.load, path)
    refused(cylstm.FormatError, str(path), "without", cylstm.load_state, path)


# The command line


def run(capsys, *arguments):
    status = command_line.main(list(map(str, arguments)))
    found = capsys.readouterr()
    return status, found.out, found.err


def test_inspect(path, capsys):
    cylstm.LSTM(4, (5, 6), activations=["sigmoid", ("leakyrelu", 0.5), "tanh"]).save(path, probe=X)
    status, out, _ = run(capsys, "inspect", path)
    lines = out.splitlines()
    assert status == 0
    assert lines[0] == f"{path}: safetensors, {path.stat().st_size:,} bytes"
    assert f"cylstm.version: {cylstm.__version__}" in lines
    assert "  class: LSTM" in lines and "  hidden_size: [5, 6]" in lines
    at = lines.index("  activations:")
    assert lines[at + 1] == "    candidate: ['leakyrelu', 0.5]"
    total = sum(p.size for p in cylstm.load(path).params.values())
    assert f"arrays: 8, {total:,} numbers, {4 * total:,} bytes" in lines
    assert any(re.fullmatch(r"  weight_hh_l1 +float32 +576 bytes  24 x 6", line) for line in lines)
    assert "of the certificate: 6," in out and "certificate/input/x" in out


def test_inspect_shows_no_control_characters(path, capsys):
    words = {"a\x1b[2J": "b\n\x07\ud800", "long": "w" * 1000}
    tensors.write(path, {"n\r\u202e": X, "scalar": np.array(1)}, words)
    status, out, _ = run(capsys, "inspect", path)
    assert status == 0 and all(line.isprintable() for line in out.splitlines())
    assert "'a\\x1b[2J': 'b\\n\\x07\\ud800'" in out and "(1,000 characters)" in out
    assert "one number" in out


def test_convert(path, tmp_path, capsys, monkeypatch):
    module = network()
    module.save(path)
    sample, target = tmp_path / "sample.npz", tmp_path / "OTHER.SAFETENSORS"
    np.savez(sample, x=X, lengths=[5, 0, 2])
    assert run(capsys, "convert", path, target) == (0, "", "")
    assert cylstm.load(target).flat_params.tobytes() == module.flat_params.tobytes()
    assert run(capsys, "convert", path, target, "--check", sample) == (
        0, "largest difference: 0\n", ""
    )  # fmt: skip
    stored = safetensors.numpy.load_file(target)
    np.testing.assert_array_equal(stored["certificate/input/x"], X)
    cylstm.load(target, verify=True)
    y, (h, c) = module(X, lengths=[5, 0, 2])
    for factor, status in ((1e-7, 0), (1e-3, 1)):
        monkeypatch.setitem(
            convert.RUNTIMES, ".safetensors",
            lambda source, arguments, by=factor: [y, h, c + np.float32(by)],
        )  # fmt: skip
        found, out, _ = run(capsys, "convert", path, target, "--check", sample)
        assert found == status
        assert float(out.partition(":")[2]) == pytest.approx(factor, rel=0.5)
    monkeypatch.setitem(convert.RUNTIMES, ".safetensors", lambda *arguments: [y])
    status, _, err = run(capsys, "convert", path, target, "--check", sample)
    assert status == 2 and "shapes" in err


def test_wrong_files_on_the_command_line(path, tmp_path, capsys):
    for arguments, words in (
        (["inspect", tmp_path / "none.safetensors"], "No such file"),
        (["inspect", tmp_path / "net.exe"], "FILE: expected a file named *.safetensors"),
        (["convert", tmp_path / "a.exe", path], "IN: expected"),
        (["convert", path, tmp_path / "a.exe"], "OUT: expected"),
    ):
        status, out, err = run(capsys, *arguments)
        assert status == 2 and out == "" and err.startswith("cylstm: ") and words in err
    path.write_bytes(b"no file")
    status, _, err = run(capsys, "inspect", path)
    assert status == 2 and "at least 8 bytes, got 7" in err


def test_no_package_is_needed(path):
    """But NumPy; and only what reads files is imported by nothing else."""
    code = """
import sys
import cylstm
assert "cylstm.io.tensors" not in sys.modules
cylstm.GRU(3, 4).save(sys.argv[1])
cylstm.load(sys.argv[1], verify=True)
print(*{name.partition(".")[0] for name in sys.modules})
"""
    assert not set(run_python(code, path).split()) & {"safetensors", "torch", "onnx", "h5py"}


# .npz files


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save):
    arrays = {
        "a": X, "columns": np.asfortranarray(X[0]), "b": np.array(3), "none": X[:0],
        "big": X.astype(">f8"), "flags": X > 0, "half": X.astype(np.float16),
    }  # fmt: skip
    save(tmp_path / "a.npz", **arrays)
    found = npz.read(tmp_path / "a.npz")
    assert found.keys() == arrays.keys()
    for name, value in arrays.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)
    with pytest.raises(cylstm.FormatError, match="at most 100 bytes"):
        npz.read(tmp_path / "a.npz", max_bytes=100)


def test_npz_that_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    for arrays, words in (
        ({"a": np.array([None])}, "dtype object"),
        ({"a": np.array(["w"])}, "dtype <U1"),
        ({"a": np.zeros(2, "i4,i4")}, "dtype"),
        ({"a": np.zeros(2, complex)}, "complex"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(cylstm.FormatError, match=words):
            npz.read(path)
    path.write_bytes(b"PK")
    with pytest.raises(cylstm.FormatError, match="zip"):
        npz.read(path)
    with pytest.raises(FileNotFoundError):
        npz.read(tmp_path / "none.npz")
