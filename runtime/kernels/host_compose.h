// compose, class_scores and resample_masks on the host: mask probabilities at the output size, two rows at a time, and
// their product with the class probabilities, a tile of pixels and a block of classes at a time. Memory does not depend
// on the number of classes, apart from a copy of the class probabilities.
#pragma once

#include <cmath>
#include <vector>

#include "host_masks.h"

namespace vocabseg {

constexpr int kTile = 64;         // pixels whose mask probabilities are held at once
constexpr int kStep = 8;          // pixels and
constexpr int kClassBlock = 4;    // classes whose sums stay in registers
constexpr int kRowsPerTask = 16;  // output rows

// Mask probabilities of the output's pixels: logits to image size, sigmoid, to output size.
class OutputMasks {
public:
    OutputMasks(const float* mask_logits, int masks, Size mask, Size padded, Size image, Size output)
        : logits_(mask_logits), masks_(masks), image_(image), grid_(mask, padded, image), rows_(output.h),
          columns_(output.w) {
        for (int y = 0; y < output.h; ++y) rows_[y] = linear_tap(image.h, output.h, y);
        for (int x = 0; x < output.w; ++x) columns_[x] = linear_tap(image.w, output.w, x);
    }

    int masks() const { return masks_; }
    int width() const { return static_cast<int>(columns_.size()); }

    // One worker's memory: two rows of probabilities at output width, and the widened mask rows they are made of.
    class Reader {
    public:
        explicit Reader(const OutputMasks& of)
            : of_(&of), scratch_(MaskRows::scratch_size(of.image_.w) * of.masks_), narrow_(of.image_.w),
              wide_(static_cast<size_t>(of.masks_) * of.width() * 2) {
            const size_t mask_area = static_cast<size_t>(of.grid_.mask.h) * of.grid_.mask.w;
            rows_.reserve(of.masks_);
            for (int m = 0; m < of.masks_; ++m) {
                rows_.emplace_back(of.grid_, of.logits_ + m * mask_area, 0, of.image_.w,
                                   scratch_.data() + m * MaskRows::scratch_size(of.image_.w));
            }
        }

        Reader(const Reader&) = delete;  // rows_ points into scratch_
        Reader(Reader&&) = default;

        // Probabilities of `count` pixels from (x, y) on, mask by mask: out[m * stride + pixel].
        void read(int y, int x, int count, float* out, size_t stride) {
            const LinearTap& row = of_->rows_[y];
            const float* above = widened(row.low) + x;
            const float* below = widened(row.high) + x;
            const size_t step = of_->width();
            for (int m = 0; m < of_->masks_; ++m) {
                const float *a = above + m * step, *b = below + m * step;
                float* target = out + m * stride;
                for (int k = 0; k < count; ++k) target[k] = linear_mix(a[k], b[k], row.low_weight, row.high_weight);
            }
        }

    private:
        const float* widened(int image_row) {
            const int slot = image_row & 1, width = of_->width();
            float* wide = wide_.data() + static_cast<size_t>(slot) * of_->masks_ * width;
            if (kept_[slot] == image_row) return wide;
            for (int m = 0; m < of_->masks_; ++m) {
                rows_[m].read(image_row, narrow_.data());
                for (float& value : narrow_) value = sigmoid(value);
                float* target = wide + static_cast<size_t>(m) * width;
                for (int x = 0; x < width; ++x) {
                    const LinearTap& tap = of_->columns_[x];
                    target[x] = linear_mix(narrow_[tap.low], narrow_[tap.high], tap.low_weight, tap.high_weight);
                }
            }
            kept_[slot] = image_row;
            return wide;
        }

        const OutputMasks* of_;
        std::vector<MaskRows> rows_;
        std::vector<float> scratch_, narrow_, wide_;
        int kept_[2] = {-1, -1};
    };

private:
    const float* logits_;
    int masks_;
    Size image_;
    MaskGrid grid_;
    std::vector<LinearTap> rows_, columns_;
};

// Class probabilities (masks, classes) rearranged to (blocks, masks, kClassBlock), the last block filled up with zeros.
class ClassBlocks {
public:
    ClassBlocks(const float* probabilities, int masks, int classes)
        : masks_(masks), classes_(classes), packed_(static_cast<size_t>(blocks()) * masks * kClassBlock) {
        for (int m = 0; m < masks; ++m) {
            for (int c = 0; c < classes; ++c) {
                packed_[(static_cast<size_t>(c / kClassBlock) * masks + m) * kClassBlock + c % kClassBlock] =
                    probabilities[static_cast<size_t>(m) * classes + c];
            }
        }
    }
    int classes() const { return classes_; }
    int blocks() const { return (classes_ + kClassBlock - 1) / kClassBlock; }

    // Scores of kStep pixels for one block: sums over masks, in their order.
    void multiply(int block, const float* tile, float scores[kClassBlock][kStep]) const {
        const float* weight = packed_.data() + static_cast<size_t>(block) * masks_ * kClassBlock;
        float sums[kClassBlock][kStep] = {};
        for (int m = 0; m < masks_; ++m, weight += kClassBlock, tile += kTile) {
            for (int k = 0; k < kClassBlock; ++k) {
                for (int p = 0; p < kStep; ++p) sums[k][p] += weight[k] * tile[p];
            }
        }
        for (int k = 0; k < kClassBlock; ++k) {
            for (int p = 0; p < kStep; ++p) scores[k][p] = sums[k][p];
        }
    }

private:
    int masks_, classes_;
    std::vector<float> packed_;
};

// Calls use(y, x, count, tile) for every tile of the output; make_use() gives each thread its own `use`.
template <class MakeUse>
void for_each_tile(const OutputMasks& masks, Size output, int threads, MakeUse make_use) {
    parallel_for((output.h + kRowsPerTask - 1) / kRowsPerTask, threads, [&] {
        return [&, reader = OutputMasks::Reader(masks), use = make_use(),
                tile = std::vector<float>(static_cast<size_t>(masks.masks()) * kTile)](int task) mutable {
            for (int y = task * kRowsPerTask; y < std::min(output.h, (task + 1) * kRowsPerTask); ++y) {
                for (int x = 0; x < output.w; x += kTile) {
                    const int count = std::min(kTile, output.w - x);
                    reader.read(y, x, count, tile.data(), kTile);
                    use(y, x, count, tile.data());
                }
            }
        };
    });
}

// -> labels (output.h, output.w), scores the same: the first of the classes with the highest score, and that score.
inline void compose(const OutputMasks& masks, const ClassBlocks& classes, Size output, int threads, int32_t* labels,
                    float* scores) {
    for_each_tile(masks, output, threads, [&] {
        return [&](int y, int x, int count, const float* tile) {
            const size_t offset = static_cast<size_t>(y) * output.w + x;
            for (int p = 0; p < count; p += kStep) {
                float best[kStep], block[kClassBlock][kStep];
                int32_t winner[kStep];
                for (int j = 0; j < kStep; ++j) {
                    best[j] = -INFINITY;
                    winner[j] = 0;
                }
                for (int b = 0; b < classes.blocks(); ++b) {
                    classes.multiply(b, tile + p, block);
                    const int used = std::min(kClassBlock, classes.classes() - b * kClassBlock);
                    for (int k = 0; k < used; ++k) {
                        const int32_t label = b * kClassBlock + k;
                        for (int j = 0; j < kStep; ++j) {
                            const bool better = block[k][j] > best[j];
                            best[j] = better ? block[k][j] : best[j];
                            winner[j] = better ? label : winner[j];
                        }
                    }
                }
                const int left = std::min(kStep, count - p);
                std::copy_n(best, left, scores + offset + p);
                std::copy_n(winner, left, labels + offset + p);
            }
        };
    });
}

// -> scores (classes, output.h, output.w).
inline void class_scores(const OutputMasks& masks, const ClassBlocks& classes, Size output, int threads,
                         float* scores) {
    const size_t plane = static_cast<size_t>(output.h) * output.w;
    for_each_tile(masks, output, threads, [&] {
        return [&](int y, int x, int count, const float* tile) {
            float* target = scores + static_cast<size_t>(y) * output.w + x;
            float block[kClassBlock][kStep];
            for (int p = 0; p < count; p += kStep) {
                for (int b = 0; b < classes.blocks(); ++b) {
                    classes.multiply(b, tile + p, block);
                    const int used = std::min(kClassBlock, classes.classes() - b * kClassBlock);
                    for (int k = 0; k < used; ++k) {
                        std::copy_n(block[k], std::min(kStep, count - p), target + (b * kClassBlock + k) * plane + p);
                    }
                }
            }
        };
    });
}

// -> probabilities (masks, output.h, output.w).
inline void resample_masks(const OutputMasks& masks, Size output, int threads, float* probabilities) {
    const size_t plane = static_cast<size_t>(output.h) * output.w;
    for_each_tile(masks, output, threads, [&] {
        return [&](int y, int x, int count, const float* tile) {
            float* target = probabilities + static_cast<size_t>(y) * output.w + x;
            for (int m = 0; m < masks.masks(); ++m) std::copy_n(tile + m * kTile, count, target + m * plane);
        };
    });
}

}  // namespace vocabseg
