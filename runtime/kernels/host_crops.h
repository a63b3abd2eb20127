// crop_regions on the host: cut, fill, normalise and bicubic in one pass over the rows of a region.
#pragma once

#include <vector>

#include "host_masks.h"
#include "host_resize.h"

namespace vocabseg {

struct CropSettings {
    double threshold;
    bool matting;
    const float *fill, *mean, *deviation;  // (3,) each, 0..255
    int size;
};

// Makes rows of one region's crop: a row of the image is masked, normalised and resampled horizontally once, and kept
// while it is among the four that the next row of the crop mixes.
class CropRows {
public:
    CropRows(const uint8_t* image, Size image_size, const MaskGrid& grid, const NormaliseTable& normalised,
             const CropSettings& settings)
        : image_(image), image_size_(image_size), grid_(grid), normalised_(normalised), settings_(settings),
          limit_(threshold_logit(settings.threshold)), taps_(settings.size),
          mask_scratch_(MaskRows::scratch_size(image_size.w)), mask_row_(image_size.w),
          pixels_(static_cast<size_t>(image_size.w) * 3), ring_(static_cast<size_t>(settings.size) * 3 * 4) {}

    // Rows [first, last) of the crop of `box` into crop (3, size, size).
    void make(const float* logits, const int32_t* box, int first, int last, float* crop) {
        left_ = box[0];
        top_ = box[1];
        width_ = box[2] - box[0];
        const int height = box[3] - box[1], size = settings_.size;
        for (int x = 0; x < size; ++x) taps_[x] = cubic_tap(width_, size, x);
        for (int& row : kept_) row = -1;
        MaskRows rows(grid_, logits, left_, width_, mask_scratch_.data());
        for (int y = first; y < last; ++y) {
            const CubicTap tap = cubic_tap(height, size, y);
            const float* source[4];
            for (int k = 0; k < 4; ++k) source[k] = resampled(rows, tap.index[k]);
            for (int c = 0; c < 3; ++c) {
                float* out = crop + (static_cast<size_t>(c) * size + y) * size;
                const size_t offset = static_cast<size_t>(c) * size;
                const float *s0 = source[0] + offset, *s1 = source[1] + offset, *s2 = source[2] + offset,
                            *s3 = source[3] + offset;
                for (int x = 0; x < size; ++x) out[x] = cubic_mix(s0[x], s1[x], s2[x], s3[x], tap.weight);
            }
        }
    }

private:
    const float* resampled(MaskRows& rows, int row) {
        const int slot = row & 3, size = settings_.size;
        float* target = ring_.data() + static_cast<size_t>(slot) * 3 * size;
        if (kept_[slot] == row) return target;
        rows.read(top_ + row, mask_row_.data());
        const uint8_t* source = image_ + (static_cast<size_t>(top_ + row) * image_size_.w + left_) * 3;
        for (int c = 0; c < 3; ++c) {
            float* line = pixels_.data();
            if (settings_.matting) {
                matte(source, c, line);
            } else {
                cut(source, c, line);
            }
            float* out = target + static_cast<size_t>(c) * size;
            for (int x = 0; x < size; ++x) {
                const CubicTap& tap = taps_[x];
                out[x] = cubic_mix(line[tap.index[0]], line[tap.index[1]], line[tap.index[2]], line[tap.index[3]],
                                   tap.weight);
            }
        }
        kept_[slot] = row;
        return target;
    }

    void cut(const uint8_t* source, int c, float* line) const {
        const float* table = normalised_.value[c];
        const float background = normalise(settings_.fill[c], settings_.mean[c], settings_.deviation[c]);
        for (int x = 0; x < width_; ++x) {
            line[x] = is_inside(mask_row_[x], limit_) ? table[source[3 * x + c]] : background;
        }
    }

    void matte(const uint8_t* source, int c, float* line) const {
        for (int x = 0; x < width_; ++x) {
            const float value = blend(source[3 * x + c], sigmoid(mask_row_[x]), settings_.fill[c]);
            line[x] = normalise(value, settings_.mean[c], settings_.deviation[c]);
        }
    }

    const uint8_t* image_;
    Size image_size_;
    const MaskGrid& grid_;
    const NormaliseTable& normalised_;
    const CropSettings& settings_;
    float limit_;
    std::vector<CubicTap> taps_;
    std::vector<float> mask_scratch_, mask_row_, pixels_, ring_;
    int left_ = 0, top_ = 0, width_ = 0;
    int kept_[4] = {-1, -1, -1, -1};
};

// boxes (regions, 4), indices (regions,) into mask_logits -> crops (regions, 3, size, size).
inline void crop_regions(const uint8_t* image, Size image_size, const float* mask_logits, Size mask, Size padded,
                         const int32_t* boxes, const int32_t* indices, int regions, const CropSettings& settings,
                         int threads, float* crops) {
    const MaskGrid grid(mask, padded, image_size);
    const NormaliseTable normalised(settings.mean, settings.deviation);
    constexpr int kBands = 4;  // so that a single region still occupies a few threads
    const size_t crop_size = static_cast<size_t>(settings.size) * settings.size * 3;
    parallel_for(regions * kBands, threads, [&] {
        return [&, rows = CropRows(image, image_size, grid, normalised, settings)](int task) mutable {
            const int region = task / kBands, band = task % kBands;
            rows.make(mask_logits + static_cast<size_t>(indices[region]) * mask.h * mask.w,
                      boxes + 4 * static_cast<size_t>(region), settings.size * band / kBands,
                      settings.size * (band + 1) / kBands, crops + region * crop_size);
        };
    });
}

}  // namespace vocabseg
