"""Typed loads and stores at raw addresses, and calls through an address, for generated kernels.

A kernel sees memory only as `intp` addresses, so no array object, NumPy or reference count is ever
involved. A load or store takes a byte address and an index in elements: LLVM vectorizes a loop over
the *index* of a loop-invariant address as it does a loop over an array (it cannot follow an address
that is itself computed in the loop).
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from minigrad.backend.cpu.vector.builder import call_llvm

_NUMBA = {
    "bool": types.boolean,
    "uint8": types.uint8,
    "int32": types.int32,
    "int64": types.int64,
    "float32": types.float32,
    "float64": types.float64,
}
_BYTE = ir.IntType(8)

# Loop nests tell LLVM which accesses cannot overlap, since it does not vectorize a loop that needs
# more than a few run-time overlap checks. Every read of an input is in one scope, every output or
# scratch array in a scope of its own.
SCOPES = 16
_INPUTS, *_ARRAYS = ("minigrad inputs", *(f"minigrad array {k}" for k in range(SCOPES)))


def _mark(builder, instruction, scope: str | None) -> None:
    """Say that an access belongs to an alias scope, and so overlaps none of another's."""
    if scope is None:
        return
    module = builder.module
    domain = module.add_metadata(["minigrad"])
    scopes = {name: module.add_metadata([name, domain]) for name in (_INPUTS, *_ARRAYS)}
    others = [other for name, other in scopes.items() if name != scope]
    instruction.set_metadata("alias.scope", module.add_metadata([scopes[scope]]))
    instruction.set_metadata("noalias", module.add_metadata(others))


def _accesses(name: str, scope: str | None = None):
    """A load and a store of dtype `name`, perhaps in an alias scope.

    A bool is one byte in memory: True is stored as 1, and any nonzero byte reads as True.
    """
    numba_type = _NUMBA[name]
    is_bool = name == "bool"
    align = 1 if is_bool else numba_type.bitwidth // 8

    def pointer_to(context, builder, address, index):
        llvm = _BYTE if is_bool else context.get_value_type(numba_type)
        return builder.gep(builder.inttoptr(address, llvm.as_pointer()), [index])

    @intrinsic
    def load(typingctx, address, index):
        def codegen(context, builder, signature, args):
            value = builder.load(pointer_to(context, builder, *args), align=align)
            _mark(builder, value, scope)
            if is_bool:
                value = builder.icmp_unsigned("!=", value, ir.Constant(_BYTE, 0))
            return value

        return numba_type(types.intp, types.intp), codegen

    @intrinsic
    def store(typingctx, address, index, value):
        def codegen(context, builder, signature, args):
            pointer = pointer_to(context, builder, args[0], args[1])
            stored = builder.zext(args[2], _BYTE) if is_bool else args[2]
            _mark(builder, builder.store(stored, pointer, align=align), scope)
            return context.get_dummy_value()

        return types.void(types.intp, types.intp, numba_type), codegen

    return load, store


for _name in _NUMBA:
    globals()[f"load_{_name}"], globals()[f"store_{_name}"] = _accesses(_name)
    globals()[f"read_{_name}"], _ = _accesses(_name, _INPUTS)
    for _k, _scope in enumerate(_ARRAYS):
        _load, _store = _accesses(_name, _scope)
        globals()[f"reread_{_name}_{_k}"], globals()[f"write_{_name}_{_k}"] = _load, _store


@intrinsic
def call_kernel(typingctx, address, table, begin, end):
    """Call the kernel at `address`.

    Passing the address costs 1.5 us a parallel call; unboxing a first-class function costs 27.
    """
    signature = types.void(types.intp, types.intp, types.intp, types.intp)

    def codegen(context, builder, signature, args):
        word = ir.IntType(64)
        kernel_type = ir.FunctionType(ir.VoidType(), [word, word, word])
        builder.call(builder.inttoptr(args[0], kernel_type.as_pointer()), list(args[1:]))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def select(typingctx, condition, a, b):
    """`a if condition else b` without a branch; both are evaluated."""
    signature = a(types.boolean, a, a)

    def codegen(context, builder, signature, args):
        return builder.select(*args)

    return signature, codegen


def _make_unary(llvm_name: str):
    @intrinsic
    def function(typingctx, x):
        def codegen(context, builder, signature, args):
            kind = args[0].type
            suffix = "f32" if isinstance(kind, ir.FloatType) else "f64"
            return call_llvm(builder, f"{llvm_name}.{suffix}", kind, args)

        return x(x), codegen

    return function


# As LLVM's own, these vectorize; Numba's math.floor gives an integer, which would overflow.
floor_of, sqrt_of, fabs_of = _make_unary("floor"), _make_unary("sqrt"), _make_unary("fabs")


def _make_extremum(comparison: str, llvm_name: str):
    @intrinsic
    def function(typingctx, a, b):
        """The larger (smaller) of two; NaN if either is NaN."""

        def codegen(context, builder, signature, args):
            x, y = args
            if isinstance(a, types.Float):  # LLVM vectorizes a loop that reduces by this function
                return call_llvm(builder, f"{llvm_name}.f{a.bitwidth}", x.type, args)
            compare = builder.icmp_signed if a.signed else builder.icmp_unsigned
            return builder.select(compare(comparison, x, y), x, y)

        return a(a, a), codegen

    return function


take_maximum = _make_extremum(">", "maximum")
take_minimum = _make_extremum("<", "minimum")


def _make_prefetch(writes: bool):
    @intrinsic
    def prefetch(typingctx, address):
        """Ask for the cache line at `address`, which may lie outside of any memory."""
        signature = types.void(types.intp)

        def codegen(context, builder, signature, args):
            line = builder.inttoptr(args[0], _BYTE.as_pointer())
            flags = [ir.IntType(32)(n) for n in (int(writes), 3, 1)]  # keep it, it is data
            call_llvm(builder, "prefetch.p0", ir.VoidType(), [line, *flags])
            return context.get_dummy_value()

        return signature, codegen

    return prefetch


prefetch_to_read, prefetch_to_write = _make_prefetch(False), _make_prefetch(True)


@intrinsic
def accumulate(typingctx, total, value):
    """total + value, in any order: what lets a reduction vectorize."""
    signature = total(total, total)

    def codegen(context, builder, signature, args):
        return builder.fadd(*args, flags=("reassoc", "contract", "nsz"))

    return signature, codegen


@intrinsic
def times_plus(typingctx, x, scale, shift):
    """In float64 x * scale + shift, each rounded: a fused operation would give other bits."""
    signature = types.float64(types.float64, types.float64, types.float64)

    def codegen(context, builder, signature, args):
        # A flag that changes nothing keeps Numba from giving them all of ours: see exact_float.
        product = builder.fmul(args[0], args[1], flags=("arcp",))
        return builder.fadd(product, args[2], flags=("arcp",))

    return signature, codegen
