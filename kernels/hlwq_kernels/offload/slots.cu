// Which experts are in a layer's slots, decided on the device, and the copies that follow from that. The reference in
// offload/slots.py gives the same slots, copies and counts.
//
// Macros:
//   EXPERTS, SLOTS  of a layer, for the two that assign; they bound arrays in shared memory
//   THREADS         of a CTA
//   SHIFT, UNIT     of use counts: see offload/slots.py

#include "common/ptx.cuh"

// Assigns slots to the experts that a step needs. One CTA. Every expert in topk_ids must find a slot or a scratch slot.
//
// topk_ids:    (pairs,); ids that are not an expert's are allowed
// first:       the layer's first slot among all slots
// scratch:     the first of the scratch slots, which all layers share
// slot_of:     (EXPERTS,), the slot of each expert within the layer, -1 for none; updated
// expert_in:   (SLOTS,), the expert in each slot, -1 for none; updated
// use_counts:  (EXPERTS,); updated
// slots:       (pairs,), written: the slot of each pair among all slots, -1 for no expert
// copies:      (count, 2), written: missing experts, ascending, and their slots
// count:       (1,), written: missing experts
// counters:    (2,), to which needed and missing experts are added
extern "C" __global__ __launch_bounds__(THREADS) void assign_slots(const i64* topk_ids, i64 pairs, i64 first,
                                                                   i64 scratch, int* slot_of, int* expert_in,
                                                                   int* use_counts, i64* slots, int* copies, int* count,
                                                                   i64* counters) {
    __shared__ int needed[EXPERTS], missing[EXPERTS], use_count[EXPERTS], target[EXPERTS], held[SLOTS], key[SLOTS],
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
        const int before = use_counts[e];
        use_counts[e] = use_count[e] = before - ((before + (1 << SHIFT) - 1) >> SHIFT) + needed[e] * UNIT;
        missing[e] = needed[e] && target[e] < 0;
    }
    __syncthreads();  // use counts are updated
    for (int s = t; s < SLOTS; s += THREADS) key[s] = held[s] < 0 ? -1 : needed[held[s]] ? BUSY : use_count[held[s]];
    __syncthreads();  // every slot's key is known
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
        int order = 0, free = 0;
        for (int other = 0; other < e; other++) order += missing[other];
        for (int s = 0; s < SLOTS; s++) free += key[s] != BUSY;
        const int victim = order < free ? victims[order] : -1;
        target[e] = victim < 0 ? (int)scratch + order - free : (int)first + victim;
        copies[2 * order] = e;
        copies[2 * order + 1] = target[e];
        if (victim < 0) continue;
        if (held[victim] >= 0) slot_of[held[victim]] = -1;
        slot_of[e] = victim;
        expert_in[victim] = e;
    }
    __syncthreads();  // every expert's target is known
    for (i64 p = t; p < pairs; p += THREADS)
        slots[p] = topk_ids[p] >= 0 && topk_ids[p] < EXPERTS ? target[topk_ids[p]] : -1;
    if (t == 0) {
        int num_needed = 0, num_missing = 0;
        for (int e = 0; e < EXPERTS; e++) num_needed += needed[e], num_missing += missing[e];
        *count = num_missing;
        counters[0] += num_needed;
        counters[1] += num_missing;
    }
}

// Assigns slots to at most `max_copies` of the experts that may be needed soon. One CTA. It evicts the experts with the
// smallest use counts that are not predicted themselves. Use counts do not change. Scratch slots are not used, because
// other layers use them at the same time.
//
// topk_ids:            (pairs,), predicted experts, the likeliest first
// slot_of, expert_in:  as above; updated
// use_counts:          (EXPERTS,)
// copies, count:       as above; written
extern "C" __global__ __launch_bounds__(THREADS) void assign_prefetch(const i64* topk_ids, i64 pairs, i64 first,
                                                                      int* slot_of, int* expert_in,
                                                                      const int* use_counts, i64 max_copies,
                                                                      int* copies, int* count) {
    __shared__ int predicted[EXPERTS], key[SLOTS], victims[SLOTS];
    constexpr int BUSY = 0x7fffffff;
    const int t = threadIdx.x;
    for (int e = t; e < EXPERTS; e += THREADS) predicted[e] = 0;
    __syncthreads();  // `predicted` is cleared
    for (i64 p = t; p < pairs; p += THREADS)
        if (topk_ids[p] >= 0 && topk_ids[p] < EXPERTS) predicted[topk_ids[p]] = 1;
    __syncthreads();  // `predicted` is known
    for (int s = t; s < SLOTS; s += THREADS)
        key[s] = expert_in[s] < 0 ? -1 : predicted[expert_in[s]] ? BUSY : use_counts[expert_in[s]];
    __syncthreads();  // every slot's key is known
    for (int s = t; s < SLOTS; s += THREADS) {
        int rank = 0;
        for (int other = 0; other < SLOTS; other++) rank += key[other] < key[s] || (key[other] == key[s] && other < s);
        if (key[s] != BUSY) victims[rank] = s;
    }
    __syncthreads();  // the order of victims is known
    if (t > 0) return;
    int num_copies = 0, free = 0;
    for (int s = 0; s < SLOTS; s++) free += key[s] != BUSY;
    for (i64 p = 0; p < pairs && num_copies < max_copies && num_copies < free; p++) {
        if (topk_ids[p] < 0 || topk_ids[p] >= EXPERTS || slot_of[topk_ids[p]] >= 0) continue;
        const int expert = (int)topk_ids[p], slot = victims[num_copies];
        if (expert_in[slot] >= 0) slot_of[expert_in[slot]] = -1;
        slot_of[expert] = slot;
        expert_in[slot] = expert;
        copies[2 * num_copies] = expert;
        copies[2 * num_copies + 1] = (int)first + slot;
        num_copies++;
    }
    *count = num_copies;
}

// Copies records from pinned host memory into slots, with all CTAs. A CTA copies a piece at a time: AHEAD loads of 16
// bytes per thread. AHEAD was not measured against other numbers.
//
// records:  (experts, words), of 16 bytes
// slots:    (slots, words)
// copies:   (count, 2), experts and their slots
// fetched:  (1,), to which the copied bytes are added
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

// The same as `fetch`. The name lets profiles separate predicted copies from needed ones.
extern "C" __global__ __launch_bounds__(THREADS) void fetch_ahead(const uint4* records, uint4* slots, const int* copies,
                                                                  const int* count, i64 words, i64* fetched) {
    copy_records(records, slots, copies, count, words, fetched);
}
