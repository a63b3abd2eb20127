// compose: mask probabilities at the output's pixels (masks.cuh), weighted by class probabilities; the best class wins.
//
// The weighted sum is a matrix product on tensor cores: (64 pixels of a tile x N masks) by (N masks x C classes). Half
// precision alone would change labels, so both factors are split into a high and a low half. A warp multiplies the high
// halves of 32 pixels, in shared memory, by the high halves of 16 classes at a time. The result is within
// 2^-10 of the sum; only if it comes that close to a pixel's best sum so far are the two products with low halves
// added, for float32 precision. The neglected term is low x low, 2^-22 of a sum. Sums, best scores and labels stay in
// registers; memory does not depend on the number of classes, except for the split table of class probabilities, 4 N C
// bytes. On ties the first class wins: classes with equal probabilities have equal sums, bit for bit.
//
// More masks than 112 are processed in chunks of as many, with all three products, and their probabilities are
// recomputed for every 32 classes.
//
// 100 masks 160 x 240, 171 classes, 640 x 959 -> 427 x 640, float16: 7.7 MB read and 2.2 MB written: 2.1 us at 4.8 TB/s.
// Products: 273,280 x 112 x 176 x 2 = 10.8 GFLOP, 11 us at 990 TFLOP/s, three times that if no class is ruled out.
// Counted for sm_90 (kernel_bench --estimate): 111 to 119 M instructions of warps, 106 to 114 us at the 1.05 T/s that an
// H200 issues, and 119 to 128 M, 114 to 122 us, at 480 x 640; 2 to 3 M more if classes are undecided. Measured on an
// H200: 327 and 336 us, when four masks were sampled at a time, 123 to 139 M were counted, and latency took more than
// issuing: 128 registers, half of them for pixels, let 16 warps share a multiprocessor. Pixels are read again for every
// group of classes, for 6 % more instructions; 80 registers, and 32 KB of shared memory in a block, let 24.
#pragma once

#include "masks.cuh"

namespace vocabseg {

constexpr int kComposeThreads = 128;
constexpr int kSteps = 7, kStepMasks = 16, kChunkMasks = kSteps * kStepMasks;  // masks at a time
constexpr int kGroupTiles = 2, kGroupClasses = 8 * kGroupTiles;                // classes that a warp takes at a time
constexpr int kSides = 2;                                                      // warps that share pixels, not classes

// Class probabilities as B fragments: for a group of classes and a step of masks, lane by lane, two tiles of 8 classes
// side by side, so that a lane reads 16 bytes. All high halves come first, then all low ones. Padding classes and masks
// are 0.
struct ClassTable {
    const uint4* fragments;
    int groups, steps;

    __device__ __forceinline__ int64_t at(int group, int step) const {
        return (static_cast<int64_t>(group) * steps + step) * (kGroupTiles / 2) * kWarp;
    }
    __device__ __forceinline__ int64_t low_part() const { return at(groups, 0); }
};

__device__ __forceinline__ void write_class_table(const float* probabilities, const int* count, int masks, int classes,
                                                  const ClassTable& table, uint4* fragments) {
    const int64_t k = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (k >= table.low_part()) return;
    const int lane = k % kWarp, tiles = k / kWarp % (kGroupTiles / 2);
    const int64_t place = k / kWarp / (kGroupTiles / 2);
    const int step = static_cast<int>(place % table.steps), group = static_cast<int>(place / table.steps);
    const int there = count == nullptr ? masks : min(*count, masks);
    uint32_t high[4], low[4];
    for (int word = 0; word < 4; ++word) {
        const int label = group * kGroupClasses + (2 * tiles + word / 2) * 8 + lane / 4;
        high[word] = low[word] = 0;
        for (int half = 0; half < 2; ++half) {
            const int mask = step * kStepMasks + word % 2 * 8 + lane % 4 * 2 + half;
            if (label >= classes || mask >= there) continue;
            const HalfPair own = split(probabilities[static_cast<int64_t>(mask) * classes + label] * kClassScale);
            high[word] |= static_cast<uint32_t>(own.high) << 16 * half;
            low[word] |= static_cast<uint32_t>(own.low) << 16 * half;
        }
    }
    fragments[k] = make_uint4(high[0], high[1], high[2], high[3]);
    fragments[k + table.low_part()] = make_uint4(low[0], low[1], low[2], low[3]);
}

struct ComposeShape {
    MaskShape mask;
    int output_h, output_w, masks, classes;
};

struct ComposeMemory {
    TileRows rows;
    float best[kSides][kTilePixels];
    int label[kSides][kTilePixels];
};

// The 32 pixels of a warp: sums for 16 classes, and the best so far. Rows of the fragments are pixels g, g + 8, g + 16
// and g + 24 for lane 4 g + t.
struct Contest {
    float sums[2][kGroupTiles][4];
    float best[4], to_beat[4];  // of this lane's classes, and of those of all four lanes that share the pixel
    int label[4];

    __device__ __forceinline__ void begin() {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            best[r] = to_beat[r] = -INFINITY;
            label[r] = 0;
        }
    }
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int k = 0; k < 8 * kGroupTiles; ++k) sums[k / (4 * kGroupTiles)][k / 4 % kGroupTiles][k % 4] = 0.0f;
    }
    // One step of 16 masks: 32 pixels by 16 classes.
    __device__ __forceinline__ void add(const uint32_t (&pixels)[2][4], const uint4* classes) {
#pragma unroll
        for (int k = 0; k < kGroupTiles / 2; ++k) {
            const uint4 b = __ldg(classes + k * kWarp);
#pragma unroll
            for (int m = 0; m < 2; ++m) {
                multiply_add(sums[m][2 * k], pixels[m], b.x, b.y);
                multiply_add(sums[m][2 * k + 1], pixels[m], b.z, b.w);
            }
        }
    }
    // Whether any sum, of high halves only, may be a pixel's best: it is too low by at most 2^-10 plus the loss in
    // denormals (1, where a score of 1 is 2^26). The same for all lanes.
    __device__ __forceinline__ bool close() const {
        bool any = false;
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            float highest = sums[r / 2][0][r % 2 * 2];
#pragma unroll
            for (int k = 1; k < 2 * kGroupTiles; ++k) highest = fmaxf(highest, sums[r / 2][k / 2][r % 2 * 2 + k % 2]);
            any = any || fmaf(highest, 1.002f, 1.0f) >= to_beat[r];
        }
        return __any_sync(kAllLanes, any) != 0;
    }
    // Compares the sums of the group's classes, the first of which is `first`.
    __device__ __forceinline__ void compare(int first, int classes) {
        const int own = first + 2 * (threadIdx.x % 4);
#pragma unroll
        for (int r = 0; r < 4; ++r) {
#pragma unroll
            for (int k = 0; k < 2 * kGroupTiles; ++k) {
                const float sum = sums[r / 2][k / 2][r % 2 * 2 + k % 2];
                const int candidate = own + k / 2 * 8 + k % 2;
                const bool wins = sum > best[r] && candidate < classes;
                best[r] = wins ? sum : best[r];
                label[r] = wins ? candidate : label[r];
            }
            float highest = fmaxf(best[r], __shfl_xor_sync(kAllLanes, best[r], 1));
            highest = fmaxf(highest, __shfl_xor_sync(kAllLanes, highest, 2));
            to_beat[r] = highest;
        }
    }
    // The best of the four lanes that share a pixel; the first class on ties.
    __device__ __forceinline__ void finish(float* out_best, int* out_label) {
        const int lane = threadIdx.x % kWarp;
#pragma unroll
        for (int r = 0; r < 4; ++r) {
#pragma unroll
            for (int lanes = 1; lanes < 4; lanes *= 2) {
                const float other = __shfl_xor_sync(kAllLanes, best[r], lanes);
                const int other_label = __shfl_xor_sync(kAllLanes, label[r], lanes);
                const bool wins = other > best[r] || (other == best[r] && other_label < label[r]);
                best[r] = wins ? other : best[r];
                label[r] = wins ? other_label : label[r];
            }
            if (lane % 4 == 0) {
                out_best[lane / 4 + 8 * r] = best[r];
                out_label[lane / 4 + 8 * r] = label[r];
            }
        }
    }
};

// Fragments of a warp's pixels for one step, from words (kTilePixels, stride / 2) of two masks each.
__device__ __forceinline__ void load_pixels(const uint32_t* words, int stride, int step, uint32_t (&out)[2][4]) {
    const int lane = threadIdx.x % kWarp;
    const uint32_t* at = words + (lane / 4) * (stride / 2) + step * (kStepMasks / 2) + lane % 4;
#pragma unroll
    for (int k = 0; k < 8; ++k) out[k / 4][k % 4] = at[(k / 4 * 16 + k % 2 * 8) * (stride / 2) + k % 4 / 2 * 4];
}

template <class Logit, bool kMany>
__device__ __forceinline__ void compose(const Logit* mask_logits, const ClassTable& table, const int* order, const int* count,
                                        const ComposeShape& shape, int* labels, float* scores, ComposeMemory& memory) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, part = warp % 2, side = warp / 2;
    const int masks = count == nullptr ? shape.masks : min(__ldg(count), shape.masks);
    const int steps = min((masks + kStepMasks - 1) / kStepMasks, table.steps);
    constexpr int stride = kChunkMasks + 8;  // 4 words more than a multiple of 8: lanes read different banks
    auto* high = reinterpret_cast<unsigned short*>(dynamic_shared());
    unsigned short* low = high + kTilePixels * stride;
    const auto* high_words = reinterpret_cast<const uint32_t*>(high) + part * 32 * (stride / 2);
    const auto* low_words = reinterpret_cast<const uint32_t*>(low) + part * 32 * (stride / 2);
    const int top = blockIdx.y * kTileSide, left = blockIdx.x * kTileSide;
    const MaskShape& mask = shape.mask;
    const TileAxis rows{mask.mask_h, mask.padded_h, mask.h, shape.output_h, top};
    const TileAxis columns{mask.mask_w, mask.padded_w, mask.w, shape.output_w, left};
    prepare_rows(rows, memory.rows);
    __syncthreads();

    const auto sample = [&](int first_step) {
        const int chunk = min(kSteps, steps - first_step) * kStepMasks;
        sample_masks(mask_logits, order, masks, rows, columns, memory.rows, first_step * kStepMasks, chunk, stride, high, low);
        __syncthreads();
    };
    Contest contest;
    contest.begin();
    const auto add_high = [&](int group, int first_step) {
        const uint4* classes = table.fragments + table.at(group, first_step) + lane;
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
            if (first_step + s >= steps) continue;
            uint32_t pixels[2][4];
            load_pixels(high_words, stride, s, pixels);
            contest.add(pixels, classes + table.at(0, s));
        }
    };
    const auto add_low = [&](int group, int first_step) {
        const uint4* classes = table.fragments + table.at(group, first_step) + lane;
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
            if (first_step + s >= steps) continue;
            uint32_t pixels[2][4];
            load_pixels(low_words, stride, s, pixels);
            contest.add(pixels, classes + table.at(0, s));
            load_pixels(high_words, stride, s, pixels);
            contest.add(pixels, classes + table.at(0, s) + table.low_part());
        }
    };

    if constexpr (kMany) {
        for (int round = 0; round * kSides < table.groups; ++round) {
            const int group = round * kSides + side;
            contest.clear();
            for (int first = 0; first < steps; first += kSteps) {
                __syncthreads();  // before the last chunk's probabilities are overwritten
                sample(first);
                if (group >= table.groups) continue;
                add_high(group, first);
                add_low(group, first);
            }
            if (group < table.groups) contest.compare(group * kGroupClasses, shape.classes);
        }
    } else {
        sample(0);
        for (int group = side; group < table.groups; group += kSides) {
            contest.clear();
            add_high(group, 0);
            if (!contest.close()) continue;
            add_low(group, 0);
            contest.compare(group * kGroupClasses, shape.classes);
        }
    }
    contest.finish(memory.best[side] + part * 32, memory.label[side] + part * 32);
    __syncthreads();

    const int y = top + threadIdx.x / kTileSide, x = left + threadIdx.x % kTileSide;
    if (threadIdx.x >= kTilePixels || y >= shape.output_h || x >= shape.output_w) return;
    const float best = memory.best[0][threadIdx.x], other = memory.best[1][threadIdx.x];
    const int label = memory.label[0][threadIdx.x], other_label = memory.label[1][threadIdx.x];
    const bool changes = other > best || (other == best && other_label < label);
    const int64_t at = static_cast<int64_t>(y) * shape.output_w + x;
    labels[at] = changes ? other_label : label;
    scores[at] = (changes ? other : best) * (1.0f / (kMaskScale * kClassScale));
}

}  // namespace vocabseg

// Before compose_*: splits the class probabilities (masks, classes), one thread per 16 bytes of high halves.
extern "C" __global__ void compose_classes(const float* probabilities, const int* count, int masks, int classes, int groups,
                                           int steps, uint4* fragments) {
    vocabseg::write_class_table(probabilities, count, masks, classes, {fragments, groups, steps}, fragments);
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800  // a product takes more instructions, and registers
#define VOCABSEG_COMPOSE_BLOCKS 3
#else
#define VOCABSEG_COMPOSE_BLOCKS 6
#endif
#define VOCABSEG_COMPOSE_KERNEL(name, Logit, many, blocks)                                                                   \
    extern "C" __global__ void __launch_bounds__(vocabseg::kComposeThreads, blocks)                                         \
        name(const Logit* mask_logits, vocabseg::ClassTable table, const int* order, const int* count,               \
             vocabseg::ComposeShape shape, int* labels, float* scores) {                                             \
        __shared__ vocabseg::ComposeMemory memory;                                                                   \
        vocabseg::compose<Logit, many>(mask_logits, table, order, count, shape, labels, scores, memory);             \
    }
VOCABSEG_COMPOSE_KERNEL(compose_f32, float, false, VOCABSEG_COMPOSE_BLOCKS)
VOCABSEG_COMPOSE_KERNEL(compose_f16, __half, false, VOCABSEG_COMPOSE_BLOCKS)
VOCABSEG_COMPOSE_KERNEL(compose_many_f32, float, true, 3)
VOCABSEG_COMPOSE_KERNEL(compose_many_f16, __half, true, 3)
#undef VOCABSEG_COMPOSE_KERNEL
#undef VOCABSEG_COMPOSE_BLOCKS
