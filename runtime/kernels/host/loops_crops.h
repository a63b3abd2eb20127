// Loops of crop_regions over pixels of four floats: red, green, blue and an unused one, so that a pixel is a vector.
#pragma once

#include "loops_masks.h"

namespace vocabseg {

static void cut_row(const float* mask, float limit, const float* pixels, const float* background, int count,
                    float* __restrict out) {
    int x = 0;
#if defined(VOCABSEG_SHUFFLES)
    // Each pixel's mask value is broadcast to the pixel's four lanes.
    constexpr int kPixels = kLanes / 4;
    Lanes outside;
    IntLanes spread;
    for (int k = 0; k < kLanes; ++k) {
        outside[k] = background[k % 4];
        spread[k] = k / 4;
    }
    for (; x + kLanes <= count; x += kLanes) {
        const Lanes logits = load(mask + x);
        for (int part = 0; part < 4; ++part) {
            const Lanes own = __builtin_shuffle(logits, spread + part * kPixels);
            const int at = 4 * (x + part * kPixels);
            store(out + at, own > limit ? load(pixels + at) : outside);
        }
    }
#endif
    for (; x < count; ++x) {
        store_pixel(out + 4 * x, load_pixel(is_inside(mask[x], limit) ? pixels + 4 * x : background));
    }
}

static void matte_row(const float* coverage, const float* pixels, const float* fill, const float* mean,
                      const float* deviation, int count, float* __restrict out) {
    for (int x = 0; x < count; ++x) {
        for (int c = 0; c < 4; ++c) {
            const float value = blend(pixels[4 * x + c], coverage[x], fill[c]);
            out[4 * x + c] = normalise(value, mean[c], deviation[c]);
        }
    }
}

static void cubic_columns(const float* pixels, const CubicTap* taps, int count, float* __restrict out) {
    for (int x = 0; x < count; ++x) {
        const CubicTap& tap = taps[x];
        Pixel sum = load_pixel(pixels + 4 * tap.index[0]) * tap.weight[0];  // in the order of cubic_mix
        for (int k = 1; k < 4; ++k) sum = sum + load_pixel(pixels + 4 * tap.index[k]) * tap.weight[k];
        store_pixel(out + 4 * x, sum);
    }
}

static void cubic_rows(const float* const* rows, const float* weight, int count, float* __restrict scratch,
                       float* const* planes) {
    const float *a = rows[0], *b = rows[1], *c = rows[2], *d = rows[3];
    const float weights[4] = {weight[0], weight[1], weight[2], weight[3]};
    for (int k = 0; k < 4 * count; ++k) scratch[k] = cubic_mix(a[k], b[k], c[k], d[k], weights);
    float *__restrict red = planes[0], *__restrict green = planes[1], *__restrict blue = planes[2];
    for (int x = 0; x < count; ++x) {
        red[x] = scratch[4 * x];
        green[x] = scratch[4 * x + 1];
        blue[x] = scratch[4 * x + 2];
    }
}

}  // namespace vocabseg
