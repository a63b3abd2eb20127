// crop_regions on the host: cut, fill, normalise and bicubic in one pass over the rows of a region. And patch_masks.
//
// A pixel is four floats (red, green, blue, unused). The image is converted to that form once (16 bytes per pixel; for
// hard masks it is also normalised); for each region a row is read (16 bytes per pixel inside the mask), masked, and
// resampled horizontally while it is in the L1 cache: 7 vector operations per output pixel of each row, then 7 more per
// pixel of the crop, which is written once (12 bytes).
#pragma once

#include <vector>

#include "masks.h"
#include "resize.h"

namespace vocabseg {

struct CropSettings {
    double threshold;
    bool matting;
    const float *fill, *mean, *deviation;  // (3,) each, 0..255
    int size;
};

// The image's pixels in the form that the rows of regions use, and the fill colour in the same form.
class PixelTable {
public:
    PixelTable(const uint8_t* image, Size size, const CropSettings& settings, int threads)
        : width_(size.w), pixels_(static_cast<size_t>(size.h) * size.w * 4) {
        NormaliseTable table(settings.mean, settings.deviation);
        for (int c = 0; c < 3; ++c) {
            fill[c] = settings.fill[c];
            mean[c] = settings.mean[c];
            deviation[c] = settings.deviation[c];
            background[c] = normalise(fill[c], mean[c], deviation[c]);
            // With matting, fill and pixel are blended before they are normalised.
            for (int v = 0; settings.matting && v < 256; ++v) table.value[c][v] = static_cast<float>(v);
        }
        parallel_for(size.h, threads, [&] {
            return [&](int y) {
                const uint8_t* source = image + static_cast<size_t>(y) * width_ * 3;
                float* out = pixels_.data() + static_cast<size_t>(y) * width_ * 4;
                for (int x = 0; x < width_; ++x, source += 3, out += 4) {
                    for (int c = 0; c < 3; ++c) out[c] = table.value[c][source[c]];
                }
            };
        });
    }
    const float* at(int y, int x) const { return pixels_.data() + (static_cast<size_t>(y) * width_ + x) * 4; }

    float background[4] = {0, 0, 0, 0};
    float fill[4] = {0, 0, 0, 0}, mean[4] = {0, 0, 0, 0}, deviation[4] = {1, 1, 1, 1};

private:
    int width_;
    std::vector<float> pixels_;
};

// Computes rows of one region's crop: a row of the image is masked, normalised and resampled horizontally once, and
// kept while it is among the four that the next row of the crop combines.
class CropRows {
public:
    CropRows(const PixelTable& pixels, int image_width, const MaskGrid& grid, const CropSettings& settings)
        : pixels_(pixels), grid_(grid), loops_(loops()), matting_(settings.matting), size_(settings.size),
          limit_(threshold_logit(settings.threshold)), taps_(settings.size),
          wide_(MaskRows::scratch_size(image_width)), mask_row_(image_width + kPadding),
          line_(static_cast<size_t>(image_width) * 4), ring_(static_cast<size_t>(settings.size) * 4 * 4),
          mixed_(static_cast<size_t>(settings.size) * 4) {}

    // Rows [first, last) of the crop of `box` into crop (3, size, size).
    void make(const float* logits, const int32_t* box, int first, int last, float* crop) {
        left_ = box[0];
        top_ = box[1];
        width_ = box[2] - box[0];
        const int height = box[3] - box[1];
        for (int x = 0; x < size_; ++x) taps_[x] = cubic_tap(width_, size_, x);
        for (int& row : kept_) row = -1;
        MaskRows rows(loops_, grid_, logits, left_, width_, wide_.data());
        for (int y = first; y < last; ++y) {
            const CubicTap tap = cubic_tap(height, size_, y);
            const float* source[4];
            for (int k = 0; k < 4; ++k) source[k] = resampled(rows, tap.index[k]);
            float* planes[3];
            for (int c = 0; c < 3; ++c) planes[c] = crop + (static_cast<size_t>(c) * size_ + y) * size_;
            loops_.cubic_rows(source, tap.weight, size_, mixed_.data(), planes);
        }
    }

private:
    const float* resampled(MaskRows& rows, int row) {
        const int slot = row & 3;
        float* target = ring_.data() + static_cast<size_t>(slot) * 4 * size_;
        if (kept_[slot] == row) return target;
        const LinearTap tap = grid_.rows[top_ + row];
        const auto mix = matting_ ? loops_.mix_rows_sigmoid : loops_.mix_rows;
        mix(rows.widened(tap.low), rows.widened(tap.high), tap.low_weight, tap.high_weight, width_, mask_row_.data());
        const float* source = pixels_.at(top_ + row, left_);
        if (matting_) {
            loops_.matte_row(mask_row_.data(), source, pixels_.fill, pixels_.mean, pixels_.deviation, width_,
                             line_.data());
        } else {
            loops_.cut_row(mask_row_.data(), limit_, source, pixels_.background, width_, line_.data());
        }
        loops_.cubic_columns(line_.data(), taps_.data(), size_, target);
        kept_[slot] = row;
        return target;
    }

    const PixelTable& pixels_;
    const MaskGrid& grid_;
    const Loops& loops_;
    bool matting_;
    int size_;
    float limit_;
    std::vector<CubicTap> taps_;
    std::vector<float> wide_, mask_row_, line_, ring_, mixed_;
    int left_ = 0, top_ = 0, width_ = 0;
    int kept_[4] = {-1, -1, -1, -1};
};

// boxes (regions, 4), indices (regions,) into mask_logits -> crops (regions, 3, size, size).
inline void crop_regions(const uint8_t* image, Size image_size, const float* mask_logits, Size mask, Size padded,
                         const int32_t* boxes, const int32_t* indices, int regions, const CropSettings& settings,
                         int threads, float* crops) {
    if (regions == 0) return;
    const MaskGrid grid(mask, padded, image_size);
    const PixelTable pixels(image, image_size, settings, threads);
    constexpr int kBands = 4;  // so that even a single region occupies several threads
    const size_t crop_size = static_cast<size_t>(settings.size) * settings.size * 3;
    parallel_for(regions * kBands, threads, [&] {
        return [&, rows = CropRows(pixels, image_size.w, grid, settings)](int task) mutable {
            const int region = task / kBands, band = task % kBands;
            rows.make(mask_logits + static_cast<size_t>(indices[region]) * mask.h * mask.w,
                      boxes + 4 * static_cast<size_t>(region), settings.size * band / kBands,
                      settings.size * (band + 1) / kBands, crops + region * crop_size);
        };
    });
}

// The same boxes and indices -> patches (regions, across, across) of crops of `size` pixels: 1 where a pixel is above
// `limit`, else 0. A row of the mask is widened to the box once and read at the columns of the crop: about 1 operation
// per pixel of the crop and 7 per pixel of the rows of the box that it reads.
inline void patch_masks(const float* mask_logits, Size mask, Size padded, Size image, const int32_t* boxes,
                        const int32_t* indices, int regions, float limit, int size, int across, int threads,
                        float* patches) {
    const MaskGrid grid(mask, padded, image);
    const Loops& loop = loops();
    const int patch = size / across;
    parallel_for(regions, threads, [&] {
        return [&, wide = std::vector<float>(MaskRows::scratch_size(image.w)),
                line = std::vector<float>(image.w + kPadding), columns = std::vector<int>(size)](int region) mutable {
            const int32_t* box = boxes + 4 * static_cast<size_t>(region);
            const int width = box[2] - box[0], height = box[3] - box[1];
            MaskRows rows(loop, grid, mask_logits + static_cast<size_t>(indices[region]) * mask.h * mask.w, box[0],
                          width, wide.data());
            for (int x = 0; x < size; ++x) columns[x] = nearest_index(width, size, x);
            float* out = patches + static_cast<size_t>(region) * across * across;
            std::fill_n(out, static_cast<size_t>(across) * across, 0.0f);
            for (int y = 0, latest = -1; y < across * patch; ++y) {
                const int row = nearest_index(height, size, y);
                if (row == latest && y % patch != 0) continue;  // as the row before, in the same patches
                if (row != latest) {
                    const LinearTap tap = grid.rows[box[1] + row];
                    loop.mix_rows(rows.widened(tap.low), rows.widened(tap.high), tap.low_weight, tap.high_weight, width,
                                  line.data());
                }
                latest = row;
                float* cells = out + static_cast<size_t>(y / patch) * across;
                for (int x = 0; x < across * patch; ++x) {
                    if (is_inside(line[columns[x]], limit)) cells[x / patch] = 1.0f;
                }
            }
        };
    });
}

}  // namespace vocabseg
