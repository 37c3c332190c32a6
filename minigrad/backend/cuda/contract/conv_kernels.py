"""CUDA sources of convolutions. All of them read one table, which `TABLE` describes.

[Note: convolution as a product] A convolution is a matrix product of pixels (images, output rows
and columns) by output channels, summed over products (input channels, filter rows and columns).
Where a pixel and a product meet in x is a sum of two terms, one of each: an offset, a row and a
column, and the row and the column say whether that is inside x. So pixels and products are both
`Place`s, found from a number by two divisions, and a kernel that has some of each in shared memory
gathers its tile of the matrix of patches as it needs it: that matrix never exists.

A problem is one such product. Inserted zeros make several of one convolution, which differ in
sizes, see `conv_problems`; groups are problems that differ in addresses alone.
"""

from __future__ import annotations

from functools import cache

from minigrad.backend.cuda.expressions import memory_type, register_type
from minigrad.backend.cuda.prelude import THREADS
from minigrad.dtype import DType

# Fields of the table, one word each: first those of the call, then those of each problem.
TABLE = {
    "x": "const T*",
    "w": "const T*",
    "out": "T*",
    "partial": "A*",  # sums of parts: [problem, group, part, channel, pixel]
    "plane": "i64",  # pixels of the largest problem
    "tiles": "i64",  # blocks of one part of a problem's group
    "parts": "i64",  # of the products of an output
    "groups": "i64",
    "channels": "i64",  # output channels of a group
    "channel_tiles": "i64",
    "height": "i64",  # of x
    "width": "i64",
    "x_group": "i64",
    "w_group": "i64",
    "out_group": "i64",
    "w_channel": "i64",
    "out_channel": "i64",
    "packed": "i64",  # whether pixels can be stored LANES at once
}
PROBLEM = {
    "x": "i64",  # elements from the table's x to the problem's
    "w": "i64",
    "out": "i64",
    "pixels": "i64",
    "products": "i64",
    "share": "i64",  # products of a part
}
AXES = 20  # words of a problem's pixel axes, then of its product axes: see `Place`


def _struct(name: str, fields: dict[str, str]) -> str:
    members = " ".join(f"{kind} {field};" for field, kind in fields.items())
    return f"struct {name} {{ {members} }};"


def accumulator_type(dtype: DType) -> str:
    """What products are added up in: of integers, modulo a power of two."""
    if dtype.is_floating:
        return register_type(dtype)
    return "u64" if dtype.itemsize == 8 else "u32"


def prologue(dtype: DType, wide: bool) -> str:
    """What every kernel starts with; indices of 64 bits where they must be `wide`."""
    register = register_type(dtype)
    return (
        f"""\
typedef {memory_type(dtype)} T;
typedef {register} R;
typedef {accumulator_type(dtype)} A;
typedef {"double" if dtype.is_floating else accumulator_type(dtype)} Wide;
typedef {"i64" if wide else "int"} I;
typedef {"WideDivisor" if wide else "Divisor"} D;
enum {{ ITEM = {dtype.itemsize} }};
{_struct("Call", TABLE)}
{_struct("Problem", {**PROBLEM, f"pixel_axes[{AXES}]": "i64", f"product_axes[{AXES}]": "i64"})}
"""
        + """\
const int OUTSIDE = 1 << 29;  // a row that no other brings back inside
// Where pixel or product number `at` is: in x, and in out (a pixel) or w (a product).
// Axes are two divisors; three steps each of x, other, row, column; the first row and column; the
// extents of the innermost two axes.
struct Place { I x, other; int row, column; };
DEVICE Place place(const i64* axes, I at, I count) {
    if (at >= count) return Place{0, 0, OUTSIDE, 0};
    const D last(axes), middle(axes + 2);
    const I q = last.quotient(at), c = at - q * (I)last.d;
    const I a = middle.quotient(q), b = q - a * (I)middle.d;
    const i64* s = axes + 4;
    return Place{
        a * (I)s[0] + b * (I)s[1] + c * (I)s[2], a * (I)s[3] + b * (I)s[4] + c * (I)s[5],
        (int)(s[12] + a * (I)s[6] + b * (I)s[7] + c * (I)s[8]),
        (int)(s[13] + a * (I)s[9] + b * (I)s[10] + c * (I)s[11]),
    };
}
DEVICE bool meet(const Place& a, const Place& b, int height, int width) {  // without a branch
    return ((u32)(a.row + b.row) < (u32)height) & ((u32)(a.column + b.column) < (u32)width);
}
// An address is an integer here, or the compiler would take its sum apart and add up in 64 bits.
DEVICE A element(u64 base, I i) { return (A)read((const T*)(base + (u64)((i64)i * ITEM))); }
DEVICE const Problem& problem_of(const i64* table, u32 number) {
    return ((const Problem*)(table + sizeof(Call) / 8))[number];
}
"""
    )


# What a block works on, where sums are not cut into parts.
_UNIT = """\
    const Call& call = *(const Call*)table;
    const u32 unit = blockIdx.x / (u32)call.tiles, block = blockIdx.x - unit * (u32)call.tiles;
    const u32 number = unit / (u32)call.groups, group = unit - number * (u32)call.groups;
    const Problem& problem = problem_of(table, number);
"""

_COMBINED = """\
// A thread for each output: the sum of its parts, in a fixed order.
KERNEL {
$UNIT    const i64 at = (i64)block * THREADS + threadIdx.x, each = call.channels * call.plane;
    const I o = (I)(at / call.plane), m = (I)(at - o * call.plane);
    if (at >= each || m >= problem.pixels) return;
    const A* partial = call.partial + (unit * call.parts * each + at);
    Wide sum = 0;
    for (int part = 0; part < (int)call.parts; ++part) sum += (Wide)partial[part * each];
    const Place pixel = place(problem.pixel_axes, m, (I)problem.pixels);
    store(call.out + (problem.out + group * call.out_group + o * call.out_channel + pixel.other), (R)sum);
}
"""  # noqa: E501

_EACH = """\
// A thread for each output: for few products and few channels of a group.
KERNEL {
$UNIT    const u32 pixel_tiles = (u32)call.tiles / (u32)call.channels, o = block / pixel_tiles;
    const I m = (I)(block - o * pixel_tiles) * THREADS + threadIdx.x;
    if (m >= (I)problem.pixels) return;
    const Place pixel = place(problem.pixel_axes, m, (I)problem.pixels);
    const T* const x = call.x + problem.x + group * call.x_group + pixel.x;
    const T* const w = call.w + problem.w + group * call.w_group + o * call.w_channel;
    const int height = (int)call.height, width = (int)call.width;
    const i64 *s = problem.product_axes + 4, *extents = s + 14;
    const int n1 = (int)extents[0], n2 = (int)extents[1];
    const int n0 = n1 * n2 ? (int)problem.products / (n1 * n2) : 0;
    A sum = 0;
    for (int a = 0; a < n0; ++a)
        for (int b = 0; b < n1; ++b) {
            I at = a * (I)s[0] + b * (I)s[1], other = a * (I)s[3] + b * (I)s[4];
            int row = pixel.row + (int)(a * s[6] + b * s[7]), column = pixel.column + (int)(a * s[9] + b * s[10]);
            for (int c = 0; c < n2; ++c) {
                if ((u32)row < (u32)height && (u32)column < (u32)width) sum += (A)read(x + at) * (A)read(w + other);
                at += (I)s[2], other += (I)s[5], row += (int)s[8], column += (int)s[11];
            }
        }
    store(call.out + (problem.out + group * call.out_group + o * call.out_channel + pixel.other), (R)sum);
}
"""  # noqa: E501

_DOTS = """\
// A block for each POINTS pixels of a channel, its threads side by side along the products: for few
// outputs of a group, and many products.
enum { POINTS = %d };
KERNEL {
    const Call& call = *(const Call*)table;
    const u32 slice = blockIdx.x / (u32)call.tiles, tile = blockIdx.x - slice * (u32)call.tiles;
    const u32 unit = slice / (u32)call.parts, part = slice - unit * (u32)call.parts;
    const u32 number = unit / (u32)call.groups, group = unit - number * (u32)call.groups;
    const Problem& problem = problem_of(table, number);
    const u32 chunks = (u32)call.tiles / (u32)call.channels, o = tile / chunks;
    const I first = (I)(tile - o * chunks) * POINTS, pixels = (I)problem.pixels;
    if (first >= pixels) return;
    const T* const x = call.x + problem.x + group * call.x_group;
    const T* const w = call.w + problem.w + group * call.w_group + o * call.w_channel;
    const int height = (int)call.height, width = (int)call.width;
    const I begin = (I)part * (I)problem.share;
    const I end = begin + (I)problem.share < (I)problem.products ? begin + (I)problem.share : (I)problem.products;
    Place pixel[POINTS];
    A sum[POINTS];
    #pragma unroll
    for (int j = 0; j < POINTS; ++j) pixel[j] = place(problem.pixel_axes, first + j, pixels), sum[j] = 0;
    for (I k = begin + (I)threadIdx.x; k < end; k += THREADS) {
        const Place product = place(problem.product_axes, k, end);
        const A weight = (A)read(w + product.other);
        #pragma unroll
        for (int j = 0; j < POINTS; ++j)
            if (meet(pixel[j], product, height, width)) sum[j] += (A)read(x + (pixel[j].x + product.x)) * weight;
    }
    __shared__ Wide shared[THREADS / 32];
    #pragma unroll
    for (int j = 0; j < POINTS; ++j) {
        const Wide total = across_team<Sum>((Wide)sum[j], THREADS, shared);
        if (threadIdx.x || first + j >= pixels) continue;
        if (call.parts > 1) call.partial[((i64)slice * call.channels + o) * call.plane + first + j] = (A)total;
        else store(call.out + (problem.out + group * call.out_group + o * call.out_channel + pixel[j].other), (R)total);
    }
}
"""  # noqa: E501

POINTS = 4


def lanes_of(dtype: DType) -> int:
    """Pixels that a packed store of the tiled kernel writes at once."""
    return 2 if accumulator_type(dtype) in ("double", "u64") else 4


def _source(dtype: DType, wide: bool, kernel: str) -> str:
    threads = f"enum {{ THREADS = {THREADS} }};\n"
    return prologue(dtype, wide) + threads + kernel.replace("$UNIT", _UNIT)


@cache
def combined(dtype: DType, wide: bool) -> str:
    """The source of the sum of parts."""
    return _source(dtype, wide, _COMBINED)


@cache
def each(dtype: DType, wide: bool) -> str:
    """The source with a thread for each output."""
    return _source(dtype, wide, _EACH)


@cache
def dots(dtype: DType, wide: bool) -> str:
    """The source with a block for a few outputs."""
    return _source(dtype, wide, _DOTS % POINTS)
