// classify: similarity of embeddings and texts, softmax, and the ensemble of both sides, all in float32.
//
// 1. similarity: a block computes 8 embeddings x 64 texts of one side; both are read 32 numbers at a time into shared
//    memory. A thread keeps 4 sums and the sum of squares of its embedding, whose norm is divided out at the end.
// 2. best_names, only where classes have several names: a class takes the highest logit of its names.
// 3. classify: one block per mask turns its two rows of logits into probabilities. Powers are computed from logarithms.
//
// 100 masks, 91 regions, 171 classes, embeddings of 512 halves: 0.9 MB read, 0.1 MB of logits written and read: below
// 1 us at 4.8 TB/s. Counted for sm_90 (kernel_bench --estimate), instructions of warps: similarity 2.4 to 2.8 M, 2.3 to
// 2.7 us at the 1.05 T/s that an H200 issues, but 4.1 to 4.7 us because its 75 blocks leave 57 of the 132
// multiprocessors without work; best_names 0.03 to 0.05 M for three names of each class; classify 0.2 to 0.4 M.
#pragma once

#include "platform.cuh"

namespace vocabseg {

constexpr int kSideRows = 8, kSideTexts = 64, kSideDepth = 32, kSideThreads = 128;

// Embeddings against texts of unit length.
struct Side {
    const void* embeddings;  // (rows, depth) float or half, of any norm
    const float* texts;      // (texts, depth)
    float* logits;           // (rows, texts)
    int rows, texts_count, depth, half;
};

struct Sides {
    Side of[2];  // the queries', and the regions'
};

struct SideMemory {
    // Rows are an odd multiple of 16 bytes, so that neighbours lie in different banks.
    alignas(16) float embeddings[kSideRows][kSideDepth + 4];
    alignas(16) float texts[kSideTexts][kSideDepth + 4];
};

__device__ __forceinline__ float4 four_of(const float* values) { return *reinterpret_cast<const float4*>(values); }

__device__ __forceinline__ void similarity(const Side& side, float temperature, SideMemory& memory) {
    constexpr int kGroups = kSideThreads / kSideRows, kOwn = kSideTexts / kGroups;
    const int first_text = blockIdx.x * kSideTexts, first_row = blockIdx.y * kSideRows;
    if (first_text >= side.texts_count || first_row >= side.rows) return;  // the whole block
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const int row = threadIdx.x / kGroups, group = threadIdx.x % kGroups;
    float sums[kOwn] = {}, squares = 0.0f;
    for (int first = 0; first < side.depth; first += kSideDepth) {
        const int d = first + lane;
        for (int k = warp; k < kSideRows; k += kSideThreads / kWarp) {
            const int r = first_row + k;
            const int64_t at = static_cast<int64_t>(r) * side.depth + d;
            const bool there = r < side.rows && d < side.depth;
            memory.embeddings[k][lane] = !there          ? 0.0f
                                         : side.half != 0 ? get(static_cast<const __half*>(side.embeddings) + at)
                                                          : get(static_cast<const float*>(side.embeddings) + at);
        }
#pragma unroll 4
        for (int k = warp; k < kSideTexts; k += kSideThreads / kWarp) {
            const int text = first_text + k;
            const bool there = text < side.texts_count && d < side.depth;
            memory.texts[k][lane] = there ? get(side.texts + static_cast<int64_t>(text) * side.depth + d) : 0.0f;
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < kSideDepth; k += 4) {
            const float4 e = four_of(memory.embeddings[row] + k);
            squares = fmaf(e.x, e.x, fmaf(e.y, e.y, fmaf(e.z, e.z, fmaf(e.w, e.w, squares))));
#pragma unroll
            for (int j = 0; j < kOwn; ++j) {
                const float4 t = four_of(memory.texts[group + j * kGroups] + k);
                sums[j] = fmaf(e.x, t.x, fmaf(e.y, t.y, fmaf(e.z, t.z, fmaf(e.w, t.w, sums[j]))));
            }
        }
        __syncthreads();
    }
    if (first_row + row >= side.rows) return;
    const float scale = 1.0f / fmaxf(sqrtf(squares), 1.17549435e-38f);  // of zeros: the smallest normal float
#pragma unroll
    for (int j = 0; j < kOwn; ++j) {
        const int text = first_text + group + j * kGroups;
        if (text < side.texts_count) {
            side.logits[static_cast<int64_t>(first_row + row) * side.texts_count + text] = sums[j] * scale * temperature;
        }
    }
}

constexpr int kRowThreads = 256;

struct RowMemory {
    float partial[kRowThreads / kWarp];
    int slot;
};

// Reduction over the block's threads, with the same result in all of them: the sum, or else the maximum.
__device__ __forceinline__ float over_block(float value, bool sum, RowMemory& memory) {
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
        const float other = __shfl_xor_sync(kAllLanes, value, lanes);
        value = sum ? value + other : fmaxf(value, other);
    }
    if (threadIdx.x % kWarp == 0) memory.partial[threadIdx.x / kWarp] = value;
    __syncthreads();
    value = memory.partial[0];
    for (int k = 1; k < kRowThreads / kWarp; ++k) value = sum ? value + memory.partial[k] : fmaxf(value, memory.partial[k]);
    __syncthreads();
    return value;
}

// A softmax is exp(logit - highest - log_total).
struct Total {
    float highest = 0.0f, log_total = 0.0f;
    __device__ __forceinline__ float of(float logit) const { return (logit - highest) - log_total; }
};

__device__ __forceinline__ Total total_of(const float* logits, int count, RowMemory& memory) {
    float highest = -INFINITY, total = 0.0f;
    for (int k = threadIdx.x; k < count; k += kRowThreads) highest = fmaxf(highest, logits[k]);
    highest = over_block(highest, false, memory);
    for (int k = threadIdx.x; k < count; k += kRowThreads) total += expf(logits[k] - highest);
    return {highest, logf(over_block(total, true, memory))};
}

struct Ensemble {
    const float* query;          // (masks, classes + 1) logits, or null
    const float* region;         // (regions, classes) logits, or null
    const unsigned char* seen;   // (classes,), or null for none
    const int *order, *count;    // the mask of each region, or null if rows are regions
    int rows, classes;
    float weight;
};

}  // namespace vocabseg

extern "C" __global__ void __launch_bounds__(vocabseg::kSideThreads)
    similarity(vocabseg::Sides sides, float temperature) {
    __shared__ vocabseg::SideMemory memory;
    // Copied by value: indexing the parameters would put both into local memory.
    const vocabseg::Side side = blockIdx.z == 0 ? sides.of[0] : sides.of[1];
    vocabseg::similarity(side, temperature, memory);
}

// One block per row: logits (rows, names) -> best (rows, classes), the highest of the names first[k] to first[k + 1].
extern "C" __global__ void __launch_bounds__(vocabseg::kRowThreads)
    best_names(const float* logits, int names, const int* first, int classes, float* best) {
    const float* row = logits + static_cast<int64_t>(blockIdx.x) * names;
    for (int k = threadIdx.x; k < classes; k += vocabseg::kRowThreads) {
        float highest = row[first[k]];
        for (int name = first[k] + 1; name < first[k + 1]; ++name) highest = fmaxf(highest, row[name]);
        best[static_cast<int64_t>(blockIdx.x) * classes + k] = highest;
    }
}

// One block per row. Without a query side, rows are regions; those beyond the count are not written.
extern "C" __global__ void __launch_bounds__(vocabseg::kRowThreads)
    classify(vocabseg::Ensemble given, float* probabilities, float* no_object) {
    __shared__ vocabseg::RowMemory memory;
    const int row = blockIdx.x, regions = given.count == nullptr ? given.rows : *given.count;
    const bool by_region = given.query == nullptr;
    if (by_region && row >= regions) return;  // the whole block
    if (threadIdx.x == 0) memory.slot = by_region ? row : -1;
    __syncthreads();
    if (!by_region && given.region != nullptr) {
        for (int k = threadIdx.x; k < regions; k += vocabseg::kRowThreads) {
            if (given.order[k] == row) memory.slot = k;
        }
    }
    __syncthreads();
    const int slot = memory.slot, classes = given.classes;
    const float* query = by_region ? nullptr : given.query + static_cast<int64_t>(row) * (classes + 1);
    const float* region = slot < 0 ? nullptr : given.region + static_cast<int64_t>(slot) * classes;
    vocabseg::Total query_total, region_total;
    if (query != nullptr) query_total = vocabseg::total_of(query, classes + 1, memory);
    if (region != nullptr) region_total = vocabseg::total_of(region, classes, memory);
    const bool ensemble = !by_region && given.region != nullptr;
    for (int k = threadIdx.x; k < classes; k += vocabseg::kRowThreads) {
        float power = 0.0f;
        if (by_region) {
            power = region_total.of(region[k]);
        } else if (!ensemble) {
            power = query_total.of(query[k]);
        } else {
            const bool is_seen = given.seen != nullptr && given.seen[k] != 0;
            const float own = is_seen ? given.weight : 1.0f - given.weight;
            power = own * query_total.of(query[k]);
            if (region != nullptr) power += (is_seen ? 1.0f - given.weight : given.weight) * region_total.of(region[k]);
        }
        probabilities[static_cast<int64_t>(row) * classes + k] = expf(power);
    }
    if (no_object != nullptr && threadIdx.x == 0) {
        no_object[row] = query == nullptr ? 0.0f : expf(query_total.of(query[classes]));
    }
}
