"""Gradients of tensors: with respect to others, and into the `.grad` of leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from minigrad import autodiff, ops
from minigrad.context import context
from minigrad.differentiate.call import cotangent_of, described, floating
from minigrad.errors import GradientError
from minigrad.graph import Node, topological
from minigrad.tensor_base import TensorBase, wrap

if TYPE_CHECKING:
    from minigrad.tensor import Tensor

__all__ = ["gradients"]


def gradients(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Tensor | Sequence[Tensor | None] | None = None,
    create_graph: bool = False,
) -> Any:
    """The gradients of `outputs`, weighted by `grad_outputs` and summed, with respect to `inputs`.

    Args:
        outputs: one tensor or several, floating point.
        inputs: tensors that the outputs were computed from; leaves or intermediate results.
        grad_outputs: the cotangent of each output, of its shape and dtype; None means 1, for which
            the output must have one element.
        create_graph: True leaves the results differentiable; False makes them constants.

    Returns:
        One gradient if `inputs` is a Tensor, else a list of them; each like its input.

    Raises:
        GradientError: no differentiable path leads from an output to one of the inputs.
        TypeError: an input, output or cotangent has a dtype that cannot be differentiated.
        ValueError: a cotangent is missing or its shape is not that of its output.
    """
    sources = [inputs] if isinstance(inputs, TensorBase) else list(inputs)
    targets = [outputs] if isinstance(outputs, TensorBase) else list(outputs)
    if grad_outputs is None or isinstance(grad_outputs, TensorBase):
        weights: list[Tensor | None] = [grad_outputs] * len(targets)
    else:
        weights = list(grad_outputs)
    if len(weights) != len(targets):
        raise ValueError(
            f"gradients: expected one of grad_outputs for each of {len(targets)} outputs, "
            f"got {len(weights)}."
        )
    for x in sources:
        floating("gradients", "inputs to be", x)
        if not x.node.needs_grad:
            raise GradientError(
                f"gradients: expected inputs with requires_grad=True, got {described(x)} without. "
                "Set it before the outputs are computed."
            )
    nodes = [y.node for y in targets]
    cotangents = [cotangent_of("gradients", y, c) for y, c in zip(targets, weights, strict=True)]
    found = autodiff.gradients(nodes, [x.node for x in sources], cotangents)
    results = [wrap(g if create_graph else ops.stop_gradient(g)) for g in found if g is not None]
    return results[0] if isinstance(inputs, TensorBase) else results


def backward(tensor: Tensor, gradient: Tensor | None = None, create_graph: bool = False) -> None:
    """Add the gradient of `tensor` to `.grad` of every leaf with `requires_grad` it depends on.

    Args:
        tensor: one element, unless `gradient` is given.
        gradient: the cotangent, of the shape and dtype of `tensor`; None means 1.
        create_graph: True leaves the gradients differentiable.
    """
    root = tensor.node
    cotangent = cotangent_of("backward", tensor, gradient)
    if not root.needs_grad:
        raise GradientError(
            f"backward: expected a tensor that depends on one with requires_grad=True, got "
            f"{described(tensor)} that does not. It may be detached or computed under no_grad."
        )
    owned = [(n, n.owner()) for n in _sources([root]) if n.owner is not None]
    found = autodiff.gradients([root], [n for n, _ in owned], [cotangent], unreached="none")
    for (_, leaf), g in zip(owned, found, strict=True):
        if g is None or leaf is None:  # no path to it, or nobody holds it any more
            continue
        if not create_graph:
            g = ops.stop_gradient(g)
        context.observer.gradient_grows(leaf)
        leaf.grad = wrap(g if leaf.grad is None else leaf.grad.node + g)


def _sources(roots: Sequence[Node]) -> list[Node]:
    """The points of differentiation that the roots depend on: where `needs_grad` begins."""
    walked = topological(roots, stop=lambda n: not n.needs_grad)
    return [n for n in walked if n.needs_grad and not any(i.needs_grad for i in n.inputs)]
