"""The closed set of primitives: every value, derivative and update is built of these."""

from minigrad.graph import const, iota, like, zeros_like
from minigrad.ops import contract, control, elementwise, gather, reduce, view, window
from minigrad.ops.contract import *
from minigrad.ops.control import *
from minigrad.ops.elementwise import *
from minigrad.ops.gather import *
from minigrad.ops.reduce import *
from minigrad.ops.view import *
from minigrad.ops.window import *

__all__ = ["const", "iota", "like", "zeros_like"]
__all__ += contract.__all__
__all__ += control.__all__
__all__ += elementwise.__all__
__all__ += gather.__all__
__all__ += reduce.__all__
__all__ += view.__all__
__all__ += window.__all__
