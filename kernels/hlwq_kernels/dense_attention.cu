// Attention of one new token a sequence over a dense cache, split along the cache. A CTA takes some slots of one key/value
// head for some of its query heads, a warp one slot after the other; the CTA that comes last of a head's joins their sums.
//
// Joined behind lookup.cu for its types; INPUT, of queries, cache and mask, is OUTPUT, and has 16 bits.
//
// Macros: SIZE of a head, a multiple of 64, at most 512; GROUP, query heads of a CTA; THREADS.

constexpr int WARPS = THREADS / 32, EACH = SIZE / 32, AHEAD = SIZE >= 512 ? 2 : 4;
constexpr int WIDE = EACH < 8 ? EACH : 8;  // values that are loaded at once: lane l holds values l * WIDE + ..., then SIZE / 2 further
constexpr float LOWEST = -1e30f;

struct Row {
  float v[EACH];
};

__device__ __forceinline__ int place(int j, int lane) { return j / WIDE * 32 * WIDE + lane * WIDE + j % WIDE; }

__device__ __forceinline__ void load_row(Row& row, const u16* x, int lane) {
#pragma unroll
  for (int j = 0; j < EACH; j += WIDE) {
    __align__(16) u16 part[WIDE];
    const u16* at = x + place(j, lane);
    if constexpr (WIDE == 8) *(uint4*)part = *(const uint4*)at;
    if constexpr (WIDE == 4) *(uint2*)part = *(const uint2*)at;
    if constexpr (WIDE == 2) *(u32*)part = *(const u32*)at;
#pragma unroll
    for (int i = 0; i < WIDE; i++) row.v[j + i] = load_input(part, i);
  }
}

// query (rows, heads, SIZE); keys, values (rows, key heads, slots, SIZE), of which `length` slots count; mask (rows, length),
// added; parts float32 (rows, heads, gridDim.x, 2 + SIZE) and arrived (rows, gridDim.y), zeros, for the kernel's own use;
// y (rows, heads, SIZE). gridDim: parts, heads / GROUP, rows.
extern "C" __global__ __launch_bounds__(THREADS) void attend_dense(
    const u16* query, const u16* keys, const u16* values, i64 key_heads, i64 slots, i64 length, const void* mask,
    float scaling, float* parts, u32* arrived, void* y) {
  let_the_next_kernel_start();
  __shared__ float most_of[WARPS][GROUP], sum_of[WARPS][GROUP];
  __shared__ float row_of[WARPS][SIZE];
  __shared__ bool last;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const i64 row = blockIdx.z, heads = (i64)gridDim.y * GROUP, first_head = (i64)blockIdx.y * GROUP;
  const i64 key_head = first_head / (heads / key_heads);
  const u16* k = keys + (row * key_heads + key_head) * slots * SIZE;
  const u16* v = values + (row * key_heads + key_head) * slots * SIZE;
  const i64 per_cta = (length + gridDim.x - 1) / gridDim.x, begin = blockIdx.x * per_cta;
  const i64 end = begin + per_cta < length ? begin + per_cta : length;
  wait_for_the_kernel_before();
  Row q[GROUP], sums[GROUP] = {};
  float most[GROUP], sum[GROUP];
#pragma unroll
  for (int g = 0; g < GROUP; g++) {
    load_row(q[g], query + (row * heads + first_head + g) * SIZE, lane);
#pragma unroll
    for (int j = 0; j < EACH; j++) q[g].v[j] *= scaling;
    most[g] = LOWEST, sum[g] = 0.0f;
  }
  for (i64 at = begin + warp * AHEAD; at < end; at += WARPS * AHEAD) {
    Row some[AHEAD];
    float score[AHEAD][GROUP];
#pragma unroll
    for (int a = 0; a < AHEAD; a++) load_row(some[a], k + (at + a < end ? at + a : at) * SIZE, lane);
#pragma unroll
    for (int a = 0; a < AHEAD; a++) {
      const float added = at + a < end ? (mask ? load_input(mask, row * length + at + a) : 0.0f) : 2 * LOWEST;
#pragma unroll
      for (int g = 0; g < GROUP; g++) {
        float dot = 0.0f;
#pragma unroll
        for (int j = 0; j < EACH; j++) dot += q[g].v[j] * some[a].v[j];
#pragma unroll
        for (int h = 16; h; h /= 2) dot += __shfl_xor_sync(0xffffffff, dot, h);
        score[a][g] = fmaxf(dot + added, 2 * LOWEST);
      }
    }
#pragma unroll
    for (int a = 0; a < AHEAD; a++) load_row(some[a], v + (at + a < end ? at + a : at) * SIZE, lane);
#pragma unroll
    for (int g = 0; g < GROUP; g++) {
      float now = most[g];
#pragma unroll
      for (int a = 0; a < AHEAD; a++) now = fmaxf(now, score[a][g]);
      const float shrink = __expf(most[g] - now);
      most[g] = now, sum[g] *= shrink;
#pragma unroll
      for (int j = 0; j < EACH; j++) sums[g].v[j] *= shrink;
#pragma unroll
      for (int a = 0; a < AHEAD; a++) {
        const float p = __expf(score[a][g] - now);
        sum[g] += p;
#pragma unroll
        for (int j = 0; j < EACH; j++) sums[g].v[j] += p * some[a].v[j];
      }
    }
  }
  if (lane == 0)
    for (int g = 0; g < GROUP; g++) most_of[warp][g] = most[g], sum_of[warp][g] = sum[g];
  float* part = parts + ((row * heads + first_head) * gridDim.x + blockIdx.x) * (2 + SIZE);
#pragma unroll
  for (int g = 0; g < GROUP; g++) {
    __syncthreads();
    float now = LOWEST;
    for (int w = 0; w < WARPS; w++) now = fmaxf(now, most_of[w][g]);
    const float shrink = __expf(most[g] - now);
#pragma unroll
    for (int j = 0; j < EACH; j++) row_of[warp][place(j, lane)] = sums[g].v[j] * shrink;
    __syncthreads();
    float* to = part + g * gridDim.x * (2 + SIZE);
    for (int i = threadIdx.x; i < SIZE; i += THREADS) {
      float all = 0.0f;
      for (int w = 0; w < WARPS; w++) all += row_of[w][i];
      __stcg(to + 2 + i, all);
    }
    if (threadIdx.x == 0) {
      float all = 0.0f;
      for (int w = 0; w < WARPS; w++) all += sum_of[w][g] * __expf(most_of[w][g] - now);
      __stcg(to, now), __stcg(to + 1, all);
    }
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(arrived + row * gridDim.y + blockIdx.y, 1) == gridDim.x - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  if (threadIdx.x == 0) arrived[row * gridDim.y + blockIdx.y] = 0;
  for (int g = 0; g < GROUP; g++) {
    const float* of_head = parts + (row * heads + first_head + g) * gridDim.x * (2 + SIZE);
    float now = LOWEST, all = 0.0f;
    for (int p = 0; p < gridDim.x; p++) now = fmaxf(now, __ldcg(of_head + p * (2 + SIZE)));
    for (int p = 0; p < gridDim.x; p++)
      all += __ldcg(of_head + p * (2 + SIZE) + 1) * __expf(__ldcg(of_head + p * (2 + SIZE)) - now);
    for (int i = threadIdx.x; i < SIZE; i += THREADS) {
      float value = 0.0f;
      for (int p = 0; p < gridDim.x; p++)
        value += __ldcg(of_head + p * (2 + SIZE) + 2 + i) * __expf(__ldcg(of_head + p * (2 + SIZE)) - now);
      store(y, (row * heads + first_head + g) * SIZE + i, value / all);
    }
  }
}
