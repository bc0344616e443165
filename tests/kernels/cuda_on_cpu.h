// Lets a kernel's source be compiled for the CPU: stands in for ptx.cu and for what the CUDA compiler declares.
// The threads of a CTA are fibers that take turns and wait for each other at barriers.

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef unsigned long long u64;
typedef long long i64;

#define __device__
#define __global__
#ifndef __shared__
#define __shared__
#endif
#define __launch_bounds__(...)

struct uint2 { u32 x, y; };
struct alignas(16) uint4 { u32 x, y, z, w; };
static uint2 make_uint2(u32 x, u32 y) { return {x, y}; }
static uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }

struct Place { unsigned x; };
static Place threadIdx, blockIdx, blockDim, gridDim;
uint4 arena[1 << 16];  // dynamic shared memory

struct Barrier {
    unsigned size = 0, arrived = 0, times = 0;
};
static Barrier cta_barrier, warp_barriers[32];
static u64 shuffled[32][32];
static std::vector<ucontext_t> fibers;
static ucontext_t scheduler;

static void take_turns() { swapcontext(&fibers[threadIdx.x], &scheduler); }

static void meet(Barrier& barrier) {
    const unsigned before = barrier.times;
    if (++barrier.arrived == barrier.size) {
        barrier.arrived = 0;
        barrier.times++;
    }
    while (barrier.times == before) take_turns();
}

static void __syncthreads() { meet(cta_barrier); }

static bool __syncthreads_or(bool x) {
    static bool any;
    __syncthreads();
    any = false;
    __syncthreads();
    any |= x;
    __syncthreads();
    return any;
}

template <class T>
static T __shfl_xor_sync(u32, T value, int mask) {
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    shuffled[warp][lane] = value;
    meet(warp_barriers[warp]);
    const T other = (T)shuffled[warp][lane ^ mask];
    meet(warp_barriers[warp]);
    return other;
}

template <class T>
static T min(T a, T b) { return b < a ? b : a; }
template <class T>
static T max(T a, T b) { return a < b ? b : a; }

template <class To, class From>
static To same_bits(From x) {
    To y;
    static_assert(sizeof(x) == sizeof(y), "");
    memcpy(&y, &x, sizeof(y));
    return y;
}
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
static float load_shared(u32 address) { return *(const float*)((const char*)arena + address); }
static void load_shared_pair(u32 address, float& x, u32& y) {
    x = load_shared(address);
    y = __float_as_uint(load_shared(address + 4));
}
static float half_to_float(u32 bits) { return (float)same_bits<_Float16>((u16)bits); }
static u16 float_to_half(float x) { return same_bits<u16>((_Float16)x); }
static float guess_log2(float x) { return log2f(x); }
static void copy_16_bytes(void* shared, const void* global) { memcpy(shared, global, 16); }
static void wait_for_copies() {}
static bool any_here(bool x) { return x; }

// Runs `kernel` on one CTA after the other.
static void run_grid(unsigned grid, unsigned threads, void (*kernel)()) {
    std::vector<std::vector<char>> stacks(threads, std::vector<char>(1 << 17));
    fibers.assign(threads, ucontext_t());
    std::vector<bool> done(threads);
    static std::vector<bool>* ended;
    static void (*body)();
    ended = &done;
    body = kernel;
    gridDim.x = grid;
    blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x < grid; blockIdx.x++) {
        memset((void*)arena, 0xFF, sizeof(arena));
        cta_barrier = {threads, 0, 0};
        for (auto& barrier : warp_barriers) barrier = {32, 0, 0};
        for (unsigned i = 0; i < threads; i++) {
            done[i] = false;
            getcontext(&fibers[i]);
            fibers[i].uc_stack.ss_sp = stacks[i].data();
            fibers[i].uc_stack.ss_size = stacks[i].size();
            fibers[i].uc_link = &scheduler;
            makecontext(&fibers[i], (void (*)())+[]() {
                body();
                (*ended)[threadIdx.x] = true;
            }, 0);
        }
        for (unsigned left = threads; left;) {
            left = 0;
            for (unsigned i = 0; i < threads; i++) {
                threadIdx.x = i;
                if (!done[i]) swapcontext(&scheduler, &fibers[i]);
                left += !done[i];
            }
        }
    }
}
