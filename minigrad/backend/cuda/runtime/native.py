"""CUDA C to machine code, by the NVRTC that CuPy brings, and kept on disk.

CuPy's own compilation would do the same with subnormal float32 flushed to zero, which ours are not.
"""

from __future__ import annotations

import hashlib
from typing import Any

from minigrad.backend.cache_directory import private_directory, write
from minigrad.backend.cuda.runtime.jit import Kernel

OPTIONS = ("--std=c++17",)


def load(kernel: Kernel, capability: str) -> Any:
    """The kernel as a `cupy.cuda.Function`, for the current device of this compute capability."""
    nvrtc = _nvrtc()
    real = f"sm_{capability}"
    supported = [str(n) for n in nvrtc.getSupportedArchs()]
    # A card newer than the compiler takes PTX for the newest that this knows.
    target = real if capability in supported else f"compute_{max(supported, key=int)}"
    parts = [kernel.text, target, str(nvrtc.getVersion()), *OPTIONS]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    folder = private_directory("cuda")
    path = None if folder is None else folder / f"{kernel.name}_{digest}.bin"
    if path is not None and path.exists():
        try:
            return _function(path.read_bytes())
        except Exception:  # a damaged file counts as missing
            path.unlink(missing_ok=True)
    code = _compiled(kernel, target)
    if path is not None:
        write(path, code)
    return _function(code)


def _nvrtc() -> Any:
    from cupy.cuda import nvrtc

    return nvrtc


def _function(code: bytes) -> Any:
    import cupy

    # From memory, not from the file: CuPy leaves out the last byte of what NVRTC gives, a zero,
    # which is there again behind Python's bytes.
    module = cupy.cuda.Module()
    module.load(code)
    return module.get_function("kernel")


def _compiled(kernel: Kernel, target: str) -> bytes:
    nvrtc = _nvrtc()
    program = nvrtc.createProgram(kernel.text, f"{kernel.name}.cu", (), ())
    try:
        nvrtc.compileProgram(program, (f"--gpu-architecture={target}", *OPTIONS))
        return (nvrtc.getCUBIN if target.startswith("sm_") else nvrtc.getPTX)(program)
    except nvrtc.NVRTCError as error:
        log = nvrtc.getProgramLog(program)
        raise RuntimeError(f"NVRTC does not compile {kernel}: {error}\n{log}") from error
    finally:
        nvrtc.destroyProgram(program)
