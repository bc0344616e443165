// Lets a kernel's source be compiled for the CPU: stands in for common/ptx.cuh and for what the CUDA compiler declares.
// The threads of a CTA are fibers that take turns and wait for each other at barriers.
// C's headers alone: those of C++ take g++ longer than a kernel does.

#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef unsigned long long u64;
typedef long long i64;

#define __device__
#define __global__
#define __forceinline__ inline
#define __align__(bytes) __attribute__((aligned(bytes)))
#ifndef __shared__
#define __shared__
#endif
#define __launch_bounds__(...)

struct uint2 { u32 x, y; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) uint4 { u32 x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };
static uint2 make_uint2(u32 x, u32 y) { return {x, y}; }
static uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }

struct Dim { unsigned x, y, z; };
static Dim threadIdx, blockIdx, blockDim, gridDim;
uint4 arena[1 << 16];  // dynamic shared memory

struct Barrier {
    unsigned size = 0, arrived = 0, times = 0;
};
static Barrier cta_barrier, warp_barriers[32], named_barriers[16];
static u64 shuffled[32][32];
static u32 operands[32][32][6];

// Fibers begin with swapcontext and go on with longjmp, which saves no signals: that would be a system call a turn.
const int MOST_THREADS = 1024, STACK = 1 << 17;
struct Fiber {
    ucontext_t start;
    jmp_buf at;
    bool begun, done;
};
static Fiber fibers[MOST_THREADS];
static char* stacks;
static ucontext_t scheduler;
static jmp_buf scheduler_at;
static void (*body)();

static void take_turns() {
    if (!_setjmp(fibers[threadIdx.x].at)) _longjmp(scheduler_at, 1);
}

static void run_fiber() {
    body();
    fibers[threadIdx.x].done = true;
    _longjmp(scheduler_at, 1);
}

// Lets the fiber of `threadIdx` run until it waits or ends.
static void give_turn() {
    Fiber& fiber = fibers[threadIdx.x];
    if (_setjmp(scheduler_at)) return;
    if (fiber.begun) _longjmp(fiber.at, 1);
    fiber.begun = true;
    swapcontext(&scheduler, &fiber.start);
}

static void meet(Barrier& barrier) {
    const unsigned before = barrier.times;
    if (++barrier.arrived == barrier.size) {
        barrier.arrived = 0;
        barrier.times++;
    }
    while (barrier.times == before) take_turns();
}

static void __syncthreads() { meet(cta_barrier); }

static void __syncwarp() { meet(warp_barriers[threadIdx.x / 32]); }

static bool __syncthreads_or(bool x) {
    static bool any;
    __syncthreads();
    any = false;
    __syncthreads();
    any |= x;
    __syncthreads();
    return any;
}

static void bar_sync(int barrier, int threads) {
    named_barriers[barrier].size = threads;
    meet(named_barriers[barrier]);
}

template <class To, class From>
static To same_bits(From x) {
    To y;
    static_assert(sizeof(x) == sizeof(y), "");
    memcpy(&y, &x, sizeof(y));
    return y;
}

template <class T>
static T __shfl_sync(u32, T value, int from) {
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    memcpy(&shuffled[warp][lane], &value, sizeof(T));
    meet(warp_barriers[warp]);
    T other;
    memcpy(&other, &shuffled[warp][from % 32], sizeof(T));
    meet(warp_barriers[warp]);
    return other;
}

template <class T>
static T __shfl_xor_sync(u32 all, T value, int mask) { return __shfl_sync(all, value, threadIdx.x % 32 ^ mask); }

static bool __any_sync(u32 all, bool x) {
    for (int m = 1; m < 32; m *= 2) x |= __shfl_xor_sync(all, (u32)x, m) != 0;
    return x;
}

// The tensor cores' product: see `mma_m16n8k16` in common/ptx.cuh and PTX's mma.m16n8k16.
static void mma_m16n8k16(float* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 mine[6] = {a0, a1, a2, a3, b0, b1};
    memcpy(operands[warp][lane], mine, sizeof(mine));
    meet(warp_barriers[warp]);
    for (int i = 0; i < 4; i++) {
        const unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (unsigned k = 0; k < 16; k++) {
            const u32 a = operands[warp][row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2];
            const u32 b = operands[warp][column * 4 + k % 8 / 2][4 + k / 8];
            c[i] += (float)same_bits<_Float16>((u16)(a >> k % 2 * 16)) * (float)same_bits<_Float16>((u16)(b >> k % 2 * 16));
        }
    }
    meet(warp_barriers[warp]);
}

static u32 movmatrix(u32 pair) {
    const unsigned lane = threadIdx.x % 32, row = lane / 4, column = lane % 4 * 2;
    const u32 a = __shfl_sync(0, pair, column * 4 + row / 2), b = __shfl_sync(0, pair, (column + 1) * 4 + row / 2);
    return (a >> row % 2 * 16 & 0xFFFF) | (b >> row % 2 * 16) << 16;
}

template <class T>
static T min(T a, T b) { return b < a ? b : a; }
template <class T>
static T max(T a, T b) { return a < b ? b : a; }

static float __uint_as_float(u32 x) { return same_bits<float>(x); }
static u32 __float_as_uint(float x) { return same_bits<u32>(x); }
static float __fsqrt_rn(float x) { return sqrtf(x); }
static float __fdiv_rn(float a, float b) { return a / b; }
static float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static float __saturatef(float x) { return x > 0.0f ? fminf(x, 1.0f) : 0.0f; }
static float __fadd_rd(float a, float b) {
    const float sum = a + b;
    return (double)sum > (double)a + (double)b ? nextafterf(sum, -INFINITY) : sum;
}

static u32 shared_address(const void* at) { return (u32)((const char*)at - (const char*)arena); }
static u64 __cvta_generic_to_shared(const void* at) { return shared_address(at); }
// Arrays declared __shared__ may lie on either side of the arena.
static float ld_shared_f32(u32 address) { return *(const float*)((const char*)arena + (int)address); }
static void ld_shared_v2(u32 address, float& x, u32& y) {
    x = ld_shared_f32(address);
    y = __float_as_uint(ld_shared_f32(address + 4));
}
static float half_to_float(u32 bits) { return (float)same_bits<_Float16>((u16)bits); }
static u32 float_to_half(float x) { return same_bits<u16>((_Float16)x); }
static float lg2_approx(float x) { return log2f(x); }
static void cp_async_16(void* shared, const void* global) { memcpy(shared, global, 16); }
static u32 ld_shared(u32 table, u32 at) { return __float_as_uint(ld_shared_f32(table + at)); }
static u32 pack_half2(float low, float high) { return float_to_half(low) | float_to_half(high) << 16; }
static u32 hmul2(u32 a, u32 b) {
    const float low = half_to_float(a) * half_to_float(b), high = half_to_float(a >> 16) * half_to_float(b >> 16);
    return pack_half2(low, high);
}
static u32 hfma2(u32 a, u32 b, u32 c) {
    const float low = fmaf(half_to_float(a), half_to_float(b), half_to_float(c));
    return pack_half2(low, fmaf(half_to_float(a >> 16), half_to_float(b >> 16), half_to_float(c >> 16)));
}
static float ex2_approx(float x) { return exp2f(x); }
#define __expf expf
static float __fdividef(float a, float b) { return a / b; }
static u32 __byte_perm(u32 a, u32 b, u32 selector) {
    u32 out = 0;
    for (int i = 0; i < 4; i++) out |= (u32)((((u64)b << 32 | a) >> (selector >> 4 * i & 7) * 8) & 0xFF) << 8 * i;
    return out;
}
template <class T>
static T __ldg(const T* at) { return *at; }
template <class T>
static T __ldcs(const T* at) { return *at; }
static void griddepcontrol_wait() {}
static void griddepcontrol_launch_dependents() {}
static void cp_async_wait_all() {}
static bool any_active(bool x) { return x; }

// Runs `kernel` on one CTA after the other.
static void run_grid(Dim grid, unsigned threads, void (*kernel)()) {
    if (!stacks) stacks = (char*)malloc((size_t)MOST_THREADS * STACK);
    if (!stacks || threads > MOST_THREADS) abort();
    body = kernel;
    gridDim = grid;
    blockDim.x = threads;
    for (unsigned cta = 0; cta < grid.x * grid.y * grid.z; cta++) {
        blockIdx = {cta % grid.x, cta / grid.x % grid.y, cta / grid.x / grid.y};
        memset((void*)arena, 0xFF, sizeof(arena));
        cta_barrier = {threads, 0, 0};
        for (auto& barrier : warp_barriers) barrier = {32, 0, 0};
        for (auto& barrier : named_barriers) barrier = {0, 0, 0};
        for (unsigned i = 0; i < threads; i++) {
            Fiber& fiber = fibers[i];
            fiber.begun = fiber.done = false;
            getcontext(&fiber.start);
            fiber.start.uc_stack.ss_sp = stacks + (size_t)i * STACK;
            fiber.start.uc_stack.ss_size = STACK;
            makecontext(&fiber.start, run_fiber, 0);
        }
        for (unsigned left = threads; left;) {
            left = 0;
            for (unsigned i = 0; i < threads; i++) {
                threadIdx.x = i;
                if (!fibers[i].done) give_turn();
                left += !fibers[i].done;
            }
        }
    }
}
