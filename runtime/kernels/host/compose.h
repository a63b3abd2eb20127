// compose, class_scores and resample_masks on the host, one tile of the output at a time.
//
// The probabilities of N masks are computed for a tile of 64 x 16 pixels, 400 KB for 100 masks: every probability at
// image size is computed once (16 operations for the exponential, a division, 3 for each of four interpolations) and
// none is kept. Scores take 2 N C operations per pixel for C classes. compose avoids most of them: one product with the
// highest probability of every mask in a block of 64 pixels bounds the scores of all classes there, and only classes
// whose bound reaches the lowest of the best scores found so far are computed per pixel. This is exact, including ties
// and rounding (see ClassTable::bounded). Memory does not depend on the number of classes, apart from a copy of the
// class probabilities and 64 bytes per class and thread.
#pragma once

#include <cmath>
#include <vector>

#include "masks.h"

namespace vocabseg {

struct OutputMasks {
    const float* logits;
    int count;
    MaskGrid grid;
    LinearTable rows, columns;  // of the output in the image
    Size image, output;

    OutputMasks(const float* mask_logits, int masks, Size mask, Size padded, Size image_size, Size output_size)
        : logits(mask_logits), count(masks), grid(mask, padded, image_size),
          rows(image_size.h, output_size.h, output_size.h), columns(image_size.w, output_size.w, output_size.w),
          image(image_size), output(output_size) {}
};

// One worker's tile: probabilities (kTileBlocks, masks, kBlockPixels) and their maxima (masks, kTileBlocks). Pixels
// beyond the output's border repeat those at the border.
class Tile {
public:
    explicit Tile(const OutputMasks& masks)
        : masks_(masks), loops_(loops()), block_stride_(static_cast<size_t>(masks.count) * kBlockPixels),
          values_(block_stride_ * kTileBlocks), maxima_(static_cast<size_t>(masks.count) * kTileBlocks),
          scratch_(tile_scratch(masks.image.w)) {}

    void sample(int top, int left) {
        const MaskGrid& grid = masks_.grid;
        const TilePlace place{grid.mask.w, grid.rows.taps(), grid.columns.taps(), masks_.rows.taps(top),
                              masks_.columns.taps(left)};
        const size_t area = static_cast<size_t>(grid.mask.h) * grid.mask.w;
        for (int m = 0; m < masks_.count; ++m) {
            loops_.sample_tile(masks_.logits + m * area, place, scratch_.data(),
                               values_.data() + static_cast<size_t>(m) * kBlockPixels, block_stride_,
                               maxima_.data() + static_cast<size_t>(m) * kTileBlocks);
        }
    }
    const float* block(int b) const { return values_.data() + b * block_stride_; }
    const float* maxima() const { return maxima_.data(); }

private:
    const OutputMasks& masks_;
    const Loops& loops_;
    size_t block_stride_;
    std::vector<float> values_, maxima_, scratch_;
};

// Calls use.begin(tile) for every tile and then use.block(tile, b, y, x, rows, columns) for each of its blocks, of
// which `rows` x `columns` pixels from (y, x) on lie within the output. make_use() makes a `use` for each thread.
template <class MakeUse>
void for_each_block(const OutputMasks& masks, int threads, MakeUse make_use) {
    const Size output = masks.output;
    const int across = (output.w + kTileWidth - 1) / kTileWidth, down = (output.h + kTileHeight - 1) / kTileHeight;
    parallel_for(across * down, threads, [&] {
        return [&, across, tile = Tile(masks), use = make_use()](int task) mutable {
            const int top = task / across * kTileHeight, left = task % across * kTileWidth;
            tile.sample(top, left);
            use.begin(tile);
            for (int b = 0; b < kTileBlocks; ++b) {
                const int y = top + b / kBlocksAcross * kBlockHeight, x = left + b % kBlocksAcross * kBlockWidth;
                const int rows = std::min(kBlockHeight, output.h - y), columns = std::min(kBlockWidth, output.w - x);
                if (rows > 0 && columns > 0) use.block(tile, b, y, x, rows, columns);
            }
        };
    });
}

// Copies those pixels of a block that lie within the output to a plane of the output.
template <class T>
void place_block(const T* block, int rows, int columns, size_t width, T* target) {
    for (int y = 0; y < rows; ++y) std::copy_n(block + y * kBlockWidth, columns, target + y * width);
}

// Class probabilities (masks, classes), transposed to (classes, masks), with rows of zeros up to a multiple of
// kClassPadding.
class ClassTable {
public:
    ClassTable(const float* probabilities, int masks, int classes)
        : masks_(masks), classes_(classes), rows_(static_cast<size_t>(padded()) * masks) {
        for (int m = 0; m < masks; ++m) {
            for (int c = 0; c < classes; ++c) {
                const float value = probabilities[static_cast<size_t>(m) * classes + c];
                rows_[static_cast<size_t>(c) * masks + m] = value;
                bounded_ = bounded_ && value >= 0.0f;
            }
        }
    }
    int masks() const { return masks_; }
    int classes() const { return classes_; }
    int padded() const { return (classes_ + kClassPadding - 1) / kClassPadding * kClassPadding; }
    const float* row(int label) const { return rows_.data() + static_cast<size_t>(label) * masks_; }
    // Whether higher mask probabilities never lower a score. Rounding is monotonic, so this holds for the computed
    // sums, too, as long as both are computed in the same order.
    bool bounded() const { return bounded_; }

private:
    int masks_, classes_;
    bool bounded_ = true;
    std::vector<float> rows_;
};

// The best classes of one block of pixels after another.
class Contest {
public:
    Contest(const OutputMasks& masks, const ClassTable& classes, int32_t* labels, float* scores)
        : classes_(classes), loops_(loops()), width_(masks.output.w), labels_(labels), scores_(scores),
          bounds_(static_cast<size_t>(classes.padded()) * kTileBlocks) {}

    void begin(const Tile& tile) {
        if (!classes_.bounded()) return;
        loops_.tile_bounds(tile.maxima(), classes_.masks(), classes_.row(0), classes_.padded(), bounds_.data());
        loops_.highest_bounds(bounds_.data(), classes_.classes(), favourites_);
    }

    void block(const Tile& tile, int b, int y, int x, int rows, int columns) {
        block_ = tile.block(b);
        std::fill_n(best_, kBlockPixels, -INFINITY);
        std::fill_n(winners_, kBlockPixels, 0);
        lowest_ = -INFINITY;
        grouped_ = 0;
        if (classes_.bounded()) {
            compare_likely(b);
        } else {
            for (int label = 0; label < classes_.classes(); ++label) add(label);
        }
        flush();
        const size_t offset = static_cast<size_t>(y) * width_ + x;
        place_block(winners_, rows, columns, width_, labels_ + offset);
        place_block(best_, rows, columns, width_, scores_ + offset);
    }

private:
    struct Candidate {
        float bound;
        int32_t label;
    };

    // The class with the highest bound comes first; then, among those that may still win, the ones with high bounds,
    // which raise the lowest best score, before the many others.
    void compare_likely(int b) {
        constexpr size_t kEarly = 4 * kClassGroup;
        const float* bounds = bounds_.data() + b;
        add(favourites_[b]);
        flush();
        candidates_.clear();
        for (int label = 0; label < classes_.classes(); ++label) {
            const float bound = bounds[static_cast<size_t>(label) * kTileBlocks];
            if (bound >= lowest_ && label != favourites_[b]) candidates_.push_back({bound, label});
        }
        const auto higher = [](const Candidate& a, const Candidate& b) { return a.bound > b.bound; };
        const auto early = candidates_.begin() + std::min(kEarly, candidates_.size());
        if (early != candidates_.end()) std::nth_element(candidates_.begin(), early, candidates_.end(), higher);
        std::sort(candidates_.begin(), early, higher);
        for (const Candidate& candidate : candidates_) {
            if (candidate.bound >= lowest_) add(candidate.label);
        }
    }

    void add(int32_t label) {
        group_[grouped_++] = label;
        if (grouped_ == kClassGroup) flush();
    }

    void flush() {
        if (grouped_ == 0) return;
        const float* weights[kClassGroup];
        for (int k = 0; k < kClassGroup; ++k) weights[k] = classes_.row(group_[std::min(k, grouped_ - 1)]);
        float scores[kClassGroup * kBlockPixels];
        loops_.block_scores(block_, classes_.masks(), weights, scores);
        lowest_ = loops_.contest(scores, group_, grouped_, best_, winners_);
        grouped_ = 0;
    }

    const ClassTable& classes_;
    const Loops& loops_;
    size_t width_;
    int32_t* labels_;
    float* scores_;
    std::vector<float> bounds_;  // (classes, kTileBlocks)
    std::vector<Candidate> candidates_;
    int32_t favourites_[kTileBlocks];
    const float* block_ = nullptr;
    float best_[kBlockPixels];
    int32_t winners_[kBlockPixels];
    float lowest_ = 0;
    int32_t group_[kClassGroup];
    int grouped_ = 0;
};

// -> labels and scores (output.h, output.w): the first class with the highest score, and that score.
inline void compose(const OutputMasks& masks, const ClassTable& classes, int threads, int32_t* labels, float* scores) {
    for_each_block(masks, threads, [&] { return Contest(masks, classes, labels, scores); });
}

// Writes every class's scores.
struct ScoreWriter {
    const OutputMasks& masks;
    const ClassTable& classes;
    float* scores;

    void begin(const Tile&) {}
    void block(const Tile& tile, int b, int y, int x, int rows, int columns) {
        const size_t width = masks.output.w, plane = width * masks.output.h;
        const float* weights[kClassGroup];
        float group[kClassGroup * kBlockPixels];
        for (int first = 0; first < classes.classes(); first += kClassGroup) {
            for (int k = 0; k < kClassGroup; ++k) weights[k] = classes.row(first + k);
            loops().block_scores(tile.block(b), classes.masks(), weights, group);
            for (int k = 0; k < std::min(kClassGroup, classes.classes() - first); ++k) {
                place_block(group + k * kBlockPixels, rows, columns, width, scores + (first + k) * plane + y * width + x);
            }
        }
    }
};

// -> scores (classes, output.h, output.w).
inline void class_scores(const OutputMasks& masks, const ClassTable& classes, int threads, float* scores) {
    for_each_block(masks, threads, [&] { return ScoreWriter{masks, classes, scores}; });
}

// Writes the mask probabilities themselves.
struct ProbabilityWriter {
    const OutputMasks& masks;
    float* probabilities;

    void begin(const Tile&) {}
    void block(const Tile& tile, int b, int y, int x, int rows, int columns) {
        const size_t width = masks.output.w, plane = width * masks.output.h;
        for (int m = 0; m < masks.count; ++m) {
            place_block(tile.block(b) + static_cast<size_t>(m) * kBlockPixels, rows, columns, width,
                        probabilities + m * plane + y * width + x);
        }
    }
};

// -> probabilities (masks, output.h, output.w).
inline void resample_masks(const OutputMasks& masks, int threads, float* probabilities) {
    for_each_block(masks, threads, [&] { return ProbabilityWriter{masks, probabilities}; });
}

}  // namespace vocabseg
