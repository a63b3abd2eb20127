// The inner loops of the host kernels. loops.cpp is compiled once per instruction set into a table of them; variants.h
// chooses the table for this processor. The kernels themselves (memory, threads) are in the other headers of this
// folder.
//
// Every loop computes the same bits in every variant: sums have a fixed order and no multiply-add is fused.
// "Padded": the loop works on whole vectors and may write up to kPadding - 1 elements beyond `count`.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "../pixel_math.h"

namespace vocabseg {

constexpr int kPadding = 64;

// Bilinear taps of consecutive output pixels; kPadding entries beyond the last pixel repeat it.
struct LinearTaps {
    const int32_t *low, *high;
    const float *low_weight, *high_weight;
};

// A tile of the output consists of blocks, whose pixels are contiguous in memory, row by row.
constexpr int kBlockWidth = 16, kBlockHeight = 4, kBlockPixels = kBlockWidth * kBlockHeight;
constexpr int kTileWidth = 64, kTileHeight = 16;
constexpr int kBlocksAcross = kTileWidth / kBlockWidth;
constexpr int kTileBlocks = kBlocksAcross * (kTileHeight / kBlockHeight);
constexpr int kClassGroup = 6;    // classes whose sums stay in registers
constexpr int kClassPadding = 12;  // the number of classes is rounded up to a multiple of this

// The position of a tile's pixels in the image, and of the image's in the masks.
struct TilePlace {
    int mask_width;
    LinearTaps mask_rows, mask_columns;  // of the image's rows and columns
    LinearTaps rows, columns;            // of the tile's rows and columns, from its first on
};

struct Loops {
    const char* name;

    // out[x] = linear interpolation of a row at taps [first, first + count); source[0] is column `origin` of the row,
    // and `readable` floats may be read from there. Padded.
    void (*mix_columns)(const float* source, int readable, int origin, const LinearTaps& taps, int first, int count,
                        float* out);
    // out[x] = above[x] * low_weight + below[x] * high_weight. Padded.
    void (*mix_rows)(const float* above, const float* below, float low_weight, float high_weight, int count,
                     float* out);
    // The sigmoid of the same. Padded.
    void (*mix_rows_sigmoid)(const float* above, const float* below, float low_weight, float high_weight, int count,
                             float* out);
    // How many of the same values are inside; highest[x] becomes the maximum of itself and the value.
    int (*count_inside)(const float* above, const float* below, float low_weight, float high_weight, int count,
                        float limit, float* highest);
    // The highest of `count` values, at least one.
    float (*highest)(const float* values, int count);

    // One mask's probabilities in a tile, block by block: block b goes to blocks[b * block_stride], its maximum to
    // maxima[b]. `scratch` has tile_scratch(image width) floats.
    void (*sample_tile)(const float* mask, const TilePlace& place, float* scratch, float* blocks, size_t block_stride,
                        float* maxima);
    // Scores (kClassGroup, kBlockPixels) of a block (masks, kBlockPixels): sums over masks, in their order.
    void (*block_scores)(const float* block, int masks, const float* const* weights, float* scores);
    // Scores (classes, kTileBlocks) of maxima (masks, kTileBlocks); weights (classes, masks), a multiple of
    // kClassPadding. The sums are those of block_scores, so without negative weights they bound those of the block.
    void (*tile_bounds)(const float* maxima, int masks, const float* weights, int classes, float* bounds);
    // For each of the kTileBlocks columns, the first class with the highest bound.
    void (*highest_bounds)(const float* bounds, int classes, int32_t* winners);
    // Lets `count` classes of a group compete for every pixel of a block: the higher score wins, on ties the lower
    // label. Returns the lowest of the best scores.
    float (*contest)(const float* scores, const int32_t* labels, int count, float* best, int32_t* winner);

    // Pixels are four floats, the last of which is unused.
    void (*cut_row)(const float* mask, float limit, const float* pixels, const float* background, int count,
                    float* out);
    void (*matte_row)(const float* coverage, const float* pixels, const float* fill, const float* mean,
                      const float* deviation, int count, float* out);
    void (*cubic_columns)(const float* pixels, const CubicTap* taps, int count, float* out);
    // Four rows of `count` pixels -> three planes; `scratch` has 4 * count floats.
    void (*cubic_rows)(const float* const* rows, const float* weight, int count, float* scratch, float* const* planes);

    // Pillow's resize of a row of `count` RGB pixels; weights (count, capacity).
    void (*triangle_columns)(const uint8_t* source, const TriangleSpan* spans, const int32_t* weights, int capacity,
                             int count, uint8_t* out);
    // The same down `rows` rows of `count` bytes, `stride` apart; `sums` has `count` elements.
    void (*triangle_rows)(const uint8_t* source, size_t stride, const int32_t* weights, int rows, size_t count,
                          int32_t* sums, uint8_t* out);
};

static inline size_t tile_scratch(int image_width) {
    return 3 * (static_cast<size_t>(image_width) + kPadding) + 2 * kTileWidth;
}

}  // namespace vocabseg
