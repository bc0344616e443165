// PTX instructions that CUDA C++ has no function for; functions have the instructions' names.
//
// Tests read a portable file, tests/support/cuda_on_cpu.h, instead of this one.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

__device__ inline u32 shared_address(const void* at) { return (u32)__cvta_generic_to_shared(at); }

// Not volatile, so that the compiler may move loads. Use it for tables only: they are written once, before the first
// barrier.
__device__ inline float ld_shared_f32(u32 address) {
    float x;
    asm("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(address));
    return x;
}

__device__ inline void ld_shared_v2(u32 address, float& x, u32& y) {
    asm("ld.shared.v2.b32 {%0, %1}, [%2];" : "=f"(x), "=r"(y) : "r"(address));
}

__device__ inline float half_to_float(u32 bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"((u16)bits));
    return x;
}

__device__ inline u32 float_to_half(float x) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

// An approximation of log2(x): the caller must correct it.
__device__ inline float lg2_approx(float x) {
    float y;
    asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Starts a copy of 16 bytes into shared memory. `cp_async_wait_all` waits for the copies that the same thread started.
__device__ inline void cp_async_16(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
#else
    *(uint4*)shared = *(const uint4*)global;
#endif
}

__device__ inline void cp_async_wait_all() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// Whether x holds for any of the active lanes: lanes without a block do not take part.
__device__ inline bool any_active(bool x) { return __any_sync(__activemask(), x); }

__device__ __forceinline__ u32 ld_shared(u32 table, u32 at) {
    u32 value;
    asm("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(table + at));
    return value;
}

// Products of two float16 each.
__device__ __forceinline__ u32 hmul2(u32 a, u32 b) {
    u32 product;
    asm("mul.f16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
    return product;
}

// c + a b of two float16 each, rounded once.
__device__ __forceinline__ u32 hfma2(u32 a, u32 b, u32 c) {
    asm("fma.rn.f16x2 %0, %1, %2, %0;" : "+r"(c) : "r"(a), "r"(b));
    return c;
}

// c += a b on the tensor cores, a of 16 x 16 and b of 16 x 8 float16, sums in float32.
__device__ __forceinline__ void mma_m16n8k16(float* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(b0));
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a2), "r"(a3), "r"(b1));
#endif
}

// Transposes 8 x 8 values of 16 bits, of which lane l holds (l / 4, 2 (l % 4)) and the one after it.
__device__ __forceinline__ u32 movmatrix(u32 pair) {
    u32 out;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(pair));
    return out;
}

// Two float16, `low` in the lower half.
__device__ __forceinline__ u32 pack_half2(float low, float high) {
#if __CUDA_ARCH__ >= 800
    u32 pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#else
    return float_to_half(low) | float_to_half(high) << 16;
#endif
}

// 2^x, to a few units in the last place.
__device__ __forceinline__ float ex2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Waits until `threads` threads of the CTA reach barrier `barrier`, 1 to 15. Number 0 is __syncthreads().
__device__ __forceinline__ void bar_sync(int barrier, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// Waits until the previous kernel has ended and its writes are visible, where this launch overlaps with it. What that
// kernel writes may be read only after this call.
__device__ __forceinline__ void griddepcontrol_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Allows the next kernel to start, where it is launched to overlap. It prepares itself and then waits for this one to
// end. So a kernel calls this first.
__device__ __forceinline__ void griddepcontrol_launch_dependents() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}
