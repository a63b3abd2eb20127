// crop_regions: cut, fill, normalise and bicubic resize, for the regions of many images in one launch.
//
// A thread computes two neighbouring columns of 16 rows of a crop. It walks down the rows of the image, combines four
// pixels of each horizontally (16 bytes, and 4 bits of the mask, if any of them is set), and keeps the latest four rows
// in registers, from which it combines every row of the crop: 12 horizontal multiply-adds per row of the image and 12
// vertical ones per row of the crop, where 16 taps at once would take 48. It sums differences to the fill colour, so
// pixels outside the mask contribute nothing. Weights are those of pixel_math.h; multiply-adds are fused and
// normalisation comes last, so values differ from the host's by rounding, about 1e-6. Which pixels are inside does not
// differ.
//
// 91 regions of a 640 x 959 image to 224 x 224, float16: 27.4 MB written, 1.8 MB of image and up to 7.7 MB of bits read:
// 7.7 us at 4.8 TB/s. Counted for sm_90 (kernel_bench --estimate): 27 to 29 M instructions of warps, 26 to 28 us at the
// 1.05 T/s that an H200 issues; for 100 boxes of the whole image 57 to 59 M, 55 to 57 us. Measured on an H200: 75.0 us
// with 29 to 31 M, when latency took more than issuing: 74 registers let 21 warps share a multiprocessor. Held to 56
// registers, for 6 % more instructions, it is 35.
#pragma once

#include "boxes.cuh"

namespace vocabseg {

constexpr int kCropImages = 16;    // in one launch
constexpr int kCropRows = 16;      // of a crop, computed by one thread
constexpr int kCropRuns = 8;       // most runs of that many rows in a block
constexpr int kCropThreads = 224;  // most threads of a block: for crops of 224 x 224, two runs of 112 pairs of columns

struct CropSource {
    const uint8_t* image;  // (h, w, 3), of less than 2^32 bytes
    const void* logits;    // (masks, mask_h, mask_w) float or half; not read if there are bits
    const uint32_t* bits;  // (masks, h, words of 32 columns) or null
    const int* boxes;      // (capacity, 4)
    const int* order;      // (capacity,): the mask of each region
    const int* count;      // number of regions
    MaskShape shape;
    int half;   // whether logits are half
    int first;  // crop of the first region
    int capacity;
};

struct CropSources {
    CropSource of[kCropImages];
};

struct CropSettings {
    float fill[3], background[3], gain[3];  // background: the normalised fill colour; gain: 1 / deviation
    float limit;                            // logit above which a pixel is inside
    int matting, size, crops;               // crops: the capacity
};

// Four neighbouring pixels of an image row, which are all that a column of the crop reads, and their weights.
struct CropColumn {
    int first;
    float weight[4];
};

__device__ __forceinline__ CropColumn crop_column(int left, int width, int image_width, int size, int x) {
    const CubicTap tap = cubic_tap(width, size, x);
    CropColumn column;
    column.first = max(0, min(left + tap.index[0], image_width - 4));
#pragma unroll
    for (int k = 0; k < 4; ++k) column.weight[k] = 0.0f;
#pragma unroll
    for (int k = 0; k < 4; ++k) {  // at the border several taps read the same pixel
        const int place = left + tap.index[k] - column.first;
#pragma unroll
        for (int p = 0; p < 4; ++p) column.weight[p] += place == p ? tap.weight[k] : 0.0f;
    }
    return column;
}

// Byte `place` (0 to 3) of a word, converted through the mantissa of 2^23.
template <int place> __device__ __forceinline__ float byte_of(uint32_t word) {
    return __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7440u | place)) - 8388608.0f;
}

// How much of each of the four pixels is inside, times its weight.
struct BitCoverage {
    const uint32_t* bits;  // of the region's mask
    int words;

    __device__ __forceinline__ bool weigh(int row, const CropColumn& column, float (&weight)[4]) const {
        const int word = column.first / 32, shift = column.first % 32;
        const uint32_t* own = bits + (row * words + word);  // a mask has less than 2^31 / 32 words
        const uint32_t low = __ldg(own);
        const uint32_t high = shift > 28 && word + 1 < words ? __ldg(own + 1) : 0u;
        const uint32_t four = __funnelshift_r(low, high, shift) & 15u;
#pragma unroll
        for (int p = 0; p < 4; ++p) weight[p] = (four >> p & 1u) != 0 ? column.weight[p] : 0.0f;
        return four != 0;
    }
    __device__ __forceinline__ bool inside(int row, int column) const {
        return (__ldg(bits + (row * words + column / 32)) >> column % 32 & 1u) != 0;
    }
};

struct LogitCoverage {
    const void* logits;  // of the region's mask
    MaskShape shape;
    bool half, matting;
    float limit;

    __device__ __forceinline__ float logit(const LinearTap& row, const LinearTap& column) const {
        float corner[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const int64_t at = static_cast<int64_t>(k < 2 ? row.low : row.high) * shape.mask_w +
                               (k % 2 == 0 ? column.low : column.high);
            corner[k] = half ? get(static_cast<const __half*>(logits) + at) : get(static_cast<const float*>(logits) + at);
        }
        return linear_mix(linear_mix(corner[0], corner[1], column.low_weight, column.high_weight),
                          linear_mix(corner[2], corner[3], column.low_weight, column.high_weight), row.low_weight,
                          row.high_weight);
    }
    __device__ __forceinline__ bool weigh(int row, const CropColumn& column, float (&weight)[4]) const {
        const LinearTap down = linear_tap(shape.mask_h, shape.padded_h, row);
        bool any = false;
#pragma unroll
        for (int p = 0; p < 4; ++p) {
            const LinearTap across = linear_tap(shape.mask_w, shape.padded_w, min(column.first + p, shape.w - 1));
            const float value = logit(down, across);
            const float share = matting ? sigmoid(value) : (is_inside(value, limit) ? 1.0f : 0.0f);
            weight[p] = share * column.weight[p];
            any = any || share > 0.0f;
        }
        return any;
    }
    __device__ __forceinline__ bool inside(int row, int column) const {
        return is_inside(logit(linear_tap(shape.mask_h, shape.padded_h, row),
                               linear_tap(shape.mask_w, shape.padded_w, column)), limit);
    }
};

template <bool kBits>
__device__ __forceinline__ auto coverage_of(const CropSource& source, int64_t mask, bool matting, float limit) {
    const MaskShape& shape = source.shape;
    if constexpr (kBits) {
        const int words = (shape.w + 31) / 32;
        const uint32_t* bits = source.bits + mask * shape.h * words;
        keep_pointer(bits);
        return BitCoverage{bits, words};
    } else {
        const int64_t offset = mask * shape.mask_h * shape.mask_w * (source.half != 0 ? 2 : 4);
        return LogitCoverage{static_cast<const unsigned char*>(source.logits) + offset, shape, source.half != 0, matting,
                             limit};
    }
}

// A row of the image combined horizontally, as the difference to the fill colour.
template <class Coverage>
__device__ __forceinline__ void mix_across(const CropSource& source, const CropSettings& settings,
                                           const Coverage& coverage, int row, const CropColumn& column,
                                           float (&mixed)[3]) {
    float weight[4];
    mixed[0] = mixed[1] = mixed[2] = 0.0f;
    if (!coverage.weigh(row, column, weight)) return;
    const auto address = reinterpret_cast<uintptr_t>(source.image);
    const auto* words = reinterpret_cast<const uint32_t*>(address & ~static_cast<uintptr_t>(3));
    const uint32_t skew = address & 3u, width = source.shape.w;
    const uint32_t at = skew + (static_cast<uint32_t>(row) * width + column.first) * 3u;
    uint32_t word[4];
    if (width >= 4) {  // then all four pixels are in the image, and so are the words that hold them
        const uint32_t* own = words + at / 4u;
        keep_pointer(own);
#pragma unroll
        for (int k = 0; k < 3; ++k) word[k] = __ldg(own + k);
        word[3] = __ldg(words + (at + 11u) / 4u);
    } else {
        const uint32_t last = (skew + static_cast<uint32_t>(source.shape.h) * width * 3u - 1u) / 4u;
#pragma unroll
        for (uint32_t k = 0; k < 4; ++k) word[k] = __ldg(words + min(k < 3 ? at / 4u + k : (at + 11u) / 4u, last));
    }
    uint32_t pixels[3];  // r g b r, g b r g, b r g b, from the lowest byte on
#pragma unroll
    for (int k = 0; k < 3; ++k) pixels[k] = __funnelshift_r(word[k], word[k + 1], at % 4u * 8u);
    const float red[4] = {byte_of<0>(pixels[0]), byte_of<3>(pixels[0]), byte_of<2>(pixels[1]), byte_of<1>(pixels[2])};
    const float green[4] = {byte_of<1>(pixels[0]), byte_of<0>(pixels[1]), byte_of<3>(pixels[1]), byte_of<2>(pixels[2])};
    const float blue[4] = {byte_of<2>(pixels[0]), byte_of<1>(pixels[1]), byte_of<0>(pixels[2]), byte_of<3>(pixels[2])};
    float covered = 0.0f;
#pragma unroll
    for (int p = 0; p < 4; ++p) {
        mixed[0] = fmaf(weight[p], red[p], mixed[0]);
        mixed[1] = fmaf(weight[p], green[p], mixed[1]);
        mixed[2] = fmaf(weight[p], blue[p], mixed[2]);
        covered += weight[p];
    }
#pragma unroll
    for (int c = 0; c < 3; ++c) mixed[c] = fmaf(-covered, settings.fill[c], mixed[c]);
}

__device__ __forceinline__ void put_two(float* target, float first, float second) {
    *reinterpret_cast<float2*>(target) = make_float2(first, second);
}
__device__ __forceinline__ void put_two(__half* target, float first, float second) {
    const uint32_t low = __half_as_ushort(__float2half_rn(first)), high = __half_as_ushort(__float2half_rn(second));
    *reinterpret_cast<uint32_t*>(target) = low | high << 16;
}

// blockIdx: x the band, y the region, z the image; a band has blockDim.x pairs of columns and blockDim.y runs of rows;
// `across` bands lie side by side.
template <class Out, bool kBits>
__device__ __forceinline__ void crop_regions(const CropSource& source, const CropSettings& settings, int across, Out* crops,
                                             CubicWeights (*taps)[kCropRows]) {
    const int region = blockIdx.y, crop = source.first + region, size = settings.size;
    if (region >= source.capacity || region >= __ldg(source.count) || crop >= settings.crops) return;  // the whole block
    const int left = __ldg(source.boxes + 4 * region), top = __ldg(source.boxes + 4 * region + 1);
    const int width = __ldg(source.boxes + 4 * region + 2) - left;
    const int height = __ldg(source.boxes + 4 * region + 3) - top;

    const int run = blockIdx.x / across * blockDim.y + threadIdx.y, first_row = run * kCropRows;
    for (int k = threadIdx.x; k < kCropRows; k += blockDim.x) {
        taps[threadIdx.y][k] = cubic_weights(height, size, min(first_row + k, size - 1));
    }
    __syncthreads();
    const int x = (blockIdx.x % across * blockDim.x + threadIdx.x) * 2, rows = min(kCropRows, size - first_row);
    if (x >= size || rows <= 0) return;

    const int64_t mask = __ldg(source.order + region);
    CropColumn columns[2];
#pragma unroll
    for (int k = 0; k < 2; ++k) columns[k] = crop_column(left, width, source.shape.w, size, min(x + k, size - 1));
    const auto coverage = coverage_of<kBits>(source, mask, settings.matting != 0, settings.limit);

    float kept[4][2][3];  // rows of the image, the latest last
#pragma unroll
    for (int k = 0; k < 4; ++k) {
#pragma unroll
        for (int c = 0; c < 6; ++c) kept[k][c / 3][c % 3] = 0.0f;
    }
    const int64_t plane = static_cast<int64_t>(size) * size;
    Out* out = crops + crop * 3 * plane + static_cast<int64_t>(first_row) * size + x;
    int latest = taps[threadIdx.y][0].base - 2;
    for (int k = 0; k < rows; ++k, out += size) {
        const CubicWeights tap = taps[threadIdx.y][k];
        while (latest < tap.base + 2) {
            latest = max(latest + 1, tap.base - 1);
#pragma unroll
            for (int c = 0; c < 6; ++c) {
                kept[0][c / 3][c % 3] = kept[1][c / 3][c % 3];
                kept[1][c / 3][c % 3] = kept[2][c / 3][c % 3];
                kept[2][c / 3][c % 3] = kept[3][c / 3][c % 3];
            }
            const int row = top + clamp_index(latest, height);
#pragma unroll
            for (int side = 0; side < 2; ++side) mix_across(source, settings, coverage, row, columns[side], kept[3][side]);
        }
#pragma unroll
        for (int c = 0; c < 3; ++c) {
            float value[2];
#pragma unroll
            for (int side = 0; side < 2; ++side) {
                float sum = kept[0][side][c] * tap.weight[0];
#pragma unroll
                for (int r = 1; r < 4; ++r) sum = fmaf(kept[r][side][c], tap.weight[r], sum);
                value[side] = fmaf(sum, settings.gain[c], settings.background[c]);
            }
            if (size % 2 == 0) {
                put_two(out + c * plane, value[0], value[1]);
            } else {
                put(out + c * plane, value[0]);
                if (x + 1 < size) put(out + c * plane + 1, value[1]);
            }
        }
    }
}

}  // namespace vocabseg

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800  // 1,024 threads to a multiprocessor
#define VOCABSEG_CROP_BLOCKS 4
#else
#define VOCABSEG_CROP_BLOCKS 5
#endif
#define VOCABSEG_CROP_KERNEL(name, Out, has_bits, blocks)                                                        \
    extern "C" __global__ void __launch_bounds__(vocabseg::kCropThreads, blocks)                                 \
        name(vocabseg::CropSources sources, vocabseg::CropSettings settings, int across, Out* crops) {           \
        __shared__ vocabseg::CubicWeights taps[vocabseg::kCropRuns][vocabseg::kCropRows];                        \
        vocabseg::crop_regions<Out, has_bits>(sources.of[blockIdx.z], settings, across, crops, taps);            \
    }
VOCABSEG_CROP_KERNEL(crop_regions_bits_f32, float, true, VOCABSEG_CROP_BLOCKS)
VOCABSEG_CROP_KERNEL(crop_regions_bits_f16, __half, true, VOCABSEG_CROP_BLOCKS)
VOCABSEG_CROP_KERNEL(crop_regions_logits_f32, float, false, 2)
VOCABSEG_CROP_KERNEL(crop_regions_logits_f16, __half, false, 2)
#undef VOCABSEG_CROP_KERNEL
#undef VOCABSEG_CROP_BLOCKS
