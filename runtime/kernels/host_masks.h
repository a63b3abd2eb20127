// Rows of upsampled masks, and the boxes and areas of the thresholded ones.
#pragma once

#include <algorithm>
#include <vector>

#include "parallel.h"
#include "pixel_math.h"

namespace vocabseg {

struct Size {
    int h, w;
};

// Where each row and column of the image lies in the mask, which covers the padded image.
struct MaskGrid {
    Size mask;
    std::vector<LinearTap> rows, columns;
    MaskGrid(Size mask_size, Size padded, Size image) : mask(mask_size), rows(image.h), columns(image.w) {
        for (int y = 0; y < image.h; ++y) rows[y] = linear_tap(mask.h, padded.h, y);
        for (int x = 0; x < image.w; ++x) columns[x] = linear_tap(mask.w, padded.w, x);
    }
};

// Reads rows of one upsampled mask between two columns of the image. A mask row is widened once and kept while the rows
// of the image between it and its neighbours are read; the two in use have different parity.
class MaskRows {
public:
    MaskRows(const MaskGrid& grid, const float* logits, int first_column, int columns, float* scratch)
        : grid_(&grid), logits_(logits), first_(first_column), count_(columns), wide_{scratch, scratch + columns} {}

    static size_t scratch_size(int columns) { return static_cast<size_t>(columns) * 2; }

    void read(int y, float* out) {
        const LinearTap& row = grid_->rows[y];
        const float* above = widened(row.low);
        const float* below = widened(row.high);
        for (int x = 0; x < count_; ++x) out[x] = linear_mix(above[x], below[x], row.low_weight, row.high_weight);
    }

private:
    const float* widened(int mask_row) {
        const int slot = mask_row & 1;
        float* wide = wide_[slot];
        if (kept_[slot] != mask_row) {
            const float* source = logits_ + static_cast<size_t>(mask_row) * grid_->mask.w;
            const LinearTap* column = grid_->columns.data() + first_;
            for (int x = 0; x < count_; ++x) {
                const LinearTap& tap = column[x];
                wide[x] = linear_mix(source[tap.low], source[tap.high], tap.low_weight, tap.high_weight);
            }
            kept_[slot] = mask_row;
        }
        return wide;
    }

    const MaskGrid* grid_;
    const float* logits_;
    int first_, count_;
    float* wide_[2];
    int kept_[2] = {-1, -1};
};

// mask_logits (masks, mask.h, mask.w) -> boxes (masks, 4), areas (masks,).
inline void region_boxes(const float* mask_logits, int masks, Size mask, Size padded, Size image, double threshold,
                         int threads, int32_t* boxes, int32_t* areas) {
    const MaskGrid grid(mask, padded, image);
    const float limit = threshold_logit(threshold);
    parallel_for(masks, threads, [&] {
        return [&, scratch = std::vector<float>(MaskRows::scratch_size(image.w)), row = std::vector<float>(image.w),
                highest = std::vector<float>(mask.h)](int index) mutable {
            const float* logits = mask_logits + static_cast<size_t>(index) * mask.h * mask.w;
            for (int y = 0; y < mask.h; ++y) {
                const float* source = logits + static_cast<size_t>(y) * mask.w;
                highest[y] = *std::max_element(source, source + mask.w);
            }
            MaskRows rows(grid, logits, 0, image.w, scratch.data());
            int left = image.w, top = image.h, right = 0, bottom = 0, area = 0;
            for (int y = 0; y < image.h; ++y) {
                // No mixture exceeds the highest of what it mixes, but for the rounding of two mixtures.
                const float bound = std::max(highest[grid.rows[y].low], highest[grid.rows[y].high]);
                if (bound + 2e-6f * fabsf(bound) < limit) continue;
                rows.read(y, row.data());
                int inside = 0;
                for (int x = 0; x < image.w; ++x) inside += is_inside(row[x], limit) ? 1 : 0;
                if (inside == 0) continue;
                area += inside;
                top = std::min(top, y);
                bottom = y + 1;
                for (int x = 0; x < left; ++x) {
                    if (is_inside(row[x], limit)) left = x;
                }
                for (int x = image.w; x > right; --x) {
                    if (is_inside(row[x - 1], limit)) right = x;
                }
            }
            if (area == 0) left = top = 0;
            int32_t* box = boxes + 4 * static_cast<size_t>(index);
            box[0] = left;
            box[1] = top;
            box[2] = right;
            box[3] = bottom;
            areas[index] = area;
        };
    });
}

}  // namespace vocabseg
