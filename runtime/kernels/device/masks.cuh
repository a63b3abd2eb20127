// The first half of compose: mask probabilities of a tile of the output, as halves for the tensor cores.
//
// A tile of 8 x 8 pixels reads at most 16 rows and 16 columns of the image, whatever the sizes. 16 lanes take these
// columns for four masks and walk down the rows: a mask row is read when first needed, a row of the image is
// interpolated from two mask rows, two sigmoids share a reciprocal, and two rows of the image yield a row of the tile.
// The lanes then exchange the values that the tile's 8 columns need. At 640 x 853 -> 480 x 640 this takes 2.25 sigmoids
// per pixel and mask, instead of 4.
#pragma once

#include "boxes.cuh"
#include "mma.cuh"

namespace vocabseg {

constexpr int kTileSide = 8, kTilePixels = kTileSide * kTileSide, kTouched = 2 * kTileSide;
// Powers of two that keep small probabilities out of the halves' denormals: masks up to 1, classes up to 15.
constexpr float kMaskScale = 16384.0f, kClassScale = 4096.0f;

// The position of a pixel of the tile among the rows (or columns) of the image that the tile touches.
struct TilePlace {
    int low, high;  // among those touched
    float fraction;
};

// An axis of a tile: from the mask through the image to the output.
struct TileAxis {
    int mask_size, padded_size, image_size, output_size;
    int first;  // pixel of the output

    __device__ __forceinline__ LinearTap tap(int k) const {
        return linear_tap(image_size, output_size, min(first + k, output_size - 1));
    }
    // Whether the touched rows (or columns) are contiguous; else every pixel has two of its own.
    __device__ __forceinline__ bool dense() const { return tap(kTileSide - 1).high - tap(0).low < kTouched; }

    __device__ __forceinline__ TilePlace place(int k) const {
        const LinearTap own = tap(k);
        if (!dense()) return {2 * k, 2 * k + 1, own.high_weight};
        const int begin = tap(0).low;
        return {own.low - begin, own.high - begin, own.high_weight};
    }
    // The position in the mask of the touched row (or column) number k of the image.
    __device__ __forceinline__ LinearTap touched(int k) const {
        const LinearTap own = tap(k / 2);
        const int sparse = k % 2 == 0 ? own.low : own.high;
        return linear_tap(mask_size, padded_size, dense() ? min(tap(0).low + k, tap(kTileSide - 1).high) : sparse);
    }
};

struct TileRows {
    SharedTap touched[kTouched], place[kTileSide];  // place: low and high are among those touched
};

__device__ __forceinline__ void prepare_rows(const TileAxis& rows, TileRows& table) {
    if (threadIdx.x < kTouched) table.touched[threadIdx.x].tap = rows.touched(threadIdx.x);
    if (threadIdx.x >= kTileSide) return;
    const TilePlace place = rows.place(threadIdx.x);
    table.place[threadIdx.x].tap = {place.low, place.high, 1.0f - place.fraction, place.fraction};
}

constexpr int kLaneMasks = 4, kWarpMasks = 2 * kLaneMasks;  // that are walked at a time

// Walks down one column of the image in four masks.
template <class Logit> struct ColumnWalk {
    const Logit *low[kLaneMasks], *high[kLaneMasks];  // the masks, at the two columns that enclose the column of the image
    float high_weight;
    int mask_w, mask_h;
    int above_row = -1, below_row = -1, ahead_row = -1;
    float above[kLaneMasks], below[kLaneMasks], ahead[kLaneMasks][2];  // ahead: the next row of the mask, prefetched

    __device__ __forceinline__ void read_ahead(int row) {
        const int at = row * mask_w;  // a mask has less than 2^31 elements
#pragma unroll
        for (int k = 0; k < kLaneMasks; ++k) {
            ahead[k][0] = get(low[k] + at);
            ahead[k][1] = get(high[k] + at);
        }
        ahead_row = row;
    }
    // Scaled for base 2 and negated, as the sigmoid takes it.
    __device__ __forceinline__ void take(int row, float (&out)[kLaneMasks]) {
        if (row != ahead_row) read_ahead(row);
#pragma unroll
        for (int k = 0; k < kLaneMasks; ++k) {
            out[k] = -1.44269504f * fmaf(high_weight, ahead[k][1] - ahead[k][0], ahead[k][0]);
        }
    }
    // Probabilities, times kMaskScale; the row is the same for all lanes.
    __device__ __forceinline__ void probabilities(const LinearTap& row, float (&out)[kLaneMasks]) {
        if (row.high != below_row || row.low != above_row) {
            if (row.low == below_row) {
#pragma unroll
                for (int k = 0; k < kLaneMasks; ++k) above[k] = below[k];
            } else {
                take(row.low, above);
            }
            take(row.high, below);
            above_row = row.low;
            below_row = row.high;
            read_ahead(min(row.high + 1, mask_h - 1));
        }
        float denominator[kLaneMasks];
#pragma unroll
        for (int k = 0; k < kLaneMasks; ++k) {
            // Clamped to 2^62, so that the product of two stays finite; not before interpolating: that would move
            // outlines.
            denominator[k] = 1.0f + fast_exp2(fminf(fmaf(row.high_weight, below[k] - above[k], above[k]), 62.0f));
        }
#pragma unroll
        for (int k = 0; k < kLaneMasks; k += 2) {
            const float reciprocal = kMaskScale * fast_reciprocal(denominator[k] * denominator[k + 1]);
            out[k] = reciprocal * denominator[k + 1];
            out[k + 1] = reciprocal * denominator[k];
        }
    }
};

// Probabilities of the masks `first` to `first + chunk` (indices into `order`, if given; those beyond `count` repeat
// the last one and must be weighted by 0) at the tile's pixels, written to high and low (kTilePixels, stride) halves.
template <class Logit>
__device__ __forceinline__ void sample_masks(const Logit* mask_logits, const int* order, int count, const TileAxis& rows_axis,
                                             const TileAxis& columns_axis, const TileRows& rows, int first, int chunk,
                                             int stride, unsigned short* high, unsigned short* low) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
    const int part = lane / 16;                              // the four of eight masks that the lane walks,
    const int x = lane % kTileSide, which = lane / 8 % 2;    // and the column, and the two of the four, that it finishes
    const TilePlace across = columns_axis.place(x);
    const LinearTap column = columns_axis.touched(lane % kTouched);
    const int64_t area = static_cast<int64_t>(rows_axis.mask_size) * columns_axis.mask_size;
    const int touched = rows.place[kTileSide - 1].tap.high + 1;
    for (int eight = warp; eight < chunk / kWarpMasks; eight += warps) {
        const int own = kWarpMasks * eight + kLaneMasks * part;
        const int step = kTileSide * stride / 2;  // words of two masks from a row of the tile to the next
        auto* out_high = reinterpret_cast<uint32_t*>(high + x * stride + own + 2 * which);
        auto* out_low = reinterpret_cast<uint32_t*>(low + x * stride + own + 2 * which);
        if (first + kWarpMasks * eight >= count) {  // no masks left: the last step of 16 is not full
            for (int y = 0; y < kTileSide; ++y, out_high += step, out_low += step) *out_high = *out_low = 0;
            continue;
        }
        ColumnWalk<Logit> walk;
#pragma unroll
        for (int k = 0; k < kLaneMasks; ++k) {
            const int index = min(first + own + k, count - 1);
            const Logit* mask = mask_logits + area * (order == nullptr ? index : __ldg(order + index));
            walk.low[k] = mask + column.low;
            walk.high[k] = mask + column.high;
            keep_pointer(walk.low[k]);
            keep_pointer(walk.high[k]);
        }
        walk.high_weight = column.high_weight;
        walk.mask_w = columns_axis.mask_size;
        walk.mask_h = rows_axis.mask_size;
        float previous[kLaneMasks], current[kLaneMasks] = {};
        int y = 0, r = 0;
        LinearTap down = read_tap(rows.place[0]);
        do {  // rows are the same for all lanes; a tile touches at least one
#pragma unroll
            for (int k = 0; k < kLaneMasks; ++k) previous[k] = current[k];
            walk.probabilities(read_tap(rows.touched[r]), current);
            while (down.high == r) {
                float left[kLaneMasks], right[kLaneMasks];
#pragma unroll
                for (int k = 0; k < kLaneMasks; ++k) {
                    const float upper = down.low == r ? current[k] : previous[k];
                    const float mixed = fmaf(down.high_weight, current[k] - upper, upper);
                    left[k] = __shfl_sync(kAllLanes, mixed, 16 * part + across.low);
                    right[k] = __shfl_sync(kAllLanes, mixed, 16 * part + across.high);
                }
                HalfPair halves[2];
#pragma unroll
                for (int k = 0; k < 2; ++k) {
                    const float from = which == 0 ? left[k] : left[k + 2], to = which == 0 ? right[k] : right[k + 2];
                    halves[k] = split(fmaf(across.fraction, to - from, from));
                }
                *out_high = halves[0].high | static_cast<uint32_t>(halves[1].high) << 16;
                *out_low = halves[0].low | static_cast<uint32_t>(halves[1].low) << 16;
                out_high += step;
                out_low += step;
                if (++y == kTileSide) break;
                down = read_tap(rows.place[y]);
            }
        } while (++r < touched);
    }
}

}  // namespace vocabseg
