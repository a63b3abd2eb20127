// resize_normalize: Pillow's bilinear resize, bit for bit, and the same normalised and padded, in one pass.
//
// A block computes 32 x 8 pixels of the padded network input. It resizes the image rows that these need to its 32
// columns, rounded to 8 bits as in Pillow, 32 rows at a time in shared memory, and sums them in fixed point.
//
// 427 x 640 -> 640 x 959, float16: 0.8 MB read, 1.8 MB and 3.7 MB written: 1.3 us at 4.8 TB/s. Counted for sm_90
// (kernel_bench --estimate): 4.2 to 6.9 M instructions of warps, 4 to 7 us at the 1.05 T/s that an H200 issues. Measured
// on an H200: 11.5 us.
#pragma once

#include "platform.cuh"

namespace vocabseg {

constexpr int kResizeWidth = 32, kResizeHeight = 8, kResizeRows = 32;

struct ResizeTable {
    const int2* spans;       // first source pixel and number of source pixels, for every output pixel
    const int32_t* weights;  // (output pixels, capacity)
    int capacity;
};

struct ResizeShape {
    int in_h, in_w, h, w, padded_h, padded_w;
};

struct Colours {
    float mean[3], deviation[3];
};

// Rows [first, first + count) of the image at the block's columns, to narrow[row][channel][column].
__device__ __forceinline__ void narrow_rows(const uint8_t* image, const ResizeShape& shape, const ResizeTable& columns,
                                            int left, int first, int count,
                                            uint8_t (*narrow)[3][kResizeWidth]) {
    const int x = left + threadIdx.x;
    if (x >= shape.w) return;
    const int2 span = columns.spans[x];
    const int32_t* weights = columns.weights + static_cast<int64_t>(x) * columns.capacity;
    for (int row = threadIdx.y; row < count; row += kResizeHeight) {
        const uint8_t* pixel = image + (static_cast<int64_t>(first + row) * shape.in_w + span.x) * 3;
        int32_t sums[3] = {triangle_start(), triangle_start(), triangle_start()};
        for (int k = 0; k < span.y; ++k, pixel += 3) {
            const int32_t weight = __ldg(weights + k);
            for (int c = 0; c < 3; ++c) sums[c] += __ldg(pixel + c) * weight;
        }
        for (int c = 0; c < 3; ++c) narrow[row][c][threadIdx.x] = triangle_pixel(sums[c]);
    }
}

template <class Out>
__device__ __forceinline__ void resize_normalize(const uint8_t* image, const ResizeShape& shape,
                                                 const ResizeTable& columns, const ResizeTable& rows,
                                                 const Colours& colours, Out* network_input, uint8_t* resized,
                                                 uint8_t (*narrow)[3][kResizeWidth]) {
    const int left = blockIdx.x * kResizeWidth, top = blockIdx.y * kResizeHeight;
    const int x = left + threadIdx.x, y = top + threadIdx.y;
    const bool inside = x < shape.w && y < shape.h;
    int32_t sums[3] = {triangle_start(), triangle_start(), triangle_start()};
    if (left < shape.w && top < shape.h) {  // the same for the whole block
        const int2 span = rows.spans[inside ? y : top];
        const int bottom = min(top + kResizeHeight, shape.h) - 1;
        const int last = rows.spans[bottom].x + rows.spans[bottom].y;
        const int32_t* weights = rows.weights + static_cast<int64_t>(inside ? y : top) * rows.capacity;
        for (int first = rows.spans[top].x; first < last; first += kResizeRows) {
            const int count = min(kResizeRows, last - first);
            narrow_rows(image, shape, columns, left, first, count, narrow);
            __syncthreads();
            if (inside) {
                const int from = max(span.x, first), past = min(span.x + span.y, first + count);
                for (int row = from; row < past; ++row) {
                    const int32_t weight = __ldg(weights + row - span.x);
                    for (int c = 0; c < 3; ++c) sums[c] += narrow[row - first][c][threadIdx.x] * weight;
                }
            }
            __syncthreads();
        }
    }
    if (x >= shape.padded_w || y >= shape.padded_h) return;
    const int64_t plane = static_cast<int64_t>(shape.padded_h) * shape.padded_w;
    Out* out = network_input + static_cast<int64_t>(y) * shape.padded_w + x;
    uint8_t* pixel = resized + (static_cast<int64_t>(y) * shape.w + x) * 3;
    for (int c = 0; c < 3; ++c) {
        const uint8_t value = triangle_pixel(sums[c]);
        if (inside) pixel[c] = value;
        put(out + c * plane, inside ? normalise(static_cast<float>(value), colours.mean[c], colours.deviation[c]) : 0.0f);
    }
}

}  // namespace vocabseg

// Writes the table of one axis, one thread per output pixel.
extern "C" __global__ void resize_table(int in_size, int out_size, int capacity, int2* spans, int32_t* weights) {
    const int o = blockIdx.x * blockDim.x + threadIdx.x;
    if (o >= out_size) return;
    const auto span = vocabseg::triangle_weights(in_size, out_size, o, weights + static_cast<int64_t>(o) * capacity);
    spans[o] = make_int2(span.first, span.count);
}

extern "C" __global__ void __launch_bounds__(256)
    resize_normalize_f32(const uint8_t* image, vocabseg::ResizeShape shape, vocabseg::ResizeTable columns,
                         vocabseg::ResizeTable rows, vocabseg::Colours colours, float* network_input, uint8_t* resized) {
    __shared__ uint8_t narrow[vocabseg::kResizeRows][3][vocabseg::kResizeWidth];
    vocabseg::resize_normalize(image, shape, columns, rows, colours, network_input, resized, narrow);
}

extern "C" __global__ void __launch_bounds__(256)
    resize_normalize_f16(const uint8_t* image, vocabseg::ResizeShape shape, vocabseg::ResizeTable columns,
                         vocabseg::ResizeTable rows, vocabseg::Colours colours, __half* network_input, uint8_t* resized) {
    __shared__ uint8_t narrow[vocabseg::kResizeRows][3][vocabseg::kResizeWidth];
    vocabseg::resize_normalize(image, shape, columns, rows, colours, network_input, resized, narrow);
}
