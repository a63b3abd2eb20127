// Rows of upsampled masks, and the boxes and areas of the thresholded ones.
//
// region_boxes reads every logit once (4 N h w / 16 bytes for an image of h x w) and holds two rows. It upsamples only
// where a logit may exceed the threshold: per pixel 3 operations to interpolate rows, 2 for count and box, and 3/4 to
// interpolate columns.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "variants.h"
#include "parallel.h"

namespace vocabseg {

struct Size {
    int h, w;
};

// The taps of the first `count` pixels of an axis.
class LinearTable {
public:
    LinearTable(int in_size, int out_size, int count)
        : count_(count), low_(count + kPadding), high_(count + kPadding), low_weight_(count + kPadding),
          high_weight_(count + kPadding) {
        for (int k = 0; k < count + kPadding; ++k) {
            const LinearTap tap = linear_tap(in_size, out_size, std::min(k, count - 1));
            low_[k] = tap.low;
            high_[k] = tap.high;
            low_weight_[k] = tap.low_weight;
            high_weight_[k] = tap.high_weight;
        }
    }
    LinearTap operator[](int k) const { return {low_[k], high_[k], low_weight_[k], high_weight_[k]}; }
    LinearTaps taps(int first = 0) const {
        return {low_.data() + first, high_.data() + first, low_weight_.data() + first, high_weight_.data() + first};
    }
    // The first pixel that reads source pixel `index` or a later one, and one past the last that reads it or an earlier
    // one.
    int first_reader(int index) const { return find(high_, index); }
    int past_reader(int index) const { return find(low_, index + 1); }

private:
    int find(const std::vector<int32_t>& sources, int index) const {
        const auto end = sources.begin() + count_;
        return static_cast<int>(std::lower_bound(sources.begin(), end, index) - sources.begin());
    }

    int count_;
    std::vector<int32_t> low_, high_;
    std::vector<float> low_weight_, high_weight_;
};

// The position of each row and column of the image in the mask, which covers the padded image.
struct MaskGrid {
    Size mask;
    LinearTable rows, columns;
    MaskGrid(Size mask_size, Size padded, Size image)
        : mask(mask_size), rows(mask.h, padded.h, image.h), columns(mask.w, padded.w, image.w) {}
};

// Rows of one mask, widened to the image, between two columns of the image. A mask row is widened once and kept while
// the image rows between it and its neighbours are read; the two in use have different parity.
class MaskRows {
public:
    MaskRows(const Loops& loops, const MaskGrid& grid, const float* logits, int first_column, int columns,
             float* scratch)
        : loops_(loops), grid_(grid), logits_(logits), first_(first_column), count_(columns),
          wide_{scratch, scratch + columns + kPadding} {}

    static size_t scratch_size(int columns) { return (static_cast<size_t>(columns) + kPadding) * 2; }

    // 0 <= mask_row < mask.h; the result is valid until the next call but one.
    const float* widened(int mask_row) {
        const int slot = mask_row & 1;
        if (kept_[slot] != mask_row) {
            const float* source = logits_ + static_cast<size_t>(mask_row) * grid_.mask.w;
            loops_.mix_columns(source, grid_.mask.w, 0, grid_.columns.taps(), first_, count_, wide_[slot]);
            kept_[slot] = mask_row;
        }
        return wide_[slot];
    }

private:
    const Loops& loops_;
    const MaskGrid& grid_;
    const float* logits_;
    int first_, count_;
    float* wide_[2];
    int kept_[2] = {-1, -1};
};

// The part of a mask where upsampled logits may exceed `limit`: rows and columns [first, past) of the image.
struct MaskReach {
    int top = 0, bottom = 0, left = 0, right = 0;

    MaskReach(const Loops& loops, const MaskGrid& grid, const float* logits, float limit) {
        // No interpolated value exceeds the highest of its inputs, except by the rounding of two interpolations.
        const auto may_exceed = [limit](float logit) { return logit + 2e-6f * fabsf(logit) >= limit; };
        const int w = grid.mask.w;
        int first_row = grid.mask.h, last_row = -1, first_column = w, last_column = -1;
        for (int y = 0; y < grid.mask.h; ++y) {
            const float* row = logits + static_cast<size_t>(y) * w;
            if (!may_exceed(loops.highest(row, w))) continue;
            first_row = std::min(first_row, y);
            last_row = y;
            int x = 0;
            while (x < first_column && !may_exceed(row[x])) ++x;
            first_column = std::min(first_column, x);
            for (x = w - 1; x > last_column && !may_exceed(row[x]);) --x;
            last_column = std::max(last_column, x);
        }
        if (last_row < 0) return;
        top = grid.rows.first_reader(first_row);
        bottom = grid.rows.past_reader(last_row);
        left = grid.columns.first_reader(first_column);
        right = grid.columns.past_reader(last_column);
    }
};

// mask_logits (masks, mask.h, mask.w) -> bits (masks, image.h, ceil(image.w / 32)), which are zero before.
inline void region_bits(const float* mask_logits, int masks, Size mask, Size padded, Size image, double threshold,
                        int threads, uint32_t* bits) {
    const MaskGrid grid(mask, padded, image);
    const float limit = threshold_logit(threshold);
    const Loops& loop = loops();
    const size_t words = (static_cast<size_t>(image.w) + 31) / 32;
    parallel_for(masks, threads, [&] {
        return [&, scratch = std::vector<float>(MaskRows::scratch_size(image.w)),
                logits = std::vector<float>(image.w + kPadding)](int index) mutable {
            const float* own = mask_logits + static_cast<size_t>(index) * mask.h * mask.w;
            const MaskReach reach(loop, grid, own, limit);
            const int columns = reach.right - reach.left;
            MaskRows rows(loop, grid, own, reach.left, columns, scratch.data());
            for (int y = reach.top; y < reach.bottom; ++y) {
                const LinearTap row = grid.rows[y];
                loop.mix_rows(rows.widened(row.low), rows.widened(row.high), row.low_weight, row.high_weight, columns,
                              logits.data());
                uint32_t* target = bits + (static_cast<size_t>(index) * image.h + y) * words;
                for (int x = 0; x < columns; ++x) {
                    const int at = reach.left + x;
                    target[at / 32] |= static_cast<uint32_t>(is_inside(logits[x], limit)) << (at % 32);
                }
            }
        };
    });
}

// mask_logits (masks, mask.h, mask.w) -> boxes (masks, 4), areas (masks,).
inline void region_boxes(const float* mask_logits, int masks, Size mask, Size padded, Size image, double threshold,
                         int threads, int32_t* boxes, int32_t* areas) {
    const MaskGrid grid(mask, padded, image);
    const float limit = threshold_logit(threshold);
    const Loops& loop = loops();
    parallel_for(masks, threads, [&] {
        return [&, scratch = std::vector<float>(MaskRows::scratch_size(image.w)),
                highest = std::vector<float>(image.w)](int index) mutable {
            const float* logits = mask_logits + static_cast<size_t>(index) * mask.h * mask.w;
            const MaskReach reach(loop, grid, logits, limit);
            const int columns = reach.right - reach.left;
            MaskRows rows(loop, grid, logits, reach.left, columns, scratch.data());
            std::fill_n(highest.data(), columns, -INFINITY);
            int top = 0, bottom = 0, area = 0;
            for (int y = reach.top; y < reach.bottom; ++y) {
                const LinearTap row = grid.rows[y];
                const int inside =
                    loop.count_inside(rows.widened(row.low), rows.widened(row.high), row.low_weight, row.high_weight,
                                      columns, limit, highest.data());
                if (inside == 0) continue;
                if (area == 0) top = y;
                bottom = y + 1;
                area += inside;
            }
            int left = 0, right = 0;
            if (area > 0) {
                right = columns;
                while (!is_inside(highest[left], limit)) ++left;
                while (!is_inside(highest[right - 1], limit)) --right;
                left += reach.left;
                right += reach.left;
            }
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
