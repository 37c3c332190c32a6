"""The Array API's functions on Tensors. Each composes primitives; none computes anything."""

from minigrad.functions import (
    comparison,
    control,
    einstein,
    elementwise,
    gathering,
    linalg,
    manipulation,
    statistical,
)
from minigrad.functions.comparison import *
from minigrad.functions.control import *
from minigrad.functions.einstein import *
from minigrad.functions.elementwise import *
from minigrad.functions.gathering import *
from minigrad.functions.linalg import *
from minigrad.functions.manipulation import *
from minigrad.functions.statistical import *

__all__: list[str] = []
__all__ += comparison.__all__
__all__ += control.__all__
__all__ += einstein.__all__
__all__ += elementwise.__all__
__all__ += gathering.__all__
__all__ += linalg.__all__
__all__ += manipulation.__all__
__all__ += statistical.__all__
