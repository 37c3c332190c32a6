"""The CUDA C that every kernel starts with. No header is included: NVRTC needs no search path.

A kernel is `KERNEL { ... }`, a function of one argument: `table`, a row of 64-bit words in device
memory (sizes, strides, addresses, the bits of float64 constants), as on the CPU. Blocks are one-
dimensional and have at most THREADS threads, in whole warps. A kernel for more says so: `bounded`.

float16 and bfloat16 are types of memory only: a load widens to float, a store rounds to nearest
even, and all in between is computed in float32. Wherever the meaning of an op leaves a choice
(integers wrap, NaN wins a maximum, division by an integer 0 gives 0), it is that of the CPU.
"""

from __future__ import annotations

# The most threads of a block; and of one whose threads all share a slice. A multiprocessor has room
# for the latter, which hide the latency of memory: kernels tell the compiler so, or it would
# save registers to make room for more threads, and begin fewer loads.
THREADS = 256
MOST_THREADS = 1024
WARP = 32
LEAST = 4  # elements, or packs of them, that a thread of a team should have

# Replaced by the host harness of the tests, which runs kernels without a GPU.
DEVICE_ONLY = """\
#define BOUNDS __launch_bounds__(256, 4)
#define KERNEL extern "C" __global__ void BOUNDS kernel(const i64* __restrict__ table)
#define DEVICE __device__ __forceinline__
DEVICE double as_double(i64 bits) { return __longlong_as_double(bits); }
DEVICE float as_float(u32 bits) { return __uint_as_float(bits); }
DEVICE u32 bits_of(float x) { return __float_as_uint(x); }
DEVICE u32 high_product(u32 a, u32 b) { return __umulhi(a, b); }
// An address from a table. Pointers that are no parameters of a kernel need to be told where they point.
template <class T> DEVICE T* array_at(i64 word) { T* p = (T*)word; __builtin_assume(__isGlobal(p)); return p; }
template <class T> DEVICE T read_only(const T* p) { return __ldg(p); }
DEVICE float float_of_half(u16 bits) { float x; asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits)); return x; }
DEVICE u16 half_of_float(float x) { u16 bits; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x)); return bits; }
"""  # noqa: E501

TYPES = """\
typedef long long i64;
typedef unsigned long long u64;
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;
"""

COMMON = """\
struct float16 { u16 bits; };
struct bfloat16 { u16 bits; };

DEVICE float load(const float16* p) { return float_of_half(p->bits); }
DEVICE float load(const bfloat16* p) { return as_float((u32)p->bits << 16); }
DEVICE bool load(const bool* p) { return *(const u8*)p != 0; }
template <class T> DEVICE T load(const T* p) { return *p; }

DEVICE u16 brain_of_float(float x) {
    const u32 bits = bits_of(x);
    if (x != x) return (u16)((bits >> 16) | 0x40);
    return (u16)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}
DEVICE void store(float16* p, float x) { p->bits = half_of_float(x); }
DEVICE void store(bfloat16* p, float x) { p->bits = brain_of_float(x); }
DEVICE void store(bool* p, bool x) { *(u8*)p = x; }
template <class T> DEVICE void store(T* p, T x) { *p = x; }
DEVICE float round_float16(float x) { return float_of_half(half_of_float(x)); }
// float64 to a half must round once: the way there keeps what was lost in its last bit.
DEVICE float to_odd(double x) {
    const float nearest = (float)x;
    if ((double)nearest == x) return nearest;
    u32 bits = bits_of(nearest);
    if (fabs((double)nearest) > fabs(x)) --bits;
    return as_float(bits | 1);
}
DEVICE float to_odd(float x) { return x; }
DEVICE float to_odd(i64 x) { return to_odd((double)x); }  // a half has fewer digits than 2**53 has
DEVICE float round_bfloat16(float x) { return as_float((u32)brain_of_float(x) << 16); }

// V elements that move as one access.
template <class T, int V> struct alignas(sizeof(T) * V) Pack { T at[V]; };
template <int bytes> struct Raw;
template <> struct Raw<1> { typedef unsigned char type; };
template <> struct Raw<2> { typedef unsigned short type; };
template <> struct Raw<4> { typedef unsigned int type; };
template <> struct Raw<8> { typedef uint2 type; };
template <> struct Raw<16> { typedef uint4 type; };
// Of memory that the kernel does not write.
template <int V, class T> DEVICE Pack<T, V> read_pack(const T* p) {
    typedef typename Raw<sizeof(T) * V>::type R;
    union { R raw; Pack<T, V> pack; } both;
    both.raw = read_only((const R*)p);
    return both.pack;
}
template <class T> DEVICE auto read(const T* p) -> decltype(load(p)) {
    const Pack<T, 1> x = read_pack<1>(p);
    return load(&x.at[0]);
}
template <int V, class T> DEVICE void store_pack(T* p, const Pack<T, V>& x) { *(Pack<T, V>*)p = x; }

// Division by a number that the host knows: n / d for 0 <= n < 2**31 (Granlund & Montgomery 1994).
struct Divisor {
    u32 d, multiplier, shift;
    DEVICE Divisor(const i64* words) : d((u32)words[0]), multiplier((u32)words[1]), shift((u32)(words[1] >> 32)) {}
    DEVICE int quotient(int n) const { return (int)((high_product(multiplier, (u32)n) + (u32)n) >> shift); }
};
struct WideDivisor {
    i64 d;
    DEVICE WideDivisor(const i64* words) : d(words[0]) {}
    DEVICE i64 quotient(i64 n) const { return n / d; }
};

DEVICE int wrap_add(int a, int b) { return (int)((u32)a + (u32)b); }
DEVICE i64 wrap_add(i64 a, i64 b) { return (i64)((u64)a + (u64)b); }
DEVICE u8 wrap_add(u8 a, u8 b) { return (u8)(a + b); }
DEVICE int wrap_sub(int a, int b) { return (int)((u32)a - (u32)b); }
DEVICE i64 wrap_sub(i64 a, i64 b) { return (i64)((u64)a - (u64)b); }
DEVICE u8 wrap_sub(u8 a, u8 b) { return (u8)(a - b); }
DEVICE int wrap_mul(int a, int b) { return (int)((u32)a * (u32)b); }
DEVICE i64 wrap_mul(i64 a, i64 b) { return (i64)((u64)a * (u64)b); }
DEVICE u8 wrap_mul(u8 a, u8 b) { return (u8)(a * b); }
template <class T> DEVICE T floor_quotient(T a, T b) {
    if (b == 0) return 0;
    if (b == (T)-1 && (T)-1 < (T)0) return wrap_sub((T)0, a);
    const T q = a / b;
    return a % b != 0 && (a < 0) != (b < 0) ? q - 1 : q;
}

DEVICE float floor_of(float x) { return floorf(x); }
DEVICE double floor_of(double x) { return floor(x); }
DEVICE float abs_of(float x) { return fabsf(x); }
DEVICE double abs_of(double x) { return fabs(x); }
template <class T> DEVICE T abs_of(T x) { return x < 0 ? wrap_sub((T)0, x) : x; }
template <class T> DEVICE T sign_of(T x) { return x != x ? x : (T)((x > 0) - (x < 0)); }
// Without branches, as all that is done per element: loads cannot begin before a branch is decided.
template <class T> DEVICE T maximum_of(T a, T b) { return (a > b) | (a != a) ? a : b; }
template <class T> DEVICE T minimum_of(T a, T b) { return (a < b) | (a != a) ? a : b; }

DEVICE float exp_of(float x) { return expf(x); }
DEVICE double exp_of(double x) { return exp(x); }
DEVICE float expm1_of(float x) { return expm1f(x); }
DEVICE double expm1_of(double x) { return expm1(x); }
DEVICE float log_of(float x) { return logf(x); }
DEVICE double log_of(double x) { return log(x); }
DEVICE float log1p_of(float x) { return log1pf(x); }
DEVICE double log1p_of(double x) { return log1p(x); }
DEVICE float sqrt_of(float x) { return sqrtf(x); }
DEVICE double sqrt_of(double x) { return sqrt(x); }
DEVICE float sin_of(float x) { return sinf(x); }
DEVICE double sin_of(double x) { return sin(x); }
DEVICE float cos_of(float x) { return cosf(x); }
DEVICE double cos_of(double x) { return cos(x); }
DEVICE float tanh_of(float x) { return tanhf(x); }
DEVICE double tanh_of(double x) { return tanh(x); }
DEVICE float erf_of(float x) { return erff(x); }
DEVICE double erf_of(double x) { return erf(x); }
DEVICE float erfc_of(float x) { return erfcf(x); }
DEVICE double erfc_of(double x) { return erfc(x); }
DEVICE float pow_of(float x, float y) { return powf(x, y); }
DEVICE double pow_of(double x, double y) { return pow(x, y); }
DEVICE float normal_cdf(float x) { return normcdff(x); }
DEVICE double normal_cdf(double x) { return normcdf(x); }
// These keep their relative accuracy where they are small.
template <class T> DEVICE T sigmoid_of(T x) {
    // exp(-x) itself overflows where the result is still a subnormal number.
    const T e = exp_of(-abs_of(x));
    return (x < 0 ? e : (T)1) / (1 + e);
}
template <class T> DEVICE T softplus_of(T x) { return (x > 0 ? x : x != x ? x : 0) + log1p_of(exp_of(-abs_of(x))); }
template <class T> DEVICE T gelu_of(T x) {
    const T p = normal_cdf(x);
    return p == 0 ? (x != x ? x : -(T)0) : x * p;  // not -inf * 0
}

struct Sum { template <class A> static DEVICE A of(A a, A b) { return a + b; } };
struct Max { template <class A> static DEVICE A of(A a, A b) { return maximum_of(a, b); } };

// Every thread of a team gets the same result: `team` threads (a power of two) in a row.
template <class Op, class A> DEVICE A across_team(A x, int team, void* shared) {
    for (int d = (team < 32 ? team : 32) / 2; d > 0; d /= 2) x = Op::of(x, __shfl_xor_sync(0xFFFFFFFFu, x, d));
    if (team > 32) {
        A* partial = (A*)shared;
        const int warps = team / 32, first = threadIdx.x / team * warps;
        if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
        __syncthreads();
        x = partial[first + (threadIdx.x & (warps - 1))];
        for (int d = warps / 2; d > 0; d /= 2) x = Op::of(x, __shfl_xor_sync(0xFFFFFFFFu, x, d));
        __syncthreads();
    }
    return x;
}

// As before, for teams of `rows` threads that lie `columns` apart.
template <class Op, class A> DEVICE A across_rows(A x, int columns, int rows, void* shared) {
    if (rows == 1) return x;
    A* partial = (A*)shared;
    partial[threadIdx.x] = x;
    __syncthreads();
    x = partial[threadIdx.x % columns];
    for (int r = 1; r < rows; ++r) x = Op::of(x, partial[threadIdx.x % columns + r * columns]);
    __syncthreads();
    return x;
}
"""  # noqa: E501


def bounded(threads: int) -> str:
    """What stands before a kernel whose blocks have so many threads."""
    if threads <= THREADS:
        return ""
    return (
        f"#undef BOUNDS\n#define BOUNDS __launch_bounds__({threads}, {MOST_THREADS // threads})\n"
    )


def power_of_two(n: int) -> int:
    """The smallest power of two that is not less."""
    return 1 << (max(n, 1) - 1).bit_length()


def floor_power_of_two(n: int) -> int:
    """The largest power of two that is not more than n, or 1."""
    return 1 << (max(n, 1).bit_length() - 1)


def team_size(most: int, elements: int, teams: int, processors: int) -> int:
    """How many threads, at most `most`, share so many elements: a power of two.

    As many as leave LEAST elements to each, or more if the teams would not hide the latency of
    memory, for which a multiprocessor should have MOST_THREADS at work.
    """
    team = 1
    while team < min(most, elements) and (
        team * LEAST < elements or teams * team < MOST_THREADS * processors
    ):
        team *= 2
    return team


def divisor_words(d: int) -> tuple[int, int]:
    """The two table words of a `Divisor` or `WideDivisor` for d >= 1."""
    if d >= 1 << 31:
        return d, 0
    shift = (d - 1).bit_length()
    multiplier = ((1 << 32) * ((1 << shift) - d)) // d + 1
    return d, multiplier | shift << 32
