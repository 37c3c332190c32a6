"""Compiles CUDA sources by NVRTC, which needs no GPU, and remembers on disk which it has."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import tempfile
from functools import cache
from pathlib import Path

from minigrad.backend.cache_directory import private_directory
from minigrad.backend.cuda.runtime.jit import Kernel
from minigrad.backend.cuda.runtime.native import OPTIONS
from minigrad.config import config

# Where everything runs on the GPU's stand-in, machine code; else PTX, which takes half as long.
ARCHITECTURE = b"sm_90" if config.device == "cuda" else b"compute_90"


@cache
def library() -> ctypes.CDLL | None:
    """NVRTC from NVIDIA's wheels, or from the toolkit; None where there is none."""
    found = importlib.util.find_spec("nvidia")
    places = [Path(p) for p in (found.submodule_search_locations if found else ()) or ()]
    names = [str(f) for p in places for f in sorted(p.glob("*/lib/libnvrtc.so.*"))]
    for name in [*names, "libnvrtc.so", "/usr/local/cuda/lib64/libnvrtc.so"]:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def compiled(text: str) -> str:
    """Compile for ARCHITECTURE; gives the log. Raises AssertionError where it does not compile."""
    return _compiled(text, "ProgramLog")


def ptx(source: str) -> str:
    """A kernel's source as PTX."""
    return _compiled(Kernel("kernel", source).text, "PTX")


def _compiled(text: str, wanted: str) -> str:
    nvrtc = library()
    assert nvrtc is not None
    program = ctypes.c_void_p()
    source = text.encode()
    assert not nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"kernel.cu", 0, None, None)
    given = [b"--gpu-architecture=" + ARCHITECTURE, *(option.encode() for option in OPTIONS)]
    options = (ctypes.c_char_p * len(given))(*given)

    def got(what: str) -> str:
        size = ctypes.c_size_t()
        getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        found = ctypes.create_string_buffer(size.value)
        getattr(nvrtc, f"nvrtcGet{what}")(program, found)
        return found.value.decode()

    try:
        failed = nvrtc.nvrtcCompileProgram(program, len(given), options)
        message = got("ProgramLog")
        assert not failed, f"NVRTC refuses a generated kernel:\n{message}\n{text[-4000:]}"
        return message if wanted == "ProgramLog" else got(wanted)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


@cache
def _done() -> Path:
    return private_directory("nvrtc") or Path(tempfile.mkdtemp())


def check(kernel: Kernel) -> None:
    """Compile a kernel's source, unless it has been compiled before or there is no NVRTC."""
    if library() is None:
        return
    text = ARCHITECTURE.decode() + kernel.text
    mark = _done() / hashlib.sha256(text.encode()).hexdigest()[:24]
    if not mark.exists():
        compiled(kernel.text)
        mark.touch()
