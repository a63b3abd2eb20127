// The arithmetic of one pixel, written once: host/loops.cpp loops over it, CUDA kernels launch it.
//
// Everything here is a plain inline function of numbers and pointers, so nvcc compiles it for the device as it stands.
// Results are bit-identical on every machine as long as the compiler does not fuse multiply-adds by itself: build with
// -ffp-contract=off (g++, clang++) and --fmad=false (nvcc). Nothing calls the C library's exp, which differs between
// platforms. Intended fused multiply-adds are written as fmaf.
//
// Sources
//   triangle_*     Pillow, src/libImaging/Resample.c: antialiased BILINEAR of 8-bit images in 22-bit fixed point. Rows
//                  are resampled first, then columns, each to 8 bits, as in Pillow up to version 12; from 13 on it
//                  resamples very tall images in the other order, which differs by rounding
//   linear_*       torch.nn.functional.interpolate(mode="bilinear", align_corners=False), float32
//   cubic_*        torch.nn.functional.interpolate(mode="bicubic", align_corners=False), float32; R. Keys,
//                  "Cubic convolution interpolation for digital image processing", 1981, with a = -0.75
//   nearest_*      torch.nn.functional.interpolate(mode="nearest"), float32
//   exponential    Cephes expf (S. Moshier): argument reduction by log 2 and a degree-5 polynomial, below 2 ulp
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__CUDACC__)
#define VOCABSEG_HD __host__ __device__ __forceinline__
#else
#define VOCABSEG_HD static inline  // static: each unit of host/loops.cpp keeps code for its own instruction set
#endif

namespace vocabseg {

VOCABSEG_HD int clamp_index(int index, int size) { return index < 0 ? 0 : (index >= size ? size - 1 : index); }

// --- Pillow's bilinear resize of 8-bit images -----------------------------------------------------------------------

constexpr int kTriangleBits = 32 - 8 - 2;  // fraction bits: 8 bits of pixel and 2 of headroom fit a 32-bit sum

struct TriangleSpan {
    int first;  // first source pixel
    int count;  // number of source pixels
};

// Downscaling widens the triangle to one output pixel on either side; upscaling keeps it at one source pixel.
VOCABSEG_HD double triangle_radius(int in_size, int out_size) {
    const double scale = static_cast<double>(in_size) / out_size;
    return scale < 1.0 ? 1.0 : scale;
}

// The most source pixels that any output pixel reads.
VOCABSEG_HD int triangle_capacity(int in_size, int out_size) {
    return static_cast<int>(ceil(triangle_radius(in_size, out_size))) * 2 + 1;
}

VOCABSEG_HD TriangleSpan triangle_span(int in_size, int out_size, int out_index) {
    const double radius = triangle_radius(in_size, out_size);
    const double centre = (out_index + 0.5) * (static_cast<double>(in_size) / out_size);
    int first = static_cast<int>(centre - radius + 0.5);
    int last = static_cast<int>(centre + radius + 0.5);
    if (first < 0) first = 0;
    if (last > in_size) last = in_size;
    return {first, last - first};
}

VOCABSEG_HD double triangle_weight(int in_size, int out_size, int out_index, int in_index) {
    const double centre = (out_index + 0.5) * (static_cast<double>(in_size) / out_size);
    const double inverse_radius = 1.0 / triangle_radius(in_size, out_size);
    const double distance = fabs((in_index - centre + 0.5) * inverse_radius);
    return distance < 1.0 ? 1.0 - distance : 0.0;
}

// Writes span.count fixed-point weights, which sum to about 2^22, and returns the span.
VOCABSEG_HD TriangleSpan triangle_weights(int in_size, int out_size, int out_index, int32_t* weights) {
    const TriangleSpan span = triangle_span(in_size, out_size, out_index);
    double sum = 0.0;
    for (int k = 0; k < span.count; ++k) sum += triangle_weight(in_size, out_size, out_index, span.first + k);
    for (int k = 0; k < span.count; ++k) {
        double weight = triangle_weight(in_size, out_size, out_index, span.first + k);
        if (sum != 0.0) weight /= sum;
        weights[k] = static_cast<int32_t>(0.5 + weight * (1 << kTriangleBits));
    }
    return span;
}

// Sums start at one half, so that the shift rounds.
VOCABSEG_HD int32_t triangle_start() { return 1 << (kTriangleBits - 1); }

VOCABSEG_HD uint8_t triangle_pixel(int32_t sum) {
    const int32_t value = sum >> kTriangleBits;
    return static_cast<uint8_t>(value < 0 ? 0 : (value > 255 ? 255 : value));
}

// --- Bilinear sampling of masks -------------------------------------------------------------------------------------

struct LinearTap {
    int low, high;                  // source indices
    float low_weight, high_weight;  // sum to 1
};

VOCABSEG_HD float source_scale(int in_size, int out_size) {
    return static_cast<float>(in_size) / static_cast<float>(out_size);
}

// The position of an output pixel's centre among the source pixels. torch's compiled bicubic code rounds it once (a
// fused multiply-add); rounding twice moves a tap by up to 6e-5 pixel in a source of 1000.
VOCABSEG_HD float source_position(int in_size, int out_size, int out_index) {
    return fmaf(source_scale(in_size, out_size), static_cast<float>(out_index) + 0.5f, -0.5f);
}

VOCABSEG_HD LinearTap linear_tap(int in_size, int out_size, int out_index) {
    float x = source_position(in_size, out_size, out_index);
    if (x < 0.0f) x = 0.0f;
    int low = static_cast<int>(x);
    if (low > in_size - 1) low = in_size - 1;
    const int high = low < in_size - 1 ? low + 1 : low;
    float fraction = x - static_cast<float>(low);
    if (fraction > 1.0f) fraction = 1.0f;
    return {low, high, 1.0f - fraction, fraction};
}

VOCABSEG_HD float linear_mix(float low, float high, float low_weight, float high_weight) {
    return low * low_weight + high * high_weight;
}

// `mask` is row-major with `width` columns. Columns are mixed first, then rows.
VOCABSEG_HD float sample_mask(const float* mask, int width, const LinearTap& row, const LinearTap& column) {
    const float* above = mask + static_cast<int64_t>(row.low) * width;
    const float* below = mask + static_cast<int64_t>(row.high) * width;
    return linear_mix(linear_mix(above[column.low], above[column.high], column.low_weight, column.high_weight),
                      linear_mix(below[column.low], below[column.high], column.low_weight, column.high_weight),
                      row.low_weight, row.high_weight);
}

// --- Threshold and sigmoid ------------------------------------------------------------------------------------------

// A pixel is inside if its probability, rounded to float32, exceeds the threshold: its exact probability then lies
// above the midpoint between the threshold and the next float. Comparing logits avoids the rounding of an exponential.
VOCABSEG_HD float threshold_logit(double threshold) {
    const float rounded = static_cast<float>(threshold);
    if (rounded < 0.0f) return -INFINITY;
    const double middle = 0.5 * (static_cast<double>(rounded) + static_cast<double>(nextafterf(rounded, 2.0f)));
    if (middle >= 1.0) return INFINITY;
    return static_cast<float>(log(middle / (1.0 - middle)));
}

VOCABSEG_HD bool is_inside(float logit, float logit_threshold) { return logit > logit_threshold; }

VOCABSEG_HD float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    const float rounder = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low mantissa bits
    const float shifted = x * 1.44269504088896341f + rounder;
    const float power = shifted - rounder;
    float r = x - power * 0.693359375f;
    r = r - power * -2.12194440e-4f;
    float y = 1.9875691500e-4f;
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * (r * r) + r + 1.0f;
    // The exponent's bits come from the mantissa of `shifted`, so that NaN is never converted to an integer.
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 127u) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return y * scale;
}

VOCABSEG_HD float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

// --- Boxes ----------------------------------------------------------------------------------------------------------

struct Box {
    int left, top, right, bottom;  // right and bottom are exclusive
};

// One side of geometry.expand_boxes: [first, last) scaled about its centre, truncated, and clipped to [0, size); if
// nothing would be left, one pixel at the centre.
VOCABSEG_HD void expand_side(int& first, int& last, float ratio, int size) {
    const float low = static_cast<float>(first), high = static_cast<float>(last);
    const float centre = 0.5f * (low + high), reach = 0.5f * ((high - low) * ratio);
    first = static_cast<int>(centre - reach);
    last = static_cast<int>(centre + reach);
    first = first < 0 ? 0 : first;
    last = last > size ? size : last;
    if (last > first) return;
    first = clamp_index(static_cast<int>(centre), size);
    last = first + 1;
}

VOCABSEG_HD Box expand_box(Box box, float ratio, int height, int width) {
    expand_side(box.left, box.right, ratio, width);
    expand_side(box.top, box.bottom, ratio, height);
    return box;
}

// --- Crops ----------------------------------------------------------------------------------------------------------

VOCABSEG_HD float blend(float value, float coverage, float fill) {
    return value * coverage + (1.0f - coverage) * fill;
}

VOCABSEG_HD float normalise(float value, float mean, float deviation) { return (value - mean) / deviation; }

struct CubicTap {
    int index[4];  // source indices, clamped to the border
    float weight[4];
};

VOCABSEG_HD float cubic_near(float distance) {  // |distance| <= 1
    const float a = -0.75f;
    return ((a + 2.0f) * distance - (a + 3.0f)) * distance * distance + 1.0f;
}

VOCABSEG_HD float cubic_far(float distance) {  // 1 < |distance| <= 2
    const float a = -0.75f;
    return ((a * distance - 5.0f * a) * distance + 8.0f * a) * distance - 4.0f * a;
}

// The weights of the source pixels base - 1 to base + 2, not clamped to the border.
struct CubicWeights {
    int base;
    float weight[4];
};

VOCABSEG_HD CubicWeights cubic_weights(int in_size, int out_size, int out_index) {
    const float x = source_position(in_size, out_size, out_index);
    CubicWeights out;
    out.base = static_cast<int>(floorf(x));
    if (out.base > in_size - 1) out.base = in_size - 1;
    float t = x - static_cast<float>(out.base);
    t = t < 0.0f ? 0.0f : (t > 1.0f ? 1.0f : t);
    out.weight[0] = cubic_far(t + 1.0f);
    out.weight[1] = cubic_near(t);
    out.weight[2] = cubic_near(1.0f - t);
    out.weight[3] = cubic_far((1.0f - t) + 1.0f);
    return out;
}

VOCABSEG_HD CubicTap cubic_tap(int in_size, int out_size, int out_index) {
    const CubicWeights from = cubic_weights(in_size, out_size, out_index);
    CubicTap tap;
    for (int k = 0; k < 4; ++k) {
        tap.index[k] = clamp_index(from.base - 1 + k, in_size);
        tap.weight[k] = from.weight[k];
    }
    return tap;
}

VOCABSEG_HD float cubic_mix(float a, float b, float c, float d, const float* weight) {
    return a * weight[0] + b * weight[1] + c * weight[2] + d * weight[3];
}

// --- Patch masks ----------------------------------------------------------------------------------------------------

// The source pixel of an output pixel.
VOCABSEG_HD int nearest_index(int in_size, int out_size, int out_index) {
    return clamp_index(static_cast<int>(static_cast<float>(out_index) * source_scale(in_size, out_size)), in_size);
}

// The logit above which a pixel counts for its patch. With matting the mask is the probability 1 / (1 + exp(-x)), and a
// pixel counts unless that is 0, which it is where exp(-x) overflows float32: from ln(2^128) = 88.72284 on.
VOCABSEG_HD float patch_limit(double threshold, bool matting) {
    return matting ? -88.72284f : threshold_logit(threshold);
}

}  // namespace vocabseg
