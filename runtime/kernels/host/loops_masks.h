// Loops over rows of mask logits.
#pragma once

#include "lanes.h"
#include "loops.h"

namespace vocabseg {

static inline int whole_lanes(int count) { return (count + kLanes - 1) / kLanes * kLanes; }

// A vector's taps lie close together: two loads and two shuffles read them, instead of two loads per output.
static void mix_columns(const float* source, int readable, int origin, const LinearTaps& taps, int first, int count,
                        float* __restrict out) {
    for (int x = 0; x < count; x += kLanes) {
        const int at = first + x;
#if defined(VOCABSEG_SHUFFLES)
        int base = taps.low[at] - origin;
        if (base > readable - 2 * kLanes) base = readable - 2 * kLanes;
        if (base >= 0 && taps.high[at + kLanes - 1] - origin - base < 2 * kLanes) {
            const Lanes near = load(source + base), far = load(source + base + kLanes);
            const int32_t shift = origin + base;
            const Lanes low = __builtin_shuffle(near, far, load(taps.low + at) - shift);
            const Lanes high = __builtin_shuffle(near, far, load(taps.high + at) - shift);
            store(out + x, low * load(taps.low_weight + at) + high * load(taps.high_weight + at));
            continue;
        }
#else
        (void)readable;
#endif
        for (int k = 0; k < kLanes; ++k) {
            out[x + k] = linear_mix(source[taps.low[at + k] - origin], source[taps.high[at + k] - origin],
                                    taps.low_weight[at + k], taps.high_weight[at + k]);
        }
    }
}

static void mix_rows(const float* above, const float* below, float low_weight, float high_weight, int count,
                     float* __restrict out) {
    const int whole = whole_lanes(count);
    for (int x = 0; x < whole; ++x) out[x] = linear_mix(above[x], below[x], low_weight, high_weight);
}

static void mix_rows_sigmoid(const float* above, const float* below, float low_weight, float high_weight, int count,
                             float* __restrict out) {
    const int whole = whole_lanes(count);
    for (int x = 0; x < whole; ++x) out[x] = sigmoid(linear_mix(above[x], below[x], low_weight, high_weight));
}

static int count_inside(const float* above, const float* below, float low_weight, float high_weight, int count,
                        float limit, float* __restrict highest) {
    int inside = 0;
    for (int x = 0; x < count; ++x) {
        const float logit = linear_mix(above[x], below[x], low_weight, high_weight);
        inside += is_inside(logit, limit) ? 1 : 0;
        highest[x] = logit > highest[x] ? logit : highest[x];
    }
    return inside;
}

static float highest(const float* values, int count) {
    float best = values[0];
    int x = 0;
    if (count >= kLanes) {
        Lanes lanes = load(values);
        for (x = kLanes; x + kLanes <= count; x += kLanes) {
            const Lanes next = load(values + x);
            lanes = next > lanes ? next : lanes;
        }
        float spread[kLanes];
        store(spread, lanes);
        for (int k = 0; k < kLanes; ++k) best = spread[k] > best ? spread[k] : best;
    }
    for (; x < count; ++x) best = values[x] > best ? values[x] : best;
    return best;
}

}  // namespace vocabseg
