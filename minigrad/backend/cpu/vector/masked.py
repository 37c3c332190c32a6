"""Vectors and lane masks as Numba values, for the kernels of windows.

A kernel's text computes with them like with numbers: `best = choose(improves(x, best), x, best)`.
Every load takes a mask: a masked-off lane is never touched in memory and reads as zero. Every store
takes the number of lanes to store. So the last columns of a row need neither a scalar loop nor
memory past the end.
The number of lanes is a compile-time constant, passed where no argument's type implies it.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.core.datamodel.registry import register_default
from numba.extending import intrinsic

from minigrad.backend.cpu.vector.builder import call_llvm, copy_first

_WORD = ir.IntType(32)


class Vector(types.Type):
    """`lanes` numbers of one Numba type in a register; of booleans, a mask."""

    def __init__(self, element: types.Type, lanes: int):
        self.element, self.lanes = element, lanes
        super().__init__(name=f"Vector({element}, {lanes})")


@register_default(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        element = vector.element
        if element == types.boolean:
            llvm = ir.IntType(1)
        else:
            llvm = manager.lookup(element).get_value_type()
        super().__init__(manager, vector, ir.VectorType(llvm, vector.lanes))


def _constant(vector: ir.VectorType, values) -> ir.Constant:
    return ir.Constant(vector, [ir.Constant(vector.element, v) for v in values])


def _splat(builder, value, lanes: int):
    vector = ir.VectorType(value.type, lanes)
    single = builder.insert_element(ir.Constant(vector, ir.Undefined), value, _WORD(0))
    zeros = _constant(ir.VectorType(_WORD, lanes), [0] * lanes)
    return builder.shuffle_vector(single, ir.Constant(vector, ir.Undefined), zeros)


def _element_pointer(builder, address, index, element):
    return builder.gep(
        builder.inttoptr(address, element.as_pointer()), [index], source_etype=element
    )


def _suffix(vector: ir.VectorType) -> str:
    """LLVM's spelling of a vector type inside an intrinsic's name."""
    widths = {ir.FloatType: "f32", ir.DoubleType: "f64"}
    element = vector.element
    return f"v{vector.count}{widths.get(type(element)) or f'i{element.width}'}"


def _bytes_of(element) -> ir.Constant:
    width = {ir.FloatType: 4, ir.DoubleType: 8}.get(type(element)) or element.width // 8
    return _WORD(width)


# ---- masks


def _below(builder, count, lanes: int):
    """The lanes whose number is less than `count` (an int64 of any size)."""
    wide = count.type
    count = builder.select(builder.icmp_signed("<", count, wide(lanes)), count, wide(lanes))
    count = builder.select(builder.icmp_signed(">", count, wide(0)), count, wide(0))
    limit = _splat(builder, builder.trunc(count, _WORD), lanes)
    return builder.icmp_signed("<", _constant(limit.type, range(lanes)), limit)


@intrinsic(prefer_literal=True)
def first_lanes(typingctx, count, lanes):
    """The mask of lanes 0 .. count - 1; `count` may be negative or exceed the lanes."""
    n = lanes.literal_value
    signature = Vector(types.boolean, n)(types.intp, lanes)

    def codegen(context, builder, signature, args):
        return _below(builder, args[0], n)

    return signature, codegen


@intrinsic(prefer_literal=True)
def bit_lanes(typingctx, bits, lanes):
    """The mask whose lane l is bit l of `bits`."""
    n = lanes.literal_value
    signature = Vector(types.boolean, n)(types.intp, lanes)

    def codegen(context, builder, signature, args):
        low_bits = builder.trunc(args[0], ir.IntType(n))
        return builder.bitcast(low_bits, ir.VectorType(ir.IntType(1), n))

    return signature, codegen


def _binary(emit, gives_mask: bool = False):
    """An operation on two vectors of one type: `emit(builder, type, a, b)` writes it."""

    @intrinsic
    def operation(typingctx, a, b):
        def codegen(context, builder, signature, args):
            return emit(builder, a, *args)

        return (Vector(types.boolean, a.lanes) if gives_mask else a)(a, b), codegen

    return operation


def _improves(builder, vector, new, old):
    if isinstance(vector.element, types.Float):
        greater = builder.fcmp_unordered("ugt", new, old)
        return builder.and_(greater, builder.fcmp_ordered("ord", old, old))
    compare = builder.icmp_signed if vector.element.signed else builder.icmp_unsigned
    return compare(">", new, old)


both = _binary(lambda builder, mask, a, b: builder.and_(a, b))
either = _binary(lambda builder, mask, a, b: builder.or_(a, b))
# Where a comes to be the maximum in place of b: it is greater, or the first NaN.
improves = _binary(_improves, gives_mask=True)
# Where integer lanes agree.
equal = _binary(lambda builder, vector, a, b: builder.icmp_signed("==", a, b), gives_mask=True)


# ---- values


@intrinsic(prefer_literal=True)
def spread(typingctx, value, lanes):
    """`value` in every lane."""
    n, element = lanes.literal_value, types.unliteral(value)

    def codegen(context, builder, signature, args):
        return _splat(builder, args[0], n)

    return Vector(element, n)(element, lanes), codegen


@intrinsic(prefer_literal=True)
def ramp(typingctx, first, step, lanes):
    """Lane l is first + step * l, in the integer type of `first`."""
    n, element = lanes.literal_value, types.unliteral(first)

    def codegen(context, builder, signature, args):
        start, stride = (_splat(builder, a, n) for a in args[:2])
        return builder.add(start, builder.mul(stride, _constant(start.type, range(n))))

    return Vector(element, n)(element, element, lanes), codegen


@intrinsic
def choose(typingctx, mask, a, b):
    """`a` where the mask is set, `b` elsewhere."""

    def codegen(context, builder, signature, args):
        return builder.select(*args)

    return a(mask, a, b), codegen


def _add(builder, vector, a, b):
    return (builder.fadd if isinstance(vector.element, types.Float) else builder.add)(a, b)


def _shuffle(pick):
    """The lanes that `pick` lists for a number of lanes, of those of a and then of b."""

    def emit(builder, vector, a, b):
        lanes = _constant(ir.VectorType(_WORD, vector.lanes), pick(vector.lanes))
        return builder.shuffle_vector(a, b, lanes)

    return _binary(emit)


add = _binary(_add)  # integers wrap
# Of the 2n numbers a then b: those at even places, and those at odd places.
even = _shuffle(lambda n: range(0, 2 * n, 2))
odd = _shuffle(lambda n: range(1, 2 * n, 2))
# The inverse: a[0], b[0], a[1], b[1], ...: its first n numbers, and its last n.
zip_low = _shuffle(lambda n: [i // 2 + n * (i % 2) for i in range(n)])
zip_high = _shuffle(lambda n: [i // 2 + n * (i % 2) for i in range(n, 2 * n)])


# ---- memory; as in `intrinsics`, an address in bytes and an index in elements


def _make_load(element: types.Type):
    @intrinsic
    def load_lanes(typingctx, address, index, mask):
        result = Vector(element, mask.lanes)
        signature = result(types.intp, types.intp, mask)

        def codegen(context, builder, signature, args):
            vector = context.get_value_type(result)
            pointer = _element_pointer(builder, args[0], args[1], vector.element)
            pointer = builder.bitcast(pointer, vector.as_pointer())
            arguments = [pointer, _bytes_of(vector.element), args[2], ir.Constant(vector, None)]
            return call_llvm(builder, f"masked.load.{_suffix(vector)}.p0", vector, arguments)

        return signature, codegen

    return load_lanes


def _lane_pointers(builder, address, index, step, element, lanes: int):
    places = builder.add(
        _splat(builder, index, lanes),
        builder.mul(
            _splat(builder, step, lanes),
            _constant(ir.VectorType(step.type, lanes), range(lanes)),
        ),
    )
    width = _bytes_of(element).constant
    byte_offsets = builder.mul(places, _constant(places.type, [width] * lanes))
    addresses = builder.add(_splat(builder, address, lanes), byte_offsets)
    return builder.inttoptr(addresses, ir.VectorType(element.as_pointer(), lanes))


def _make_gather(element: types.Type):
    @intrinsic
    def gather_lanes(typingctx, address, index, step, mask):
        result = Vector(element, mask.lanes)
        signature = result(types.intp, types.intp, types.intp, mask)

        def codegen(context, builder, signature, args):
            vector = context.get_value_type(result)
            pointers = _lane_pointers(
                builder, args[0], args[1], args[2], vector.element, vector.count
            )
            arguments = [pointers, _bytes_of(vector.element), args[3], ir.Constant(vector, None)]
            name = f"masked.gather.{_suffix(vector)}.v{vector.count}p0"
            return call_llvm(builder, name, vector, arguments)

        return signature, codegen

    return gather_lanes


def _store_first(builder, address, index, count, value) -> None:
    place = cgutils.alloca_once(builder, value.type)
    builder.store(value, place)
    pointer = _element_pointer(builder, address, index, value.type.element)
    word, width = ir.IntType(64), _bytes_of(value.type.element).constant
    dst, src = (builder.ptrtoint(p, word) for p in (pointer, place))
    copy_first(builder, dst, src, count, value.type, width)


@intrinsic
def store_first(typingctx, address, index, count, value):
    """Store the first `count` lanes, or all, at consecutive elements from `index`."""
    signature = types.void(types.intp, types.intp, types.intp, value)

    def codegen(context, builder, signature, args):
        _store_first(builder, *args)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def scatter_first(typingctx, address, index, step, count, value):
    """Store lane l of the first `count`, or of all, at element index + step * l."""
    signature = types.void(types.intp, types.intp, types.intp, types.intp, value)

    def codegen(context, builder, signature, args):
        address, index, step, count, value = args
        vector = value.type
        with builder.if_else(builder.icmp_signed("==", step, step.type(1))) as (dense, spaced):
            with dense:
                _store_first(builder, address, index, count, value)
            with spaced:
                pointers = _lane_pointers(
                    builder, address, index, step, vector.element, vector.count
                )
                mask = _below(builder, count, vector.count)
                arguments = [value, pointers, _bytes_of(vector.element), mask]
                name = f"masked.scatter.{_suffix(vector)}.v{vector.count}p0"
                call_llvm(builder, name, ir.VoidType(), arguments)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def spill(typingctx, value):
    """The address of the lanes in memory, for a scalar loop over them."""

    def codegen(context, builder, signature, args):
        place = cgutils.alloca_once(builder, args[0].type)
        builder.store(args[0], place)
        return builder.ptrtoint(place, ir.IntType(64))

    return types.intp(value), codegen


for _type in (types.uint8, types.int32, types.int64, types.float32, types.float64):
    globals()[f"load_lanes_{_type}"] = _make_load(_type)
    globals()[f"gather_lanes_{_type}"] = _make_gather(_type)
