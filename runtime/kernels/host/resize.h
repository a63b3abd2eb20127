// resize_normalize on the host: rows first, then columns, as Pillow does, with the 8-bit rounding between the two.
#pragma once

#include <algorithm>
#include <vector>

#include "variants.h"
#include "parallel.h"

namespace vocabseg {

class TriangleTable {
public:
    TriangleTable(int in_size, int out_size)
        : capacity_(triangle_capacity(in_size, out_size)),
          spans_(out_size),
          weights_(static_cast<size_t>(out_size) * capacity_) {
        for (int o = 0; o < out_size; ++o) {
            spans_[o] = triangle_weights(in_size, out_size, o, weights_.data() + static_cast<size_t>(o) * capacity_);
        }
    }
    int capacity() const { return capacity_; }
    const TriangleSpan* spans() const { return spans_.data(); }
    const TriangleSpan& span(int o) const { return spans_[o]; }
    const int32_t* weights(int o) const { return weights_.data() + static_cast<size_t>(o) * capacity_; }

private:
    int capacity_;
    std::vector<TriangleSpan> spans_;
    std::vector<int32_t> weights_;
};

// The normalised value of each of the 256 pixel values in each channel.
struct NormaliseTable {
    float value[3][256];
    NormaliseTable(const float* mean, const float* deviation) {
        for (int c = 0; c < 3; ++c) {
            for (int v = 0; v < 256; ++v) value[c][v] = normalise(static_cast<float>(v), mean[c], deviation[c]);
        }
    }
};

// image (in_h, in_w, 3) -> resized (h, w, 3) and network_input (3, padded_h, padded_w).
inline void resize_normalize(const uint8_t* image, int in_h, int in_w, int h, int w, int padded_h, int padded_w,
                             const float* mean, const float* deviation, int threads, float* network_input,
                             uint8_t* resized) {
    const TriangleTable columns(in_w, w), rows(in_h, h);
    const NormaliseTable normalised(mean, deviation);
    const Loops& loop = loops();
    const int first_row = rows.span(0).first;
    const int used_rows = rows.span(h - 1).first + rows.span(h - 1).count - first_row;
    const size_t stride = static_cast<size_t>(w) * 3;
    std::vector<uint8_t> narrow(used_rows * stride);
    constexpr int kBand = 16;

    parallel_for((used_rows + kBand - 1) / kBand, threads, [&] {
        return [&](int band) {
            for (int y = band * kBand; y < std::min(used_rows, (band + 1) * kBand); ++y) {
                const uint8_t* source = image + static_cast<size_t>(y + first_row) * in_w * 3;
                loop.triangle_columns(source, columns.spans(), columns.weights(0), columns.capacity(), w,
                                      narrow.data() + y * stride);
            }
        };
    });

    const size_t plane = static_cast<size_t>(padded_h) * padded_w;
    parallel_for((padded_h + kBand - 1) / kBand, threads, [&] {
        return [&, sums = std::vector<int32_t>(stride)](int band) mutable {
            for (int y = band * kBand; y < std::min(padded_h, (band + 1) * kBand); ++y) {
                float* target = network_input + static_cast<size_t>(y) * padded_w;
                if (y >= h) {
                    for (int c = 0; c < 3; ++c) std::fill_n(target + c * plane, padded_w, 0.0f);
                    continue;
                }
                const TriangleSpan& span = rows.span(y);
                uint8_t* row = resized + y * stride;
                loop.triangle_rows(narrow.data() + (span.first - first_row) * stride, stride, rows.weights(y),
                                   span.count, stride, sums.data(), row);
                for (int c = 0; c < 3; ++c) {
                    const float* table = normalised.value[c];
                    float* out = target + c * plane;
                    for (int x = 0; x < w; ++x) out[x] = table[row[3 * x + c]];
                    std::fill(out + w, out + padded_w, 0.0f);
                }
            }
        };
    });
}

}  // namespace vocabseg
