// region_boxes: boxes, areas and packed bits of thresholded masks; and select_regions, which lists those not empty.
//
// A block computes 32 rows of one mask at image size, up to 64 words of 32 pixels wide. A warp takes a word's 32
// columns and walks down the rows: a mask row is widened once for the (usually four) rows between it and the next; a
// row is then an interpolation of two registers, a comparison and a ballot. If no lane's two values reach the
// threshold, no interpolation does either, and the rows in between are skipped. Words are collected in shared memory
// and written as whole rows.
//
// 100 masks 160 x 240 over 640 x 959, float16: 7.7 MB read and 7.7 MB of bits written: 3.2 us at 4.8 TB/s. Counted for
// sm_90 (kernel_bench --estimate, its synthetic masks): 17 to 22 M instructions of warps, 16 to 21 us at the 1.05 T/s
// that an H200 issues (132 x 4 at 1.98 GHz); for masks with all pixels inside 60 to 86 M, 58 to 82 us. Measured on
// an H200: 45.4 us, when every lane tested its own columns and 19 to 27 M were counted.
#pragma once

#include "platform.cuh"

namespace vocabseg {

constexpr int kBandRows = kWarp, kGroupWords = 64, kBoxWarps = 8;

// Masks cover the padded image; the image is its top left part.
struct MaskShape {
    int mask_h, mask_w, padded_h, padded_w, h, w;
};

// The extent of the pixels found so far: every value grows with it, and is 0 if none were found.
struct Reach {
    int from_right = 0, from_bottom = 0, right = 0, bottom = 0, area = 0;

    __device__ __forceinline__ void add(uint32_t word, int left, int y, const MaskShape& shape) {
        if (word == 0) return;
        from_right = max(from_right, shape.w - (left + __ffs(static_cast<int>(word)) - 1));
        from_bottom = max(from_bottom, shape.h - y);
        right = max(right, left + kWarp - __clz(static_cast<int>(word)));
        bottom = max(bottom, y + 1);
        area += __popc(word);
    }
    __device__ __forceinline__ void merge_lanes() {
        for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
            from_right = max(from_right, __shfl_xor_sync(kAllLanes, from_right, lanes));
            from_bottom = max(from_bottom, __shfl_xor_sync(kAllLanes, from_bottom, lanes));
            right = max(right, __shfl_xor_sync(kAllLanes, right, lanes));
            bottom = max(bottom, __shfl_xor_sync(kAllLanes, bottom, lanes));
            area += __shfl_xor_sync(kAllLanes, area, lanes);
        }
    }
};

// A mask row at one column of the image.
template <class Logit>
__device__ __forceinline__ float widened(const Logit* mask, int mask_w, int row, const LinearTap& column) {
    const Logit* at = mask + static_cast<int64_t>(row) * mask_w;
    return linear_mix(get(at + column.low), get(at + column.high), column.low_weight, column.high_weight);
}

// No interpolated value exceeds the higher of its inputs, except by rounding.
__device__ __forceinline__ bool may_exceed(float above, float below, float limit) {
    const float higher = fmaxf(above, below);
    return higher + 2e-6f * fabsf(higher) >= limit;
}

// The rows of a band, and for each the next row that lies between other mask rows.
struct BandRows {
    SharedTap taps[kBandRows];
    int past[kBandRows];
};

// Called by the first warp of the block.
__device__ __forceinline__ void prepare_band(const MaskShape& shape, int top, int count, int lane, BandRows& rows) {
    const LinearTap own = linear_tap(shape.mask_h, shape.padded_h, min(top + lane, shape.h - 1));
    rows.taps[lane].tap = own;
    const int below = __shfl_down_sync(kAllLanes, own.low, 1), below_high = __shfl_down_sync(kAllLanes, own.high, 1);
    const bool last = lane + 1 >= count || below != own.low || below_high != own.high;
    const uint32_t ends = __ballot_sync(kAllLanes, last) >> lane;  // this lane's run ends at the first of them
    rows.past[lane] = lane + __ffs(static_cast<int>(ends));
}

// Bits of the 32 columns from `left` on; each lane returns one row of the band.
template <class Logit>
__device__ __forceinline__ uint32_t band_word(const Logit* mask, const MaskShape& shape, const BandRows& rows, int count,
                                              int left, int lane, float limit) {
    const int x = left + lane;
    const LinearTap column = linear_tap(shape.mask_w, shape.padded_w, min(x, shape.w - 1));
    const bool inside_image = x < shape.w;
    // Most words of most masks are far outside: if none of the band's logits reaches the limit, no interpolation does.
    // The lanes share the word's part of the mask: 16 columns and 2 rows at a time, the last ones more than once.
    const int first = rows.taps[0].tap.low, last = rows.taps[count - 1].tap.high;
    const int right = __shfl_sync(kAllLanes, column.high, kWarp - 1);
    int from = __shfl_sync(kAllLanes, column.low, 0);
    float highest = -INFINITY;
    do {
        const Logit* at = mask + min(from + lane % 16, right);
        keep_pointer(at);
        const int past = last + lane / 16;
        int row = first + lane / 16;
        do {
#pragma unroll
            for (int k = 0; k < 5; ++k) highest = fmaxf(highest, get(at + min(row + 2 * k, last) * shape.mask_w));
            row += 10;
        } while (row <= past);
    } while ((from += 16) <= right);
    if (__any_sync(kAllLanes, may_exceed(highest, highest, limit)) == 0) return 0;
    int high = -1;
    float below = 0;
    uint32_t own = 0;
    int k = 0;
    do {  // k is the same for all lanes
        const LinearTap row = read_tap(rows.taps[k]);
        const float above = row.low == high ? below : widened(mask, shape.mask_w, row.low, column);
        below = widened(mask, shape.mask_w, row.high, column);
        high = row.high;
        const int past = rows.past[k];
        if (__any_sync(kAllLanes, inside_image && may_exceed(above, below, limit)) == 0) {
            k = past;
            continue;
        }
        for (; k < past; ++k) {
            const LinearTap weights = read_tap(rows.taps[k]);
            const float logit = linear_mix(above, below, weights.low_weight, weights.high_weight);
            const uint32_t word = __ballot_sync(kAllLanes, inside_image && is_inside(logit, limit));
            if (lane == k) own = word;
        }
    } while (k < count);
    return own;
}

struct BoxMemory {
    uint32_t words[kBandRows][kGroupWords + 1];  // one extra, so that lanes write to different banks
    BandRows rows;
    int found[kBoxWarps][5];
};

template <class Logit>
__device__ __forceinline__ void region_boxes(const Logit* mask_logits, const MaskShape& shape, float limit, int* boxes,
                                             int* areas, uint32_t* bits, BoxMemory& memory) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
    const int mask_index = blockIdx.z, top = blockIdx.y * kBandRows, first_word = blockIdx.x * kGroupWords;
    const int all_words = (shape.w + kWarp - 1) / kWarp;
    const int count = min(kBandRows, shape.h - top), words = min(kGroupWords, all_words - first_word);
    if (warp == 0) prepare_band(shape, top, count, lane, memory.rows);
    __syncthreads();

    const Logit* mask = mask_logits + static_cast<int64_t>(mask_index) * shape.mask_h * shape.mask_w;
    Reach reach;
    for (int word = warp; word < words; word += warps) {
        const int left = (first_word + word) * kWarp;
        const uint32_t own = band_word(mask, shape, memory.rows, count, left, lane, limit);
        memory.words[lane][word] = own;
        reach.add(own, left, top + lane, shape);
    }
    reach.merge_lanes();
    if (lane == 0) {
        int* found = memory.found[warp];
        found[0] = reach.from_right;
        found[1] = reach.from_bottom;
        found[2] = reach.right;
        found[3] = reach.bottom;
        found[4] = reach.area;
    }
    __syncthreads();

    if (threadIdx.x < 5) {
        int most = 0;
        for (int k = 0; k < warps; ++k) {
            const int found = memory.found[k][threadIdx.x];
            most = threadIdx.x == 4 ? most + found : max(most, found);
        }
        if (most > 0 && threadIdx.x == 4) atomicAdd(areas + mask_index, most);
        if (most > 0 && threadIdx.x < 4) atomicMax(boxes + 4 * mask_index + threadIdx.x, most);
    }
    if (bits == nullptr) return;
    uint32_t* target = bits + (static_cast<int64_t>(mask_index) * shape.h + top) * all_words + first_word;
    for (int k = threadIdx.x; k < count * words; k += blockDim.x) {
        const int row = k / words, word = k % words;
        target[static_cast<int64_t>(row) * all_words + word] = memory.words[row][word];
    }
}

}  // namespace vocabseg

// Before region_boxes_*: nothing has been found yet.
extern "C" __global__ void region_boxes_start(int masks, int* boxes, int* areas) {
    const int k = blockIdx.x * blockDim.x + threadIdx.x;
    if (k < 4 * masks) boxes[k] = 0;
    if (k < masks) areas[k] = 0;
}

extern "C" __global__ void __launch_bounds__(256)
    region_boxes_f32(const float* mask_logits, vocabseg::MaskShape shape, float limit, int* boxes, int* areas,
                     uint32_t* bits) {
    __shared__ vocabseg::BoxMemory memory;
    vocabseg::region_boxes(mask_logits, shape, limit, boxes, areas, bits, memory);
}

extern "C" __global__ void __launch_bounds__(256)
    region_boxes_f16(const __half* mask_logits, vocabseg::MaskShape shape, float limit, int* boxes, int* areas,
                     uint32_t* bits) {
    __shared__ vocabseg::BoxMemory memory;
    vocabseg::region_boxes(mask_logits, shape, limit, boxes, areas, bits, memory);
}

// After region_boxes_*: distances from the right and the bottom become the left and the top.
extern "C" __global__ void region_boxes_finish(int masks, int height, int width, int* boxes, const int* areas) {
    const int k = blockIdx.x * blockDim.x + threadIdx.x;
    if (k >= masks || areas[k] == 0) return;
    boxes[4 * k] = width - boxes[4 * k];
    boxes[4 * k + 1] = height - boxes[4 * k + 1];
}

// One block of 256 threads: the masks that are not empty, in order, their expanded boxes, and their number.
extern "C" __global__ void __launch_bounds__(256)
    select_regions(int masks, const int* boxes, const int* areas, float ratio, int height, int width, int* order,
                   int* crop_boxes, int* count) {
    __shared__ int valid_in_warp[vocabseg::kBoxWarps];
    const int lane = threadIdx.x % vocabseg::kWarp, warp = threadIdx.x / vocabseg::kWarp;
    int before = 0;
    for (int first = 0; first < masks; first += blockDim.x) {
        const int k = first + threadIdx.x;
        const bool valid = k < masks && areas[k] > 0;
        const uint32_t ballot = __ballot_sync(vocabseg::kAllLanes, valid);
        if (lane == 0) valid_in_warp[warp] = __popc(ballot);
        __syncthreads();
        int place = before + __popc(ballot & ((1u << lane) - 1));
        for (int w = 0; w < vocabseg::kBoxWarps; ++w) {
            if (w < warp) place += valid_in_warp[w];
            before += valid_in_warp[w];
        }
        if (valid) {
            const int* own = boxes + 4 * k;
            const vocabseg::Box box = vocabseg::expand_box({own[0], own[1], own[2], own[3]}, ratio, height, width);
            int* target = crop_boxes + 4 * place;
            target[0] = box.left;
            target[1] = box.top;
            target[2] = box.right;
            target[3] = box.bottom;
            order[place] = k;
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) *count = before;
}
