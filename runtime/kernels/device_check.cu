// Compiled, never run: every function of pixel_math.h called from device code.
#include "pixel_math.h"

using namespace vocabseg;

__global__ void device_check(const float* mask, const uint8_t* image, int h, int w, int out_h, int out_w,
                             double threshold, int32_t* weights, float* out, uint8_t* resized) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= out_w || y >= out_h) return;
    const int pixel = y * out_w + x;

    int32_t* own = weights + static_cast<int64_t>(pixel) * triangle_capacity(w, out_w);
    const TriangleSpan span = triangle_weights(w, out_w, x, own);
    int32_t sum = triangle_start();
    for (int k = 0; k < span.count; ++k) sum += image[clamp_index(y, h) * w + span.first + k] * own[k];
    resized[pixel] = triangle_pixel(sum);

    const float logit = sample_mask(mask, w, linear_tap(h, out_h, y), linear_tap(w, out_w, x));
    const float coverage = is_inside(logit, threshold_logit(threshold)) ? 1.0f : sigmoid(logit);
    const CubicTap tap = cubic_tap(w, out_w, x);
    const float* row = mask + clamp_index(y, h) * w;
    const int* at = tap.index;
    const float mixed = cubic_mix(row[at[0]], row[at[1]], row[at[2]], row[at[3]], tap.weight);
    out[pixel] = normalise(blend(mixed, coverage, 0.5f), 1.0f, 2.0f);
}
