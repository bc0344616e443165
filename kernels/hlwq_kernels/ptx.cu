// What the encoder needs beyond C++: a line of PTX each. The tests put a portable file in this one's place.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

__device__ inline u32 shared_address(const void* at) { return (u32)__cvta_generic_to_shared(at); }

// Not volatile, so that loads may be moved: from tables only, which are written once, before the first barrier.
__device__ inline float load_shared(u32 address) {
    float x;
    asm("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(address));
    return x;
}

__device__ inline void load_shared_pair(u32 address, float& x, u32& y) {
    asm("ld.shared.v2.b32 {%0, %1}, [%2];" : "=f"(x), "=r"(y) : "r"(address));
}

__device__ inline float half_to_float(u32 bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"((u16)bits));
    return x;
}

__device__ inline u16 float_to_half(float x) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

// Near log2: whoever asks must correct it.
__device__ inline float guess_log2(float x) {
    float y;
    asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Begin to copy 16 bytes into shared memory; done when `wait_for_copies` returns, for the thread that began them.
__device__ inline void copy_16_bytes(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
#else
    *(uint4*)shared = *(const uint4*)global;
#endif
}

__device__ inline void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// Whether x holds for any of the lanes that came here together: others may have no block.
__device__ inline bool any_here(bool x) { return __any_sync(__activemask(), x); }
