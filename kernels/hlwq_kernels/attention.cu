// Attention of one token a sequence over its coded cache: codes are read once, at their true width, and never decoded to
// memory. See attention_torch.py for what comes out.
//
// A CTA takes a stretch of the tokens of a key/value head, and up to 16 of the query heads that share it. It rotates the
// queries itself, so that keys need not be. A team of warps takes 16 tokens a warp at a time: keys are the first operand
// of an MMA whose second are the queries, then values, two tokens at once, are the first of one whose second are the
// softmax's weights. Each warp of a team sums another part of the values' dimensions. The sums stay rotated; a second
// kernel (attention_merge.cu) adds those of all stretches and rotates them back. The first CTAs take the exact tokens.
//
// The softmax runs along: weights are 2^(logit + log2 of the value's scale - reference), and the reference of a query is
// raised only when a token passes it by 2^HEADROOM, so that sums are seldom faded. float16 holds such weights.
//
// Macros, beside those of lookup.cu (BITS and COPIES are those of keys) and rotation.cu (N is the keys'): V_BITS;
// V_COPIES; ONE_TABLE, whether keys and values have the same; K_DIM and V_DIM, values of a head; K_STORED and V_STORED,
// as stored; GROUP, query heads a key/value head; MASKED; CAPPED; CTAS a multiprocessor; SHARED, its bytes.

constexpr int TILES = GROUP <= 8 ? 1 : 2, ROWS = 8 * TILES;  // queries a CTA takes
constexpr int LANE = K_STORED % 128 == 64 ? 16 : 32, CHUNK = 4 * LANE, CHUNKS = (K_STORED + CHUNK - 1) / CHUNK;
constexpr int SLICE = V_STORED <= 64 ? 8 : 16, PART = 8 * SLICE, TEAM = (V_STORED + PART - 1) / PART;
constexpr int WARPS = THREADS / 32, TEAMS = WARPS / TEAM, TILE = 16 * TEAM, STEPS = SLICE / 2;
constexpr int K_AHEAD = CHUNKS % 2 ? 1 : 2, V_AHEAD = TEAM % 2 ? 1 : 2;  // blocks on their way
constexpr bool HELD = CHUNKS == 1 && LANE * TILES <= 32;                 // whether queries stay in registers
constexpr int EXACT = K_DIM > 256 || V_DIM > 256 ? 16 : 32;              // exact tokens a CTA takes
constexpr int SUMS = PART + 4;                                           // floats a row of sums takes: no bank conflicts
constexpr float LOG2E = 1.4426950408889634f, HEADROOM = 8.0f, LOWEST = -1e30f;
constexpr u32 HIDDEN = 256;  // in place of the scale of a value that may not be seen

static_assert(WARPS % TEAM == 0, "whole teams");

// Where in shared memory what lies, in bytes. First the tables, the larger one at a multiple of its size; later the sums.
constexpr int K_TABLE_BYTES = 4 * ENTRIES * COPIES, V_TABLE_BYTES = 4 * Width<V_BITS>::ENTRIES * V_COPIES;
constexpr int LARGER_TABLE = K_TABLE_BYTES > V_TABLE_BYTES ? K_TABLE_BYTES : V_TABLE_BYTES;
constexpr int SUMS_BYTES = 4 * WARPS * 8 * SUMS;
constexpr int FIRST_BYTES = LARGER_TABLE + K_TABLE_BYTES + (ONE_TABLE ? 0 : V_TABLE_BYTES);
constexpr int STEPS_AT = FIRST_BYTES > SUMS_BYTES ? FIRST_BYTES : SUMS_BYTES, SIZES_AT = STEPS_AT + 1024;
constexpr int REFERENCES_AT = SIZES_AT + 64, WEIGHTS_AT = REFERENCES_AT + 4 * WARPS * ROWS;
constexpr int RAISED_AT = WEIGHTS_AT + 4 * WARPS * ROWS, SHARES_AT = RAISED_AT + 16 * WARPS;
constexpr int QUERIES_AT = SHARES_AT + (TEAM > 1 ? WARPS * TILES * 256 : 0);

static_assert(SHARED >= QUERIES_AT + ROWS * CHUNKS * CHUNK * 2 && SHARED >= 4 * ROWS * (K_DIM + EXACT), "room");

struct Tables {
  u32 *keys, *values;
};

__device__ __forceinline__ Tables tables_in(u8* shared) {
  u8* first = shared + (LARGER_TABLE - shared_address(shared) % LARGER_TABLE) % LARGER_TABLE;
  u8* second = first + (ONE_TABLE ? 0 : LARGER_TABLE);
  return {(u32*)(K_TABLE_BYTES == LARGER_TABLE ? first : second), (u32*)(K_TABLE_BYTES == LARGER_TABLE ? second : first)};
}

struct Cache {  // of one key/value head
  const void *query, *k_exact, *v_exact;
  const u8 *k_codes, *k_scales, *v_codes, *v_scales, *mask;
  int coded, exact, ring, capacity;
  float scaling, softcap;
};

__device__ __forceinline__ bool visible(const Cache& c, int token) { return !MASKED || c.mask[token] != 0; }

__device__ __forceinline__ float minus_infinity() { return __uint_as_float(0xff800000u); }

// In units of ln 2.
__device__ __forceinline__ float logit(float s, float softcap) {
  if (CAPPED) return softcap * LOG2E * (1.0f - 2.0f / (exp2_of(2.0f * LOG2E / softcap * s) + 1.0f));
  return s * LOG2E;
}

// The queries, rotated, each divided by its largest value, where `multiply` wants them: of lane l in quad (t, c, x), the
// values from c * CHUNK + l % 4 * LANE + 8 x on of query 8 t + l / 4.
__device__ __forceinline__ void rotate_queries(u16* queries, float* sizes, const void* query, int rows) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int r = warp; r < ROWS; r += WARPS) {
    float v[K_STORED / N][VALUES], size = 0.0f;
#pragma unroll
    for (int b = 0; b < K_STORED / N; b++) {
      load_block(v[b], query, r < rows ? r : 0, K_DIM, b, lane);
      rotate_block(v[b], lane);
      size = fmaxf(size, largest_in_warp(v[b]));
    }
    const float inverse = r < rows && size > 0.0f ? 1.0f / size : 0.0f;
    if (lane == 0) sizes[r] = r < rows ? size * ROOT : 0.0f;
#pragma unroll
    for (int i = 0; i < CHUNKS * CHUNK / 32; i++) {
      const int d = i * 32 + lane;
      const int quad = (r / 8 * CHUNKS + d / CHUNK) * (LANE / 8) + d % LANE / 8, to = r % 8 * 4 + d % CHUNK / LANE;
      const float value = i < K_STORED / 32 ? v[i * 32 % K_STORED / N][i % VALUES] * inverse : 0.0f;
      queries[(quad * 32 + to) * 8 + d % 8] = float_to_half(value);
    }
  }
}

// What a lane multiplies with codes: its values of its query in each tile.
__device__ __forceinline__ void load_queries(u32 (*q)[LANE / 2], const uint4* queries, int chunk) {
#pragma unroll
  for (int t = 0; t < TILES; t++)
#pragma unroll
    for (int x = 0; x < LANE / 8; x++) {
      const uint4 v = queries[((t * CHUNKS + chunk) * (LANE / 8) + x) * 32 + threadIdx.x % 32];
      q[t][4 * x] = v.x, q[t][4 * x + 1] = v.y, q[t][4 * x + 2] = v.z, q[t][4 * x + 3] = v.w;
    }
}

template <int P>
__device__ __forceinline__ void score(float (*s)[4], const PlanesOf<BITS>* w, const u32 (*q)[LANE / 2], u32 copy) {
  const u32 a0 = along<P, COPIES>(w[0], copy), a1 = along<P, COPIES>(w[1], copy);
  const u32 a2 = along<P + 1, COPIES>(w[0], copy), a3 = along<P + 1, COPIES>(w[1], copy);
#pragma unroll
  for (int t = 0; t < TILES; t++) multiply(s[t], a0, a1, a2, a3, q[t][P], q[t][P + 1]);
  if constexpr (P + 2 < LANE / 2) score<P + 2>(s, w, q, copy);
}

template <int M>
__device__ __forceinline__ void gather(
    float (*sums)[TILES][4], const Crossed<V_BITS>* w, const u32 (*shares)[2], u32 copy) {
  const u32 a0 = across<2 * M, V_COPIES>(w[0], copy), a1 = across<2 * M + 1, V_COPIES>(w[0], copy);
  const u32 a2 = across<2 * M, V_COPIES>(w[1], copy), a3 = across<2 * M + 1, V_COPIES>(w[1], copy);
#pragma unroll
  for (int t = 0; t < TILES; t++) multiply(sums[M][t], a0, a1, a2, a3, shares[t][0], shares[t][1]);
  if constexpr (M + 1 < STEPS) gather<M + 1>(sums, w, shares, copy);
}

// What a team's warps tell each other.
struct Exchange {
  float* raised;  // (TEAM,): whether a warp has tokens that pass the reference
  float* highest;  // (TEAM, ROWS)
  uint2* shares;  // (TEAM, TILES, 32)
  int barrier;
};

// A warp's share of a team's work, from tile to tile.
struct Worker {
  Reader<BITS, LANE, K_STORED> keys;
  Reader<V_BITS, SLICE, V_STORED> values;
  PlanesOf<BITS> k[K_AHEAD][2];
  PlanesOf<V_BITS> v[V_AHEAD][4];
  u32 k_mark[2], v_mark[2];
  float sums[STEPS][TILES][4], reference[TILES][2], weight[TILES][2], factor[TILES][2];
  bool k_mine, v_mine;  // whether this lane's slices are within the head
  int lane, member;

  // The tile's own 16 keys of chunk `c`; `left` tokens of the cache's capacity are there, from the warp's own on.
  __device__ __forceinline__ void load_keys(int ahead, int c, int left) {
    const bool inside = K_STORED % CHUNK == 0 || c * CHUNK + lane % 4 * LANE < K_STORED;
    if (left >= 16 && K_STORED % CHUNK == 0) {
      keys.read(k[ahead][0], 0, c * CHUNK);
      keys.read(k[ahead][1], 8, c * CHUNK);
    } else {
#pragma unroll
      for (int r = 0; r < 2; r++) {
        k[ahead][r] = {};
        if (inside && lane / 4 + 8 * r < left) keys.read(k[ahead][r], 8 * r, c * CHUNK);
      }
    }
  }

  // 16 values of the team's, `block` of them further on.
  __device__ __forceinline__ void load_values(int ahead, int block, int left) {
    if (left >= 16 * block + 16 && V_STORED % PART == 0) {
#pragma unroll
      for (int i = 0; i < 4; i++) values.read(v[ahead][i], 16 * block + i % 2 + i / 2 * 8, 0);
    } else {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int row = 16 * block + i % 2 + i / 2 * 8;
        v[ahead][i] = {};
        if (v_mine && row + lane % 4 * 2 < left) values.read(v[ahead][i], row, 0);
      }
    }
  }

  __device__ __forceinline__ void load_marks(const Cache& c, int token) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const bool there = token + 8 * r < c.coded;
      const bool seen = there && visible(c, token + 8 * r);
      k_mark[r] = there ? __ldg(c.k_scales + token + 8 * r) : 0;
      v_mark[r] = seen ? __ldg(c.v_scales + token + 8 * r) : HIDDEN;
    }
  }

  // From products with keys to the weights that values are multiplied with.
  __device__ __forceinline__ void weigh(
      float (*s)[4], u32 (*shares)[2], const Cache& c, const float* steps, const Exchange& team) {
    float inverse[2];
    bool counted[2];
    bool raises = false;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const bool seen = v_mark[r] != HIDDEN;
      const u32 mark = seen ? v_mark[r] : 128;
      const float scale = steps[k_mark[r]];
      const float size = mark == 255 ? steps[255] : mark ? (float)((int)mark - 128) * 0.125f : -16.0f;
      inverse[r] = exp2_of(-size);
      counted[r] = mark != 0;
#pragma unroll
      for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const float l = logit(s[t][2 * r + h] * (factor[t][h] * scale), c.softcap) + size;
          s[t][2 * r + h] = seen ? l : minus_infinity();
          raises |= s[t][2 * r + h] > reference[t][h] + HEADROOM;
        }
    }
    raise(s, raises, team);
#pragma unroll
    for (int t = 0; t < TILES; t++) {
      float u[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        u[i] = exp2_of(s[t][i] - reference[t][i % 2]);
        weight[t][i % 2] += u[i] * inverse[i / 2];
        if (!counted[i / 2]) u[i] = 0.0f;
      }
      shares[t][0] = transposed(two_halves(u[0], u[1]));
      shares[t][1] = transposed(two_halves(u[2], u[3]));
    }
  }

  // Raise the references of the whole team to the highest there is, where any of its tokens passes one by too much.
  __device__ __forceinline__ void raise(const float (*s)[4], bool raises, const Exchange& team) {
    raises = __any_sync(0xffffffff, raises);
    float highest[TILES][2];
    if (raises)
#pragma unroll
      for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
          float top = fmaxf(s[t][h], s[t][2 + h]);
#pragma unroll
          for (int m = 4; m < 32; m *= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, m));
          highest[t][h] = top;
        }
    if constexpr (TEAM > 1) {
      if (lane == 0) team.raised[member] = raises ? 1.0f : 0.0f;
      if (raises && lane < 4)
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
          for (int h = 0; h < 2; h++) team.highest[member * ROWS + 8 * t + 2 * lane + h] = highest[t][h];
      meet_at(team.barrier, 32 * TEAM);
      raises = false;
#pragma unroll
      for (int m = 0; m < TEAM; m++) {
        const bool its = team.raised[m] != 0.0f;
        if (its)
#pragma unroll
          for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
              const float top = team.highest[m * ROWS + 8 * t + lane % 4 * 2 + h];
              highest[t][h] = raises ? fmaxf(highest[t][h], top) : top;
            }
        raises |= its;
      }
    }
    if (!raises) return;
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const float top = fmaxf(reference[t][h], highest[t][h]), fade = exp2_of(reference[t][h] - top);
        reference[t][h] = top;
        weight[t][h] *= fade;
#pragma unroll
        for (int m = 0; m < STEPS; m++) sums[m][t][h] *= fade, sums[m][t][2 + h] *= fade;
      }
  }
};

// A stretch of coded tokens; leaves what each warp found in shared memory, sums of 8 queries at a time.
__device__ __forceinline__ void read_codes(
    u8* shared, const Cache& c, int begin, int end, int rows, float* sums, float* highests, float* weights_out,
    i64 stride) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, member = warp % TEAM, team = warp / TEAM;
  const float* steps = (const float*)(shared + STEPS_AT);
  float* sizes = (float*)(shared + SIZES_AT);
  uint4* queries = (uint4*)(shared + QUERIES_AT);
  const Exchange exchange = {
      (float*)(shared + RAISED_AT) + team * TEAM, (float*)(shared + REFERENCES_AT) + team * TEAM * ROWS,
      (uint2*)(shared + SHARES_AT) + team * TEAM * TILES * 32, 1 + team};
  // Through a shuffle, so that the compiler does not know its bits: it would mask them anew for every pair.
  const u32 spread = __shfl_sync(0xffffffff, lane, lane);
  const Tables tables = tables_in(shared);
  const u32 k_copy = shared_address(tables.keys) + spread % COPIES * 4;
  const u32 v_copy = shared_address(tables.values) + spread % V_COPIES * 4;
  const int slice = member * PART + lane / 4 * SLICE, first = begin + team * TILE;
  const bool v_mine = slice < V_STORED;
  const i64 own = first + 16 * member + lane / 4, theirs = first + lane % 4 * 2;
  Worker w = {
      {c.k_codes + own * Reader<BITS, LANE, K_STORED>::ROW, lane % 4 * LANE},
      {c.v_codes + theirs * Reader<V_BITS, SLICE, V_STORED>::ROW, v_mine ? slice : 0}};
  w.lane = lane, w.member = member, w.v_mine = v_mine;
  int start = first;  // the team's tile begins here
  if (start < end) {
#pragma unroll
    for (int i = 0; i < K_AHEAD; i++) w.load_keys(i, i, c.capacity - start - 16 * member);
#pragma unroll
    for (int i = 0; i < V_AHEAD; i++) w.load_values(i, i, c.capacity - start);
    w.load_marks(c, start + 16 * member + lane / 4);
  }
  rotate_queries((u16*)queries, sizes, c.query, rows);  // while the first codes are on their way
  __syncthreads();
#pragma unroll
  for (int t = 0; t < TILES; t++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      w.reference[t][h] = LOWEST, w.weight[t][h] = 0.0f;
      w.factor[t][h] = sizes[8 * t + lane % 4 * 2 + h] * c.scaling;
#pragma unroll
      for (int m = 0; m < STEPS; m++) w.sums[m][t][h] = w.sums[m][t][2 + h] = 0.0f;
    }
  u32 q[TILES][LANE / 2];
  if (HELD) load_queries(q, queries, 0);
  for (; start < end; start += TEAMS * TILE) {
    const int next = start + TEAMS * TILE;
    float s[TILES][4] = {};
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
      if (!HELD) load_queries(q, queries, i);
#pragma unroll
      for (int r = 0; r < 2; r++) join<LANE>(w.k[i % K_AHEAD][r]);
      score<0>(s, w.k[i % K_AHEAD], q, k_copy);
      if (i + K_AHEAD < CHUNKS) {
        w.load_keys(i % K_AHEAD, i + K_AHEAD, c.capacity - start - 16 * member);
      } else {
        if (i + K_AHEAD == CHUNKS) w.keys.go_on(TEAMS * TILE);
        if (next < end) w.load_keys(i % K_AHEAD, i + K_AHEAD - CHUNKS, c.capacity - next - 16 * member);
      }
    }
    u32 shares[TILES][2];
    w.weigh(s, shares, c, steps, exchange);
    if (next < end) w.load_marks(c, next + 16 * member + lane / 4);
    if constexpr (TEAM > 1) {
#pragma unroll
      for (int t = 0; t < TILES; t++)
        exchange.shares[(member * TILES + t) * 32 + lane] = make_uint2(shares[t][0], shares[t][1]);
      meet_at(exchange.barrier, 32 * TEAM);
    }
#pragma unroll
    for (int i = 0; i < TEAM; i++) {
      if constexpr (TEAM > 1)
#pragma unroll
        for (int t = 0; t < TILES; t++) {
          const uint2 its = exchange.shares[(i * TILES + t) * 32 + lane];
          shares[t][0] = its.x, shares[t][1] = its.y;
        }
      Crossed<V_BITS> pairs[2];
      cross<SLICE>(pairs[0], w.v[i % V_AHEAD][0], w.v[i % V_AHEAD][1]);
      cross<SLICE>(pairs[1], w.v[i % V_AHEAD][2], w.v[i % V_AHEAD][3]);
      gather<0>(w.sums, pairs, shares, v_copy);
      if (i + V_AHEAD < TEAM) {
        w.load_values(i % V_AHEAD, i + V_AHEAD, c.capacity - start);
      } else {
        if (i + V_AHEAD == TEAM) w.values.go_on(TEAMS * TILE);
        if (next < end) w.load_values(i % V_AHEAD, i + V_AHEAD - TEAM, c.capacity - next);
      }
    }
  }
  float *references = (float*)(shared + REFERENCES_AT), *all_weights = (float*)(shared + WEIGHTS_AT);
  __syncthreads();
#pragma unroll
  for (int t = 0; t < TILES; t++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float weight = w.weight[t][h];
#pragma unroll
      for (int m = 4; m < 32; m *= 2) weight += __shfl_xor_sync(0xffffffff, weight, m);
      if (lane < 4) {
        references[warp * ROWS + 8 * t + 2 * lane + h] = w.reference[t][h];
        all_weights[warp * ROWS + 8 * t + 2 * lane + h] = weight;
      }
    }
#pragma unroll
  for (int t = 0; t < TILES; t++) {
    float* mine = (float*)shared + (warp * 8 + lane % 4 * 2) * SUMS + lane / 4 * 2;
#pragma unroll
    for (int m = 0; m < STEPS; m++)
#pragma unroll
      for (int h = 0; h < 2; h++) {  // dimensions 2 m and 2 m + 1 of the lane's slice
        mine[h * SUMS + m * 16] = w.sums[m][t][h];
        mine[h * SUMS + m * 16 + 1] = w.sums[m][t][2 + h];
      }
    __syncthreads();
    const int here = min(8, rows - 8 * t);
    for (int i = threadIdx.x; i < here * V_STORED; i += THREADS) {
      const int r = i / V_STORED, d = i % V_STORED, part = d / PART, at = d % SLICE / 2 * 16 + d % PART / SLICE * 2 + d % 2;
      float top = LOWEST, sum = 0.0f;
#pragma unroll
      for (int k = 0; k < TEAMS; k++) top = fmaxf(top, references[k * TEAM * ROWS + 8 * t + r]);
#pragma unroll
      for (int k = 0; k < TEAMS; k++)
        sum += exp2_of(references[k * TEAM * ROWS + 8 * t + r] - top)
               * ((float*)shared)[((k * TEAM + part) * 8 + r) * SUMS + at];
      sums[(8 * t + r) * stride * V_STORED + d] = sum;
      if (d == 0) {
        float weight = 0.0f;
        for (int k = 0; k < WARPS; k++)
          weight += exp2_of(references[k * ROWS + 8 * t + r] - top) * all_weights[k * ROWS + 8 * t + r];
        highests[(8 * t + r) * stride] = top;
        weights_out[(8 * t + r) * stride] = weight;
      }
    }
    __syncthreads();
  }
}

// Up to EXACT of the exact tokens, plainly.
__device__ __forceinline__ void read_exact(
    float* shared, const Cache& c, int begin, int count, int rows, float* sums, float* highests, float* weights_out,
    i64 stride) {
  constexpr int OWN = (EXACT + WARPS - 1) / WARPS, HELD_KEYS = (K_DIM + 31) / 32;
  constexpr int HELD_VALUES = (V_STORED + THREADS - 1) / THREADS;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float *queries = shared, *shares = shared + ROWS * K_DIM;
  auto slot = [&](int e) { return (i64)(c.ring ? (c.coded + begin + e) % c.ring : begin + e); };
  float k[OWN][HELD_KEYS], v[HELD_VALUES][EXACT];  // all on their way at once
#pragma unroll
  for (int i = 0; i < OWN; i++)
#pragma unroll
    for (int j = 0; j < HELD_KEYS; j++) {
      const int e = warp + i * WARPS, d = j * 32 + lane;
      k[i][j] = e < count && d < K_DIM ? load_input(c.k_exact, slot(e) * K_DIM + d) : 0.0f;
    }
#pragma unroll
  for (int i = 0; i < HELD_VALUES; i++)
#pragma unroll
    for (int e = 0; e < EXACT; e++) {
      const int d = i * THREADS + threadIdx.x;
      v[i][e] = e < count && d < V_DIM ? load_input(c.v_exact, slot(e) * V_DIM + d) : 0.0f;
    }
  for (int i = threadIdx.x; i < rows * K_DIM; i += THREADS) queries[i] = load_input(c.query, i);
  __syncthreads();
#pragma unroll
  for (int i = 0; i < OWN; i++) {
    const int e = warp + i * WARPS;
    if (e >= count) break;
    const bool seen = visible(c, c.coded + begin + e);
    for (int r = 0; r < rows; r++) {
      float s = 0.0f;
#pragma unroll
      for (int j = 0; j < HELD_KEYS; j++)
        if (j * 32 + lane < K_DIM) s += k[i][j] * queries[r * K_DIM + j * 32 + lane];
#pragma unroll
      for (int m = 1; m < 32; m *= 2) s += __shfl_xor_sync(0xffffffff, s, m);
      if (lane == 0) shares[r * EXACT + e] = seen ? logit(s * c.scaling, c.softcap) : minus_infinity();
    }
  }
  __syncthreads();
  for (int r = warp; r < rows; r += WARPS) {
    const float l = lane < count ? shares[r * EXACT + lane] : minus_infinity();
    float top = fmaxf(l, LOWEST);
#pragma unroll
    for (int m = 1; m < 32; m *= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, m));
    const float share = exp2_of(l - top);
    float weight = share;
#pragma unroll
    for (int m = 1; m < 32; m *= 2) weight += __shfl_xor_sync(0xffffffff, weight, m);
    if (lane < EXACT) shares[r * EXACT + lane] = share;
    if (lane == 0) highests[r * stride] = top, weights_out[r * stride] = weight;
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < HELD_VALUES; i++) {
    const int d = i * THREADS + threadIdx.x;
    for (int r = 0; r < rows; r++) {
      float sum = 0.0f;
#pragma unroll
      for (int e = 0; e < EXACT; e += 4) {
        const float4 four = *(const float4*)(shares + r * EXACT + e);  // zeros from `count` on
        sum += four.x * v[i][e] + four.y * v[i][e + 1] + four.z * v[i][e + 2] + four.w * v[i][e + 3];
      }
      if (d < V_STORED) sums[r * stride * V_STORED + d] = sum;
    }
  }
}

// query (sequences, heads * GROUP, K_DIM); codes (sequences * heads, capacity, bytes), scales likewise; centroids float32;
// steps float32 (256,); exact tokens: heads `k_stride` and `v_stride` values apart, token e in place e, or with a ring in
// place (coded + e) % ring; mask u8 (sequences, mask_stride) or null; lengths null, or the numbers of coded and exact
// tokens, which then count and not the arguments. sums float32 (query heads, parts, V_STORED), highests and weights
// (query heads, parts): of each part, a CTA's tokens; of one without tokens no sums.
extern "C" __global__ __launch_bounds__(THREADS, CTAS) void attend(
    const void* query, const u8* k_codes, const u8* k_scales, const u8* v_codes, const u8* v_scales,
    const float* k_centroids, const float* v_centroids, const float* steps, const void* k_exact, const void* v_exact,
    const u8* mask, const i64* lengths, i64 coded, i64 exact, i64 ring, i64 capacity, i64 heads, i64 k_stride,
    i64 v_stride, i64 mask_stride, i64 exact_parts, float scaling, float softcap, float* sums, float* highests,
    float* weights_out) {
  extern __shared__ uint4 arena[];
  u8* shared = (u8*)arena;
  const i64 head = blockIdx.y, parts = gridDim.x, part = blockIdx.x, row = head * GROUP + blockIdx.z * ROWS;
  const int rows = min(ROWS, GROUP - (int)blockIdx.z * ROWS);
  constexpr int ITEM = INPUT == 0 ? 4 : 2;
  let_the_next_kernel_start();
  const bool tabled = part >= exact_parts;
  if (tabled) {
    const float own = own_centroid<BITS>(k_centroids), step = steps[threadIdx.x % 256];
    const Tables tables = tables_in(shared);
    make_table<BITS, COPIES>(tables.keys, k_centroids, own);
    if (!ONE_TABLE) make_table<V_BITS, V_COPIES>(tables.values, v_centroids, own_centroid<V_BITS>(v_centroids));
    ((float*)(shared + STEPS_AT))[threadIdx.x % 256] = step;
    for (int k = THREADS + threadIdx.x; k < 256; k += THREADS) ((float*)(shared + STEPS_AT))[k] = steps[k];
  }
  wait_for_the_kernel_before();
  if (lengths) coded = lengths[0], exact = lengths[1];
  const Cache c = {
      (const u8*)query + row * K_DIM * ITEM, (const u8*)k_exact + head * k_stride * ITEM,
      (const u8*)v_exact + head * v_stride * ITEM, k_codes + head * capacity * (K_STORED / 8 * BITS),
      k_scales + head * capacity, v_codes + head * capacity * (V_STORED / 8 * V_BITS), v_scales + head * capacity,
      mask + head / heads * mask_stride, (int)coded, (int)exact, (int)ring, (int)capacity, scaling, softcap};
  const i64 at = row * parts + part;
  sums += at * V_STORED, highests += at, weights_out += at;
  int begin, end;
  if (tabled) {
    constexpr int STEP = TEAMS * TILE;
    const int all = (c.coded + STEP - 1) / STEP, splits = (int)(parts - exact_parts), each = (all + splits - 1) / splits;
    begin = (int)(part - exact_parts) * each * STEP, end = min(c.coded, begin + each * STEP);
  } else {
    begin = (int)part * EXACT, end = min(c.exact, begin + EXACT);
  }
  if (begin >= end) {
    for (int r = threadIdx.x; r < rows; r += THREADS) highests[r * parts] = LOWEST, weights_out[r * parts] = 0.0f;
  } else if (tabled) {
    read_codes(shared, c, begin, end, rows, sums, highests, weights_out, parts);
  } else {
    read_exact((float*)shared, c, begin, end - begin, rows, sums, highests, weights_out, parts);
  }
}
