// Loops of compose: a tile's mask probabilities, and their product with the class probabilities.
#pragma once

#include "loops_masks.h"

namespace vocabseg {

// Rows of the tile are interpolated from two image rows, and those from two mask rows; the two in use have different
// parity, so each is computed once.
static void sample_tile(const float* mask, const TilePlace& place, float* scratch, float* blocks, size_t block_stride,
                        float* maxima) {
    const int first = place.columns.low[0], count = place.columns.high[kTileWidth - 1] - first + 1;
    const int room = whole_lanes(count) > 2 * kLanes ? whole_lanes(count) : 2 * kLanes;
    float* wide[2] = {scratch, scratch + room};            // mask rows at image width
    float* row = scratch + 2 * room;                       // a row of the image
    float* narrow[2] = {row + room, row + room + kTileWidth};  // rows of the image at the tile's columns
    int wide_kept[2] = {-1, -1}, narrow_kept[2] = {-1, -1};

    for (int y = 0; y < kTileHeight; ++y) {
        const int pair[2] = {place.rows.low[y], place.rows.high[y]};
        for (const int image_row : pair) {
            const int slot = image_row & 1;
            if (narrow_kept[slot] == image_row) continue;
            const int low = place.mask_rows.low[image_row], high = place.mask_rows.high[image_row];
            const int mask_pair[2] = {low, high};
            for (const int mask_row : mask_pair) {
                if (wide_kept[mask_row & 1] == mask_row) continue;
                mix_columns(mask + static_cast<size_t>(mask_row) * place.mask_width, place.mask_width, 0,
                            place.mask_columns, first, count, wide[mask_row & 1]);
                wide_kept[mask_row & 1] = mask_row;
            }
            mix_rows_sigmoid(wide[low & 1], wide[high & 1], place.mask_rows.low_weight[image_row],
                             place.mask_rows.high_weight[image_row], count, row);
            mix_columns(row, room, first, place.columns, 0, kTileWidth, narrow[slot]);
            narrow_kept[slot] = image_row;
        }
        const float low_weight = place.rows.low_weight[y], high_weight = place.rows.high_weight[y];
        for (int across = 0; across < kBlocksAcross; ++across) {
            const int block = y / kBlockHeight * kBlocksAcross + across;
            mix_rows(narrow[pair[0] & 1] + across * kBlockWidth, narrow[pair[1] & 1] + across * kBlockWidth, low_weight,
                     high_weight, kBlockWidth, blocks + block * block_stride + y % kBlockHeight * kBlockWidth);
        }
    }
    for (int b = 0; b < kTileBlocks; ++b) maxima[b] = highest(blocks + b * block_stride, kBlockPixels);
}

// sums[c][v] = sum over masks m of weights[c][m] * pixels[m * stride + lanes of v]
template <int Classes, int Vectors>
static inline void weighted_sums(const float* pixels, int stride, int masks, const float* const* weights,
                                 Lanes (&sums)[Classes][Vectors]) {
    for (int c = 0; c < Classes; ++c) {
        for (int v = 0; v < Vectors; ++v) sums[c][v] = Lanes{};
    }
    for (int m = 0; m < masks; ++m, pixels += stride) {
        Lanes values[Vectors];
        for (int v = 0; v < Vectors; ++v) values[v] = load(pixels + v * kLanes);
        for (int c = 0; c < Classes; ++c) {
            const float weight = weights[c][m];
            for (int v = 0; v < Vectors; ++v) sums[c][v] = sums[c][v] + values[v] * weight;
        }
    }
}

static void block_scores(const float* block, int masks, const float* const* weights, float* scores) {
    constexpr int kVectors = kLanes == 16 ? 4 : 2;  // 24 sums of AVX-512's 32 registers, 12 of the others' 16
    Lanes sums[kClassGroup][kVectors];
    for (int p = 0; p < kBlockPixels; p += kVectors * kLanes) {
        weighted_sums(block + p, kBlockPixels, masks, weights, sums);
        for (int c = 0; c < kClassGroup; ++c) {
            for (int v = 0; v < kVectors; ++v) store(scores + c * kBlockPixels + p + v * kLanes, sums[c][v]);
        }
    }
}

static void tile_bounds(const float* maxima, int masks, const float* weights, int classes, float* bounds) {
    constexpr int kVectors = kTileBlocks / kLanes >= 4 ? 4 : kTileBlocks / kLanes, kGroup = 12 / kVectors;
    static_assert(kClassPadding % kGroup == 0, "groups fill the padded classes");
    Lanes sums[kGroup][kVectors];
    const float* group[kGroup];
    for (int c = 0; c < classes; c += kGroup) {
        for (int k = 0; k < kGroup; ++k) group[k] = weights + static_cast<size_t>(c + k) * masks;
        for (int p = 0; p < kTileBlocks; p += kVectors * kLanes) {
            weighted_sums(maxima + p, kTileBlocks, masks, group, sums);
            for (int k = 0; k < kGroup; ++k) {
                for (int v = 0; v < kVectors; ++v) {
                    store(bounds + static_cast<size_t>(c + k) * kTileBlocks + p + v * kLanes, sums[k][v]);
                }
            }
        }
    }
}

static void highest_bounds(const float* bounds, int classes, int32_t* winners) {
    for (int p = 0; p < kTileBlocks; p += kLanes) {
        Lanes best = load(bounds + p);
        IntLanes winner{};
        for (int c = 1; c < classes; ++c) {
            const Lanes next = load(bounds + static_cast<size_t>(c) * kTileBlocks + p);
            winner = next > best ? IntLanes{} + c : winner;
            best = next > best ? next : best;
        }
        store(winners + p, winner);
    }
}

static float contest(const float* scores, const int32_t* labels, int count, float* best, int32_t* winner) {
    Lanes lowest{};
    for (int p = 0; p < kBlockPixels; p += kLanes) {
        Lanes high = load(best + p);
        IntLanes label = load(winner + p);
        for (int c = 0; c < count; ++c) {
            const Lanes score = load(scores + c * kBlockPixels + p);
            const IntLanes own = IntLanes{} + labels[c];
            const auto wins = (score > high) | ((score == high) & (own < label));
            high = wins ? score : high;
            label = wins ? own : label;
        }
        store(best + p, high);
        store(winner + p, label);
        lowest = p == 0 || high < lowest ? high : lowest;
    }
    float spread[kLanes];
    store(spread, lowest);
    float least = spread[0];
    for (int k = 1; k < kLanes; ++k) least = spread[k] < least ? spread[k] : least;
    return least;
}

}  // namespace vocabseg
