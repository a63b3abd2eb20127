// Loops of resize_normalize: Pillow's fixed-point sums.
#pragma once

#include "loops.h"

namespace vocabseg {

static void triangle_columns(const uint8_t* source, const TriangleSpan* spans, const int32_t* weights, int capacity,
                             int count, uint8_t* __restrict out) {
    for (int x = 0; x < count; ++x, weights += capacity) {
        const uint8_t* pixel = source + static_cast<size_t>(spans[x].first) * 3;
        int32_t red = triangle_start(), green = red, blue = red;
        for (int k = 0; k < spans[x].count; ++k, pixel += 3) {
            red += pixel[0] * weights[k];
            green += pixel[1] * weights[k];
            blue += pixel[2] * weights[k];
        }
        out[3 * x] = triangle_pixel(red);
        out[3 * x + 1] = triangle_pixel(green);
        out[3 * x + 2] = triangle_pixel(blue);
    }
}

static void triangle_rows(const uint8_t* source, size_t stride, const int32_t* weights, int rows, size_t count,
                          int32_t* __restrict sums, uint8_t* __restrict out) {
    for (size_t k = 0; k < count; ++k) sums[k] = triangle_start();
    for (int y = 0; y < rows; ++y, source += stride) {
        const int32_t weight = weights[y];
        for (size_t k = 0; k < count; ++k) sums[k] += source[k] * weight;
    }
    for (size_t k = 0; k < count; ++k) out[k] = triangle_pixel(sums[k]);
}

}  // namespace vocabseg
