"""Checkpoints: what goes out comes back, and no failure costs the older file."""

import json
import os
import struct
import subprocess
import sys
from math import prod
from typing import cast

import pytest

import minigrad as mg
from minigrad.errors import DataError
from minigrad.interop.safetensors import load_metadata, replacing

State = dict[str, mg.Tensor]

VALUES = {
    "bool": [True, False, True],
    "uint8": [0, 128, 255],
    "int32": [-(2**31), 0, 2**31 - 1],
    "int64": [-(2**63), 1, 2**63 - 1],
    "float16": [2.0**-24, -65504.0, float("inf")],
    "bfloat16": [2.0**-133, -(2.0**127), float("-inf")],
    "float32": [0.5, -0.0, float("inf")],
    "float64": [0.1, 1e300, -1e-300],
}


def example():
    return {f"layer.{name}": mg.asarray(v, dtype=name) for name, v in VALUES.items()}


def same(a, b):
    return (a.shape, a.dtype, a.tolist()) == (b.shape, b.dtype, b.tolist())


def test_round_trip(tmp_path):
    state = example()
    state["scalar"] = mg.asarray(3.5)
    state["matrix"] = mg.asarray([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    state["transposed"] = state["matrix"].T
    state["computed"] = state["matrix"] * 2
    state["empty"] = mg.zeros((0, 3))
    state["no halves"] = mg.tensor([], dtype="bfloat16")
    path = tmp_path / "model.safetensors"
    mg.save(path, state)
    loaded = mg.load(str(path))
    assert set(loaded) == set(state)
    for key, tensor in state.items():
        assert same(loaded[key], tensor), key
    assert load_metadata(path) == {}
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_empty_state(tmp_path):
    mg.save(tmp_path / "x", {})
    assert mg.load(tmp_path / "x") == {}


def test_metadata(tmp_path):
    path = tmp_path / "x"
    mg.save(path, {"w": mg.zeros((2,))}, metadata={"epoch": "3", "note": "käse"})
    assert load_metadata(path) == {"epoch": "3", "note": "käse"}
    assert mg.load(path)["w"].shape == (2,)
    with pytest.raises(TypeError, match="metadata to map strings to strings, got 'epoch': 3"):
        mg.save(path, {}, metadata=cast("dict[str, str]", {"epoch": 3}))


def test_the_format_is_the_published_one(tmp_path):
    """Read back with nothing but json and struct, as the format's description says."""
    path = tmp_path / "x"
    mg.save(path, example())
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    codes = {"bool": "BOOL", "uint8": "U8", "int32": "I32", "int64": "I64"}
    codes |= {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}
    for name, values in VALUES.items():
        entry = header[f"layer.{name}"]
        begin, end = entry["data_offsets"]
        data = content[8 + length :][begin:end]
        assert (entry["dtype"], entry["shape"]) == (codes[name], [3])
        if name == "bfloat16":  # a float32 without its lower half
            name, data = "float32", b"".join(b"\0\0" + data[i : i + 2] for i in range(0, 6, 2))
        letter = mg.dtype.BY_NAME[name].format
        assert list(struct.unpack(f"<{prod(entry['shape'])}{letter}", data)) == values


def test_exchange_with_pytorch(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    mg.save(ours, example())
    save_file(load_file(ours), theirs)
    loaded = mg.load(theirs)
    assert all(same(loaded[key], tensor) for key, tensor in example().items())
    save_file({"h": torch.zeros(2, dtype=torch.int16)}, theirs)
    with pytest.raises(DataError, match=r"theirs: expected tensor 'h' to be one of .*F32.*got I16"):
        mg.load(theirs)


def test_damaged_files(tmp_path):
    path = tmp_path / "model"
    mg.save(path, example())
    whole = path.read_bytes()
    for content in (b"", whole[:5], whole[:40], whole[:-1], whole + b"x", b"\xff" * 99, b"{}" * 9):
        path.write_bytes(content)
        with pytest.raises(DataError, match="model: expected a whole safetensors file") as caught:
            mg.load(path)
        assert f"{len(content)} bytes" in str(caught.value)
    for content in (b"", whole[:40], b"\xff" * 99, b"\x02" + b"\0" * 7 + b"[]"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="model: expected a safetensors header"):
            load_metadata(path)
    with pytest.raises(FileNotFoundError):
        mg.load(tmp_path / "missing")


def test_refused_states_leave_the_old_file(tmp_path):
    path = tmp_path / "x"
    mg.save(path, example())
    before = path.read_bytes()
    with pytest.raises(TypeError, match=r"state\['lr'\] to be a Tensor, got float"):
        mg.save(path, cast("State", {"w": mg.zeros((2,)), "lr": 0.1}))
    with pytest.raises(TypeError, match="names to be strings, got 3"):
        mg.save(path, cast("State", {3: mg.zeros((2,))}))
    assert path.read_bytes() == before


class Interrupted(BaseException):
    """Stands for Ctrl-C."""


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), Interrupted()])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failures_leave_the_old_file(tmp_path, monkeypatch, step, error):
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def fail(*_):
        raise error

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(error)), replacing(path) as file:
        file.write(b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("x", b"old")]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_an_os_error(tmp_path):
    code = (
        "import os, sys, resource\n"
        "from minigrad.interop.safetensors import replacing\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "with replacing(sys.argv[1]) as file: file.write(bytes(1_000_000))\n"
    )
    path = tmp_path / "x"
    path.write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert "OSError" in done.stderr
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("x", b"old")]


def test_replacing_paths(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    with replacing(link) as file:
        file.write(b"new")
        assert target.read_bytes() == b"old"  # not before the end
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    with (
        pytest.raises(FileNotFoundError, match="expected its folder to exist"),
        replacing(tmp_path / "no" / "x"),
    ):
        pass
    with pytest.raises(IsADirectoryError), replacing(tmp_path):
        pass
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert target.stat().st_mode == plain.stat().st_mode  # follows the umask


def test_old_tensors_outlive_a_new_save(tmp_path):
    """Loaded tensors do not depend on the file any more."""
    path = tmp_path / "x"
    mg.save(path, {"w": mg.asarray([1.0, 2.0])})
    loaded = mg.load(path)
    mg.save(path, {"w": mg.asarray([3.0, 4.0])})
    assert loaded["w"].tolist() == [1.0, 2.0]
