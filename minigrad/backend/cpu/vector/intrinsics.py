"""Typed loads and stores at raw addresses, and calls through an address, for generated kernels.

A kernel sees memory only as `intp` addresses, so no array object, NumPy or reference count is ever
involved. A load or store takes a byte address and an index in elements: LLVM vectorizes a loop over
the *index* of a loop-invariant address as it does a loop over an array (it cannot follow an address
that is itself computed in the loop).
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_NUMBA = {
    "uint8": types.uint8,
    "int32": types.int32,
    "int64": types.int64,
    "float32": types.float32,
    "float64": types.float64,
}


def _make_load(name: str):
    numba_type = _NUMBA[name]

    @intrinsic
    def load(typingctx, address, index):
        signature = numba_type(types.intp, types.intp)

        def codegen(context, builder, signature, args):
            llvm = context.get_value_type(numba_type)
            pointer = builder.gep(builder.inttoptr(args[0], llvm.as_pointer()), [args[1]])
            return builder.load(pointer, align=numba_type.bitwidth // 8)

        return signature, codegen

    return load


def _make_store(name: str):
    numba_type = _NUMBA[name]

    @intrinsic
    def store(typingctx, address, index, value):
        signature = types.void(types.intp, types.intp, numba_type)

        def codegen(context, builder, signature, args):
            base = builder.inttoptr(args[0], args[2].type.as_pointer())
            pointer = builder.gep(base, [args[1]])
            builder.store(args[2], pointer, align=numba_type.bitwidth // 8)
            return context.get_dummy_value()

        return signature, codegen

    return store


load_uint8, store_uint8 = _make_load("uint8"), _make_store("uint8")
load_int32, store_int32 = _make_load("int32"), _make_store("int32")
load_int64, store_int64 = _make_load("int64"), _make_store("int64")
load_float32, store_float32 = _make_load("float32"), _make_store("float32")
load_float64, store_float64 = _make_load("float64"), _make_store("float64")


@intrinsic
def load_bool(typingctx, address, index):
    """A bool is one byte in memory; any nonzero byte reads as True."""
    signature = types.boolean(types.intp, types.intp)

    def codegen(context, builder, signature, args):
        byte = ir.IntType(8)
        pointer = builder.gep(builder.inttoptr(args[0], byte.as_pointer()), [args[1]])
        value = builder.load(pointer, align=1)
        return builder.icmp_unsigned("!=", value, ir.Constant(byte, 0))

    return signature, codegen


@intrinsic
def store_bool(typingctx, address, index, value):
    """Store True as the byte 1 and False as 0."""
    signature = types.void(types.intp, types.intp, types.boolean)

    def codegen(context, builder, signature, args):
        byte = ir.IntType(8)
        pointer = builder.gep(builder.inttoptr(args[0], byte.as_pointer()), [args[1]])
        builder.store(builder.zext(args[2], byte), pointer, align=1)
        return context.get_dummy_value()

    return signature, codegen


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


# Loop nests tell LLVM which accesses cannot overlap, since it does not vectorize a loop that needs
# more than a few run-time overlap checks. Every read of an input is in one scope, every output or
# scratch array in a scope of its own.
SCOPES = 16


def _scope_metadata(module, own: str):
    domain = module.add_metadata(["minigrad"])
    scopes = {name: module.add_metadata([name, domain]) for name in _SCOPE_NAMES}
    others = [scope for name, scope in scopes.items() if name != own]
    return module.add_metadata([scopes[own]]), module.add_metadata(others)


_SCOPE_NAMES = ("minigrad inputs", *(f"minigrad array {k}" for k in range(SCOPES)))


def _make_scoped(name: str, scope: str):
    """A load and a store of dtype `name` whose accesses belong to an alias scope."""
    is_bool = name == "bool"
    numba_type = types.boolean if is_bool else _NUMBA[name]
    align = 1 if is_bool else _NUMBA[name].bitwidth // 8

    def pointer_to(context, builder, address, index):
        llvm = ir.IntType(8) if is_bool else context.get_value_type(numba_type)
        return builder.gep(builder.inttoptr(address, llvm.as_pointer()), [index])

    def mark(builder, instruction):
        own, others = _scope_metadata(builder.module, scope)
        instruction.set_metadata("alias.scope", own)
        instruction.set_metadata("noalias", others)

    @intrinsic
    def load(typingctx, address, index):
        def codegen(context, builder, signature, args):
            value = builder.load(pointer_to(context, builder, *args), align=align)
            mark(builder, value)
            if is_bool:
                value = builder.icmp_unsigned("!=", value, ir.Constant(value.type, 0))
            return value

        return numba_type(types.intp, types.intp), codegen

    @intrinsic
    def store(typingctx, address, index, value):
        def codegen(context, builder, signature, args):
            stored = builder.zext(args[2], ir.IntType(8)) if is_bool else args[2]
            pointer = pointer_to(context, builder, args[0], args[1])
            mark(builder, builder.store(stored, pointer, align=align))
            return context.get_dummy_value()

        return types.void(types.intp, types.intp, numba_type), codegen

    return load, store


for _name in ("bool", *_NUMBA):
    globals()[f"read_{_name}"], _ = _make_scoped(_name, _SCOPE_NAMES[0])
    for _k in range(SCOPES):
        _load, _store = _make_scoped(_name, _SCOPE_NAMES[1 + _k])
        globals()[f"reread_{_name}_{_k}"], globals()[f"write_{_name}_{_k}"] = _load, _store


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
            callee = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(kind, [kind]), f"llvm.{llvm_name}.{suffix}"
            )
            return builder.call(callee, args)

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
            if isinstance(a, types.Float):  # LLVM knows this as a reduction; a compare, it does not
                callee = cgutils.get_or_insert_function(
                    builder.module,
                    ir.FunctionType(x.type, [x.type, x.type]),
                    f"llvm.{llvm_name}.f{a.bitwidth}",
                )
                return builder.call(callee, args)
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
            pointer, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [pointer, flag, flag, flag])
            callee = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
            flags = [ir.Constant(flag, n) for n in (int(writes), 3, 1)]  # keep it, it is data
            builder.call(callee, [builder.inttoptr(args[0], pointer), *flags])
            return context.get_dummy_value()

        return signature, codegen

    return prefetch


prefetch_to_read, prefetch_to_write = _make_prefetch(False), _make_prefetch(True)


@intrinsic
def accumulate(typingctx, total, value):
    """Total + value, in any order: what lets a reduction vectorize."""
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
