// The choice of experts for a few tokens: logits, a softmax, the k largest, their shares. Warps take an expert's row each;
// the CTA that comes last of a token's takes the logits of all and chooses.
//
// Joined behind lookup.cu for its types. Macros: INPUT; EXPERTS, at most 1024; CHOSEN, k, at most 32; THREADS.

#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif

constexpr int WARPS = THREADS / 32, EACH = (EXPERTS + 31) / 32;

__device__ __forceinline__ void larger(float& best, int& which, float x, int i) {
  if (x > best || (x == best && i < which)) best = x, which = i;
}

// x (tokens, columns), weight (EXPERTS, columns), scale (EXPERTS,), all of INPUT's type, columns a multiple of 8; logits
// (tokens, EXPERTS) float32 and arrived (tokens,), zeros, for the kernel's own use; chosen int64, routed float32 (tokens, CHOSEN).
extern "C" __global__ __launch_bounds__(THREADS) void choose_experts(
    const void* x, i64 columns, const void* weight, const void* scale, float* logits, u32* arrived, i64* chosen,
    float* routed) {
  let_the_next_kernel_start();
  __shared__ bool last;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const i64 token = blockIdx.y;
  const int expert = blockIdx.x * WARPS + warp;
  wait_for_the_kernel_before();
  if (expert < EXPERTS) {
    float sum = 0.0f;
    for (i64 at = lane * 8; at < columns; at += 256) {
#if INPUT == 0
      for (int i = 0; i < 8; i++) sum += load_input(x, token * columns + at + i) * load_input(weight, expert * columns + at + i);
#else
      __align__(16) u16 a[8], b[8];
      *(uint4*)a = *(const uint4*)((const u16*)x + token * columns + at);
      *(uint4*)b = *(const uint4*)((const u16*)weight + expert * columns + at);
#pragma unroll
      for (int i = 0; i < 8; i++) sum += load_input(a, i) * load_input(b, i);
#endif
    }
#pragma unroll
    for (int h = 16; h; h /= 2) sum += __shfl_xor_sync(0xffffffff, sum, h);
    if (lane == 0) {
#if INPUT != 0
      u16 bits;
      store(&bits, 0, sum);
      sum = load_input(&bits, 0);
#endif
      __stcg(logits + token * EXPERTS + expert, sum);
      __threadfence();
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(arrived + token, 1) == gridDim.x - 1;
  __syncthreads();
  if (!last || warp) return;
  __threadfence();
  if (lane == 0) arrived[token] = 0;
  float p[EACH], most = -INFINITY, all = 0.0f;
#pragma unroll
  for (int j = 0; j < EACH; j++) {
    const int i = j * 32 + lane;
    p[j] = i < EXPERTS ? __ldcg(logits + token * EXPERTS + i) : -INFINITY;
    most = fmaxf(most, p[j]);
  }
#pragma unroll
  for (int h = 16; h; h /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffff, most, h));
#pragma unroll
  for (int j = 0; j < EACH; j++) all += p[j] = expf(p[j] - most);
#pragma unroll
  for (int h = 16; h; h /= 2) all += __shfl_xor_sync(0xffffffff, all, h);
#pragma unroll
  for (int j = 0; j < EACH; j++) p[j] = j * 32 + lane < EXPERTS ? p[j] / all : -1.0f;
  float shares = 0.0f, own_share = 0.0f;
  int own = 0;
  for (int k = 0; k < CHOSEN; k++) {
    float best = -2.0f;
    int which = 0;
#pragma unroll
    for (int j = 0; j < EACH; j++) larger(best, which, p[j], j * 32 + lane);
#pragma unroll
    for (int h = 16; h; h /= 2) {
      const float x_other = __shfl_xor_sync(0xffffffff, best, h);
      const int i_other = __shfl_xor_sync(0xffffffff, which, h);
      larger(best, which, x_other, i_other);
    }
#pragma unroll
    for (int j = 0; j < EACH; j++)
      if (which == j * 32 + lane) p[j] = -1.0f;
    shares += best;
    if (lane == k) own = which, own_share = best;
  }
  if (lane < CHOSEN) {
    chosen[token * CHOSEN + lane] = own;
    routed[token * CHOSEN + lane] = own_share / shares * load_input(scale, own);
  }
}
