// Which experts lie in a layer's slots, decided on the device, and the copies that follow from it.
//
// Macros: EXPERTS and SLOTS of a layer, for `assign_slots`; THREADS; SHIFT and UNIT of a score, see offload/slots.py,
// whose torch twin gives the same slots, copies and counts.

#include "common/ptx.cuh"

// One CTA. topk_ids (pairs,), numbers that are no expert's included; of the layer slot_of (EXPERTS,), expert_in
// (SLOTS,), both -1 for none, and scores (EXPERTS,). A layer's slots begin at `first` of all slots, those for all
// layers' overflow at `scratch`. Writes slots (pairs,), copies (count, 2) of an expert and its slot, count, and adds to
// counters the experts wanted and those that are missing. There must be a slot or a scratch slot for each expert
// topk_ids.
extern "C" __global__ __launch_bounds__(THREADS) void assign_slots(const i64* topk_ids, i64 pairs, i64 first,
                                                                   i64 scratch, int* slot_of, int* expert_in,
                                                                   int* scores, i64* slots, int* copies, int* count,
                                                                   i64* counters) {
    __shared__ int needed[EXPERTS], missing[EXPERTS], score[EXPERTS], target[EXPERTS], held[SLOTS], key[SLOTS],
        victims[SLOTS];
    constexpr int BUSY = 0x7fffffff;
    const int t = threadIdx.x;
    for (int e = t; e < EXPERTS; e += THREADS) needed[e] = 0, target[e] = slot_of[e];
    for (int s = t; s < SLOTS; s += THREADS) held[s] = expert_in[s];
    __syncthreads();  // `needed` is cleared
    for (i64 p = t; p < pairs; p += THREADS)
        if (topk_ids[p] >= 0 && topk_ids[p] < EXPERTS) needed[topk_ids[p]] = 1;
    __syncthreads();  // `needed` is known
    for (int e = t; e < EXPERTS; e += THREADS) {
        const int before = scores[e];
        scores[e] = score[e] = before - ((before + (1 << SHIFT) - 1) >> SHIFT) + needed[e] * UNIT;
        missing[e] = needed[e] && target[e] < 0;
    }
    __syncthreads();  // scores are brought up to date
    for (int s = t; s < SLOTS; s += THREADS) key[s] = held[s] < 0 ? -1 : needed[held[s]] ? BUSY : score[held[s]];
    __syncthreads();  // every slot's key is there
    for (int s = t; s < SLOTS; s += THREADS) {
        int rank = 0;
        for (int other = 0; other < SLOTS; other++) rank += key[other] < key[s] || (key[other] == key[s] && other < s);
        if (key[s] != BUSY) victims[rank] = s;
    }
    __syncthreads();  // the order of victims is known
    for (int e = t; e < EXPERTS; e += THREADS) {
        if (!missing[e]) {
            target[e] += (int)first;
            continue;
        }
        int turn = 0, free = 0;
        for (int other = 0; other < e; other++) turn += missing[other];
        for (int s = 0; s < SLOTS; s++) free += key[s] != BUSY;
        const int victim = turn < free ? victims[turn] : -1;
        target[e] = victim < 0 ? (int)scratch + turn - free : (int)first + victim;
        copies[2 * turn] = e;
        copies[2 * turn + 1] = target[e];
        if (victim < 0) continue;
        if (held[victim] >= 0) slot_of[held[victim]] = -1;
        slot_of[e] = victim;
        expert_in[victim] = e;
    }
    __syncthreads();  // every expert's target is known
    for (i64 p = t; p < pairs; p += THREADS)
        slots[p] = topk_ids[p] >= 0 && topk_ids[p] < EXPERTS ? target[topk_ids[p]] : -1;
    if (t == 0) {
        int wanted = 0, absent = 0;
        for (int e = 0; e < EXPERTS; e++) wanted += needed[e], absent += missing[e];
        *count = absent;
        counters[0] += wanted;
        counters[1] += absent;
    }
}

// One CTA. Of experts that may be needed soon, topk_ids (pairs,), the likeliest first, those that have no slot get one,
// at most `most`: that of the expert of the smallest score which is not among them. Scores stay, and scratch is not
// touched, as other layers use it meanwhile. Writes copies and count.
extern "C" __global__ __launch_bounds__(THREADS) void assign_prefetch(const i64* topk_ids, i64 pairs, i64 first,
                                                                      int* slot_of, int* expert_in, const int* scores,
                                                                      i64 most, int* copies, int* count) {
    __shared__ int named[EXPERTS], key[SLOTS], victims[SLOTS];
    constexpr int BUSY = 0x7fffffff;
    const int t = threadIdx.x;
    for (int e = t; e < EXPERTS; e += THREADS) named[e] = 0;
    __syncthreads();  // `named` is cleared
    for (i64 p = t; p < pairs; p += THREADS)
        if (topk_ids[p] >= 0 && topk_ids[p] < EXPERTS) named[topk_ids[p]] = 1;
    __syncthreads();  // `named` is known
    for (int s = t; s < SLOTS; s += THREADS)
        key[s] = expert_in[s] < 0 ? -1 : named[expert_in[s]] ? BUSY : scores[expert_in[s]];
    __syncthreads();  // every slot's key is there
    for (int s = t; s < SLOTS; s += THREADS) {
        int rank = 0;
        for (int other = 0; other < SLOTS; other++) rank += key[other] < key[s] || (key[other] == key[s] && other < s);
        if (key[s] != BUSY) victims[rank] = s;
    }
    __syncthreads();  // the order of victims is known
    if (t > 0) return;
    int turn = 0, free = 0;
    for (int s = 0; s < SLOTS; s++) free += key[s] != BUSY;
    for (i64 p = 0; p < pairs && turn < most && turn < free; p++) {
        if (topk_ids[p] < 0 || topk_ids[p] >= EXPERTS || slot_of[topk_ids[p]] >= 0) continue;
        const int expert = (int)topk_ids[p], slot = victims[turn];
        if (expert_in[slot] >= 0) slot_of[expert_in[slot]] = -1;
        slot_of[expert] = slot;
        expert_in[slot] = expert;
        copies[2 * turn] = expert;
        copies[2 * turn + 1] = (int)first + slot;
        turn++;
    }
    *count = turn;
}

// Copies records, `words` times 16 bytes each, from host memory into slots, all CTAs together: a piece is what a CTA
// has on its way at once. Adds the bytes to fetched.
__device__ void copy_records(const uint4* records, uint4* slots, const int* copies, const int* count, i64 words,
                             i64* fetched) {
    constexpr int AHEAD = 4, PIECE = AHEAD * THREADS;
    const i64 pieces = (words + PIECE - 1) / PIECE, all = *count * pieces;
    for (i64 piece = blockIdx.x; piece < all; piece += gridDim.x) {
        const i64 copy = piece / pieces, begin = piece % pieces * PIECE + threadIdx.x;
        const uint4* from = records + copies[2 * copy] * words;
        uint4* to = slots + copies[2 * copy + 1] * words;
        uint4 words_of[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            if (begin + i * THREADS < words) words_of[i] = from[begin + i * THREADS];
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            if (begin + i * THREADS < words) to[begin + i * THREADS] = words_of[i];
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) *fetched += *count * words * 16;
}

extern "C" __global__ __launch_bounds__(THREADS) void fetch(const uint4* records, uint4* slots, const int* copies,
                                                            const int* count, i64 words, i64* fetched) {
    copy_records(records, slots, copies, count, words, fetched);
}

// The same by another name, so that profiles tell what was guessed from what was needed.
extern "C" __global__ __launch_bounds__(THREADS) void fetch_ahead(const uint4* records, uint4* slots, const int* copies,
                                                                  const int* count, i64 words, i64* fetched) {
    copy_records(records, slots, copies, count, words, fetched);
}
