"""The tiled kernel of convolutions: see [Note: convolution as a product].

Two stages of tiles are in shared memory. While the products of one are added up, registers wait for
what memory answers for the next; so there is one barrier for each step along the products.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from minigrad.backend.cuda.contract.conv_kernels import lanes_of, prologue
from minigrad.dtype import DType


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


@cache
def tiled(dtype: DType, wide: bool, tile: Tile, x_by_pixel: bool, w_by_channel: bool) -> str:
    """The source for one tile shape.

    Neighbouring threads load x of neighbouring pixels, or of neighbouring products; and w of
    neighbouring channels, or of neighbouring products.
    """
    lanes = lanes_of(dtype)
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
    return prologue(dtype, wide) + enum + bounds + _TILED
