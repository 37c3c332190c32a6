"""Identities that steer differentiation and the algebra. None of them costs a kernel.

barrier: the algebra does not look through it (`moments` centres on a sample behind one: the
backward, rewritten, stays accurate at large means).
stop_gradient: no derivative passes.
variable: a point at which a derivative is taken, distinct from the value it stands for, so that
nested derivatives do not confuse their perturbations.
checkpoint: the value of its first input; its gradient recomputes that value from the others.
"""

from __future__ import annotations

import itertools

from minigrad.graph import Node, Primitive, build, register, topological

__all__ = ["barrier", "checkpoint", "stop_gradient", "variable"]


def _identity(x: Node, *rest: Node, **attrs):
    return x.shape, x.dtype


stop_gradient_op = register(Primitive("stop_gradient", "identity", _identity))
barrier = register(Primitive("barrier", "identity", _identity, lambda g, y, x, **_: (g,)))
variable_op = register(Primitive("variable", "identity", _identity, lambda g, y, x, **_: (g,)))
_tokens = itertools.count()


def stop_gradient(x: Node) -> Node:
    """x, as a constant of differentiation."""
    if not x.needs_grad:
        return x
    return stop_gradient_op(x)


def variable(x: Node) -> Node:
    """A fresh point of differentiation with the value of x."""
    node = variable_op(x, token=next(_tokens))
    node.needs_grad = node.dtype.is_floating
    return node


def substitute(root: Node, replacements: dict[Node, Node]) -> Node:
    """`root` rebuilt with some of the nodes it depends on replaced."""
    new = dict(replacements)
    for node in topological([root], stop=lambda n: n in replacements):
        if node not in new:
            inputs = tuple(new[n] for n in node.inputs)
            new[node] = build(node.op, inputs, node.attrs) if inputs != node.inputs else node
    return new[root]


def _checkpoint_vjp(g: Node, y: Node, value: Node, *sources: Node) -> tuple[Node | None, ...]:
    from minigrad.autodiff import gradients

    # A variable has its own identity, so the copy is not merged with the forward's nodes.
    copies = [variable(s) for s in sources]
    again = substitute(value, dict(zip(sources, copies, strict=True)))
    return None, *gradients([again], copies, [g], unreached="none")


checkpoint_op = register(Primitive("checkpoint", "identity", _identity, _checkpoint_vjp))


def checkpoint(value: Node, arguments: list[Node]) -> Node:
    """`value`, whose gradient recomputes it from `arguments` and what it closes over.

    Anything a Tensor still names could be differentiated by, so it is a source like an argument.
    """
    stop = set(arguments)

    def is_source(n: Node) -> bool:
        if n in stop or not n.inputs or n.op is variable_op:
            return True
        return n.handles > 0 and n is not value

    sources = [n for n in topological([value], stop=is_source) if n.needs_grad and is_source(n)]
    return checkpoint_op(value, *sources) if sources else value
