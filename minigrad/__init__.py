"""minigrad: a NumPy-free autodiff mini-framework.

Every module says in its `__all__` which of its names are public; this one gathers them. Backends
are imported when their device is first used: this module loads neither Numba nor CuPy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from minigrad import creation, device, dtype, errors, functions
from minigrad.config import config as _config
from minigrad.creation import *
from minigrad.device import *
from minigrad.dtype import *
from minigrad.dtype import bool_ as bool
from minigrad.errors import *
from minigrad.functions import *
from minigrad.tensor import Tensor

# Imported when first asked for, so that `import minigrad` stays fast.
_LAZY = {
    name: module
    for module, names in {
        "minigrad.differentiate": [
            "grad", "gradients", "hessian", "hvp", "jacobian", "jvp", "value_and_grad", "vjp",
        ],
        "minigrad.execution.capture": ["compile"],
        "minigrad.execution.compute": ["evaluate", "synchronize"],
        "minigrad.execution.modes": [
            "detect_anomaly", "eager", "get_float32_matmul_precision", "no_grad", "rewrites",
            "set_float32_matmul_precision",
        ],
        "minigrad.interop.safetensors": ["load", "save"],
        "minigrad.testing": ["gradcheck"],
        "minigrad": ["data", "nn", "optim", "random", "study"],
    }.items()
    for name in names
}  # fmt: skip

__all__ = ["Tensor", "bool", "data", "nn", "optim", "random"]
__all__ += creation.__all__
__all__ += device.__all__
__all__ += dtype.__all__
__all__ += errors.__all__
__all__ += functions.__all__

if TYPE_CHECKING:
    from minigrad import data, differentiate, nn, optim, random, testing
    from minigrad.differentiate import *
    from minigrad.execution import capture, compute, modes
    from minigrad.execution.capture import *
    from minigrad.execution.compute import *
    from minigrad.execution.modes import *
    from minigrad.interop import safetensors
    from minigrad.interop.safetensors import *
    from minigrad.testing import *

    __all__ += differentiate.__all__
    __all__ += capture.__all__
    __all__ += compute.__all__
    __all__ += modes.__all__
    __all__ += safetensors.__all__
    __all__ += testing.__all__
else:
    __all__ += [name for name, module in _LAZY.items() if module != "minigrad"]


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'minigrad' has no attribute {name!r}")
    if module == "minigrad":  # the name of a module
        return import_module(f"minigrad.{name}")
    value = globals()[name] = getattr(import_module(module), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


if _config.check:
    import_module("minigrad.execution.modes")  # MINIGRAD_CHECK=1 is a mode of every op from now on
