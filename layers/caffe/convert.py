"""Between Caffe's BatchNorm with Scale and `layers.BatchNorm2d`, which computes the same."""

from __future__ import annotations

import layers.norm
from layers.caffe.norm import BatchNorm
from layers.caffe.scale import Scale

__all__ = ["from_batch_norm", "to_batch_norm"]


def to_batch_norm(norm: BatchNorm, scale: Scale | None = None) -> layers.norm.BatchNorm2d:
    """One layer with the statistics of `norm` and the factor and offset of `scale`.

    Its momentum is 1 - moving_average_fraction; its running statistics are Caffe's sums over the
    scale factor. From there on they are averages in which the past counts as that of many batches,
    while Caffe's still know how many there were.
    """
    channels = norm.mean_sum.size
    layer = layers.norm.BatchNorm2d(
        channels, norm.eps, 1 - norm.moving_average_fraction, affine=scale is not None
    )
    mean, var = norm.global_statistics()
    state = {"running_mean": mean, "running_var": var}
    if scale is not None:
        if scale.weight is None or scale.weight.shape != (channels,):
            raise ValueError(
                f"to_batch_norm: expected a Scale with one learned factor for each of {channels} "
                f"channels, got {scale!r}."
            )
        state["weight"] = scale.weight
        if scale.bias is not None:
            state["bias"] = scale.bias
    layer.to(mean.device, mean.dtype).load_state_dict(state, strict=False)
    return layer


def from_batch_norm(layer: layers.norm.BatchNorm2d) -> tuple[BatchNorm, Scale]:
    """Caffe's pair of layers with the parameters and statistics of one; scale_factor is 1.

    Raises: ValueError if it has no running statistics, or averages them without a momentum.
    """
    mean, var = layer.running_mean, layer.running_var
    if mean is None or var is None or layer.momentum is None:
        raise ValueError(
            f"from_batch_norm: expected running statistics with a momentum, got {layer!r}."
        )
    norm = BatchNorm(layer.num_features, None, 1 - layer.momentum, layer.eps)
    scale = Scale(layer.num_features, bias_term=True)
    for part in (norm, scale):
        part.to(mean.device, mean.dtype)
    norm.load_state_dict({"mean_sum": mean, "var_sum": var, "scale_factor": [1.0]})
    if layer.weight is not None and layer.bias is not None:
        scale.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    return norm, scale
