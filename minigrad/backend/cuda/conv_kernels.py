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

from dataclasses import dataclass
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


@dataclass(frozen=True)
class Tile:
    """A block's tile of the product, and a thread's.

    A warp is 8 threads along pixels by 4 along channels, each with `thread_pixels` by
    `thread_channels` of the results.
    """

    pixels: int
    channels: int
    products: int
    thread_pixels: int
    thread_channels: int

    @property
    def blocks(self) -> int:
        """Blocks that one multiprocessor should hold, to hide barriers and memory's latency."""
        threads = 512 if self.thread_pixels * self.thread_channels > 16 else 768
        return threads // self.threads

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.pixels * self.channels // (self.thread_pixels * self.thread_channels)


def _struct(name: str, fields: dict[str, str]) -> str:
    members = " ".join(f"{kind} {field};" for field, kind in fields.items())
    return f"struct {name} {{ {members} }};"


def accumulator_type(dtype: DType) -> str:
    """What products are added up in: of integers, modulo a power of two."""
    if dtype.is_floating:
        return register_type(dtype)
    return "u64" if dtype.itemsize == 8 else "u32"


def _prologue(dtype: DType, wide: bool) -> str:
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


_TILED = """\
KERNEL {
    const Call& call = *(const Call*)table;
    const u32 t = threadIdx.x;
    const u32 tiles = (u32)call.tiles, parts = (u32)call.parts, groups = (u32)call.groups;
    const u32 slice = blockIdx.x / tiles, tile = blockIdx.x - slice * tiles;
    const u32 unit = slice / parts, part = slice - unit * parts;
    const u32 number = unit / groups, group = unit - number * groups;
    const Problem& problem = problem_of(table, number);
    const u32 pixel_tile = tile / (u32)call.channel_tiles;
    const I first_pixel = (I)pixel_tile * PIXELS, pixels = (I)problem.pixels;
    const int channels = (int)call.channels;
    const int first_channel = (int)(tile - pixel_tile * (u32)call.channel_tiles) * CHANNELS;
    if (first_pixel >= pixels) return;
    const int channels_left = channels - first_channel;
    const I begin = (I)part * (I)problem.share;
    const I end = begin + (I)problem.share < (I)problem.products ? begin + (I)problem.share : (I)problem.products;
    const int steps = end > begin ? (int)((end - begin + PRODUCTS - 1) / PRODUCTS) : 0;
    const int height = (int)call.height, width = (int)call.width;
    const u64 x = (u64)(call.x + problem.x + group * call.x_group);
    const u64 w = (u64)(call.w + problem.w + group * call.w_group + first_channel * call.w_channel);
    const I w_channel = (I)call.w_channel;

    __shared__ Place pixel[PIXELS], product[2][PRODUCTS];
    // The rows are padded, so that threads that store one product after the other meet no bank twice.
    alignas(32) __shared__ A xs[2][PRODUCTS][PIXELS + PAD], ws[2][PRODUCTS][CHANNELS + PAD];
    for (u32 i = t; i < PIXELS; i += THREADS) pixel[i] = place(problem.pixel_axes, first_pixel + i, pixels);
    for (u32 i = t; i < 2 * PRODUCTS; i += THREADS)
        product[i / PRODUCTS][i % PRODUCTS] = place(problem.product_axes, begin + i, end);
    __syncthreads();

    // Which elements this thread brings.
    auto x_pixel = [&](int j) { return X_BY_PIXEL ? t % PIXELS : t / PRODUCTS + j * (THREADS / PRODUCTS); };
    auto x_product = [&](int j) { return X_BY_PIXEL ? t / PIXELS + j * (THREADS / PIXELS) : t % PRODUCTS; };
    auto w_at = [&](int j) { return W_BY_CHANNEL ? t % CHANNELS : t / PRODUCTS + j * (THREADS / PRODUCTS); };
    auto w_product = [&](int j) { return W_BY_CHANNEL ? t / CHANNELS + j * (THREADS / CHANNELS) : t % PRODUCTS; };
    auto w_brings = [&](int j) { return W_WHOLE || t + j * THREADS < CHANNELS * PRODUCTS; };
    A x_next[X_LOADS], w_next[W_LOADS];
    const Place own_pixel = pixel[x_pixel(0)];
    auto fetch = [&](int stage) {
        const Place own_product = product[stage][t % PRODUCTS];
        #pragma unroll
        for (int j = 0; j < X_LOADS; ++j) {
            const Place a = X_BY_PIXEL ? own_pixel : pixel[x_pixel(j)];
            const Place b = X_BY_PIXEL ? product[stage][x_product(j)] : own_product;
            x_next[j] = meet(a, b, height, width) ? element(x, a.x + b.x) : (A)0;
        }
        #pragma unroll
        for (int j = 0; j < W_LOADS; ++j) {
            if (!w_brings(j)) break;
            const Place b = W_BY_CHANNEL ? product[stage][w_product(j)] : own_product;
            const int o = w_at(j);
            const bool inside = (o < channels_left) & (b.row != OUTSIDE);
            w_next[j] = inside ? element(w, o * w_channel + b.other) : (A)0;
        }
    };
    auto put = [&](int stage) {
        #pragma unroll
        for (int j = 0; j < X_LOADS; ++j) xs[stage][x_product(j)][x_pixel(j)] = x_next[j];
        #pragma unroll
        for (int j = 0; j < W_LOADS; ++j)
            if (w_brings(j)) ws[stage][w_product(j)][w_at(j)] = w_next[j];
    };

    // A thread's pixels and channels lie in packs, those of a warp next to each other.
    const u32 warp = t / 32, lane = t % 32;
    const int m = warp % (PIXELS / (8 * TM)) * (8 * TM) + lane % 8 * VM;
    const int n = warp / (PIXELS / (8 * TM)) * (4 * TN) + lane / 8 * VN;
    A sum[TM][TN];
    #pragma unroll
    for (int i = 0; i < TM; ++i)
        #pragma unroll
        for (int j = 0; j < TN; ++j) sum[i][j] = 0;
    if (steps > 0) {
        fetch(0);
        put(0);
    }
    __syncthreads();
    for (int step = 0; step < steps; ++step) {
        const int stage = step & 1;
        // Memory answers while this step's products are added up.
        if (step + 1 < steps) fetch(stage ^ 1);
        if (step + 2 < steps && t < PRODUCTS)
            product[stage][t] = place(problem.product_axes, begin + (I)(step + 2) * PRODUCTS + t, end);
        #pragma unroll
        for (int k = 0; k < PRODUCTS; ++k) {
            A a[TM], b[TN];
            #pragma unroll
            for (int p = 0; p < TM / VM; ++p) {
                const Pack<A, VM>& pack = *(const Pack<A, VM>*)&xs[stage][k][m + p * 8 * VM];
                #pragma unroll
                for (int v = 0; v < VM; ++v) a[p * VM + v] = pack.at[v];
            }
            #pragma unroll
            for (int p = 0; p < TN / VN; ++p) {
                const Pack<A, VN>& pack = *(const Pack<A, VN>*)&ws[stage][k][n + p * 4 * VN];
                #pragma unroll
                for (int v = 0; v < VN; ++v) b[p * VN + v] = pack.at[v];
            }
            #pragma unroll
            for (int i = 0; i < TM; ++i)
                #pragma unroll
                for (int j = 0; j < TN; ++j) sum[i][j] += a[i] * b[j];
        }
        if (step + 1 < steps) put(stage ^ 1);
        __syncthreads();
    }

    T* const out = call.out + problem.out + group * call.out_group;
    #pragma unroll
    for (int j = 0; j < TN; ++j) {
        const int o = first_channel + n + j / VN * 4 * VN + j % VN;
        if (o >= channels) continue;
        #pragma unroll
        for (int p = 0; p < TM / VM; ++p) {
            const int i = m + p * 8 * VM;
            if (parts > 1) {
                A* const target = call.partial + (((i64)slice * channels + o) * call.plane + first_pixel + i);
                #pragma unroll
                for (int v = 0; v < VM; ++v)
                    if (pixel[i + v].row != OUTSIDE) target[v] = sum[p * VM + v][j];
            } else if (call.packed) {
                Pack<T, VM> pack;
                #pragma unroll
                for (int v = 0; v < VM; ++v) store(&pack.at[v], (R)sum[p * VM + v][j]);
                if (pixel[i].row != OUTSIDE) store_pack(out + (o * call.out_channel + pixel[i].other), pack);
            } else {
                #pragma unroll
                for (int v = 0; v < VM; ++v)
                    if (pixel[i + v].row != OUTSIDE)
                        store(out + (o * call.out_channel + pixel[i + v].other), (R)sum[p * VM + v][j]);
            }
        }
    }
}
"""  # noqa: E501

_COMBINED = """\
// A thread for each output: the sum of its parts, in a fixed order.
KERNEL {
    const Call& call = *(const Call*)table;
    const u32 unit = blockIdx.x / (u32)call.tiles, block = blockIdx.x - unit * (u32)call.tiles;
    const u32 number = unit / (u32)call.groups, group = unit - number * (u32)call.groups;
    const Problem& problem = problem_of(table, number);
    const i64 at = (i64)block * THREADS + threadIdx.x, each = call.channels * call.plane;
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
    const Call& call = *(const Call*)table;
    const u32 unit = blockIdx.x / (u32)call.tiles, block = blockIdx.x - unit * (u32)call.tiles;
    const u32 number = unit / (u32)call.groups, group = unit - number * (u32)call.groups;
    const Problem& problem = problem_of(table, number);
    const u32 pixel_tiles = (u32)call.tiles / (u32)call.channels, o = block / pixel_tiles;
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


@cache
def tiled(dtype: DType, wide: bool, tile: Tile, x_by_pixel: bool, w_by_channel: bool) -> str:
    """The source for one tile shape.

    Neighbouring threads load x of neighbouring pixels, or of neighbouring products; and w of
    neighbouring channels, or of neighbouring products.
    """
    lanes = 16 // (8 if accumulator_type(dtype) in ("double", "u64") else 4)
    loads = tile.channels * tile.products
    names = {
        "THREADS": tile.threads,
        "PIXELS": tile.pixels,
        "CHANNELS": tile.channels,
        "PRODUCTS": tile.products,
        "PAD": 4,
        "TM": tile.thread_pixels,
        "TN": tile.thread_channels,
        "VM": min(lanes, tile.thread_pixels),
        "VN": min(lanes, tile.thread_channels),
        "X_LOADS": tile.pixels * tile.products // tile.threads,
        "W_LOADS": -(-loads // tile.threads),
        "W_WHOLE": int(loads % tile.threads == 0),
        "X_BY_PIXEL": int(x_by_pixel),
        "W_BY_CHANNEL": int(w_by_channel),
    }
    enum = f"enum {{ {', '.join(f'{name} = {value}' for name, value in names.items())} }};\n"
    # The compiler would take more registers than leave room for these blocks.
    bounds = f"#undef BOUNDS\n#define BOUNDS __launch_bounds__({tile.threads}, {tile.blocks})\n"
    return _prologue(dtype, wide) + enum + bounds + _TILED


def lanes_of(dtype: DType) -> int:
    """Pixels that a packed store of the tiled kernel writes at once."""
    return 2 if accumulator_type(dtype) in ("double", "u64") else 4


@cache
def combined(dtype: DType, wide: bool) -> str:
    """The source of the sum of parts."""
    return _prologue(dtype, wide) + f"enum {{ THREADS = {THREADS} }};\n" + _COMBINED


@cache
def each(dtype: DType, wide: bool) -> str:
    """The source with a thread for each output."""
    return _prologue(dtype, wide) + f"enum {{ THREADS = {THREADS} }};\n" + _EACH


@cache
def dots(dtype: DType, wide: bool) -> str:
    """The source with a block for a few outputs."""
    return _prologue(dtype, wide) + f"enum {{ THREADS = {THREADS} }};\n" + _DOTS % POINTS
