"""The exception and warning classes that minigrad adds to Python's own."""

__all__ = [
    "AnomalyError",
    "CacheWarning",
    "CaptureError",
    "DataError",
    "DeviceError",
    "GradientError",
]


class GradientError(RuntimeError):
    """No derivative exists: the op has no rule, or no path leads to the input."""


class DeviceError(RuntimeError):
    """A device is unknown, missing on this machine, or unable to do what was asked."""


class AnomalyError(ArithmeticError):
    """`detect_anomaly` found the op that made the first NaN or Inf."""


class DataError(ValueError):
    """A data file or checkpoint is truncated, corrupted or not what it claims to be."""


class CacheWarning(UserWarning):
    """Compiled kernels cannot be kept on disk; they are compiled again in every process."""


class CaptureError(RuntimeError):
    """A value was asked for while `compile` was recording a step."""


class CaptureWarning(UserWarning):
    """A Python value that changes again and again makes `compile` record again and again."""
