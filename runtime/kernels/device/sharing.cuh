// The region budget: which masks lead others, by their overlap and objectness, and embeddings that many regions share.
//
// near_masks compares two masks with a warp, by the bits that region_boxes has packed, within the part that their boxes
// have in common; of most pairs the areas and boxes alone tell that they differ. 100 masks over 640 x 959 are 4950 pairs
// of up to 154 kB: at most 760 MB out of the L2 cache if all cover the image, some 10 MB of proposals as they are; 75
// million instructions of warps or half a million (kernel_bench --estimate), 72 or 0.5 us of an H200 at full issue.
// choose_leaders is one block that waits for itself twice for each leader, so it is bound by latency: some
// microseconds, against the milliseconds of the crops that it saves. Neither has been measured on a GPU.
#pragma once

#include "platform.cuh"

namespace vocabseg {

constexpr int kSharingThreads = 256;

// The sum over a block's threads, for the first one.
template <class Value> __device__ __forceinline__ Value block_sum(Value own, Value* of_warps) {
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) own += __shfl_xor_sync(kAllLanes, own, lanes);
    if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = own;
    __syncthreads();
    Value sum = 0;
    if (threadIdx.x == 0) {
        for (int warp = 0; warp < kSharingThreads / kWarp; ++warp) sum += of_warps[warp];
    }
    return sum;
}

template <class Logit>
__device__ __forceinline__ void mask_confidence(const Logit* logits, int64_t pixels, float limit, float* confidences) {
    __shared__ float sums[kSharingThreads / kWarp];
    __shared__ int counts[kSharingThreads / kWarp];
    const Logit* mask = logits + blockIdx.x * pixels;
    float sum = 0;
    int count = 0;
    for (int64_t k = threadIdx.x; k < pixels; k += blockDim.x) {
        const float logit = get(mask + k);
        if (!is_inside(logit, limit)) continue;
        sum += sigmoid(logit);
        ++count;
    }
    const float all = block_sum(sum, sums);
    const int inside = block_sum(count, counts);
    if (threadIdx.x == 0) confidences[blockIdx.x] = inside > 0 ? all / static_cast<float>(inside) : 0.0f;
}

// Whether the IoU of two masks is `share` or more; called by a whole warp.
__device__ __forceinline__ bool overlap(const uint32_t* bits, const int* boxes, const int* areas, int height, int words,
                                        double share, int one, int other) {
    const int area = areas[one], other_area = areas[other];
    if (area <= 0 || other_area <= 0) return false;
    const int *box = boxes + 4 * one, *other_box = boxes + 4 * other;
    const int left = max(box[0], other_box[0]), right = min(box[2], other_box[2]);
    const int top = max(box[1], other_box[1]), bottom = min(box[3], other_box[3]);
    // No intersection is larger than a mask or the boxes' common part, and no union smaller than a mask.
    const int common = max(right - left, 0) * max(bottom - top, 0);
    if (min(min(area, other_area), common) < share * max(area, other_area)) return false;
    const int first = left / kWarp, across = (right - 1) / kWarp + 1 - first, lane = threadIdx.x % kWarp;
    const int64_t mask_words = static_cast<int64_t>(height) * words;
    const uint32_t *rows = bits + one * mask_words, *other_rows = bits + other * mask_words;
    // The warp goes on by 32 words at a time; dividing for each would take most of the instructions.
    const int step_down = kWarp / across, step_right = kWarp % across;
    int both = 0;
    for (int y = top + lane / across, x = lane % across; y < bottom;) {
        const int at = y * words + first + x;
        both += __popc(__ldg(rows + at) & __ldg(other_rows + at));
        y += step_down;
        x += step_right;
        if (x >= across) {
            x -= across;
            ++y;
        }
    }
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) both += __shfl_xor_sync(kAllLanes, both, lanes);
    return both >= share * (static_cast<double>(area) + other_area - both);
}

// Whether a mask comes before another: by objectness, then by number. NaN counts as the least.
__device__ __forceinline__ bool precedes(float own, int k, float other, int j) {
    return own > other || (own == other && k < j);
}

}  // namespace vocabseg

// A block per mask: the mean probability of its logits above the limit.
extern "C" __global__ void __launch_bounds__(vocabseg::kSharingThreads)
    mask_confidence_f32(const float* logits, int64_t pixels, float limit, float* confidences) {
    vocabseg::mask_confidence(logits, pixels, limit, confidences);
}

extern "C" __global__ void __launch_bounds__(vocabseg::kSharingThreads)
    mask_confidence_f16(const __half* logits, int64_t pixels, float limit, float* confidences) {
    vocabseg::mask_confidence(logits, pixels, limit, confidences);
}

// A warp per pair of masks: near (masks, masks) is 1 where their IoU is `share` or more, off the diagonal.
extern "C" __global__ void __launch_bounds__(vocabseg::kSharingThreads)
    near_masks(int masks, const uint32_t* bits, const int* boxes, const int* areas, int height, int words, double share,
               uint8_t* near) {
    const int one = blockIdx.x, other = blockIdx.y * (blockDim.x / vocabseg::kWarp) + threadIdx.x / vocabseg::kWarp;
    if (other >= one) return;
    const bool found = vocabseg::overlap(bits, boxes, areas, height, words, share, one, other);
    if (threadIdx.x % vocabseg::kWarp != 0) return;
    near[static_cast<int64_t>(one) * masks + other] = found;
    near[static_cast<int64_t>(other) * masks + one] = found;
}

// One block. leaders (masks,): the mask whose crop stands for each, or -1; leads (masks,): 1 where that is the mask itself.
// The areas of masks that are not empty and have no leader become -1. ranked (masks,) is scratch. ratings are the masks'
// objectness, or one minus it; near is as of near_masks, or null; at most `most` masks lead.
extern "C" __global__ void __launch_bounds__(vocabseg::kSharingThreads)
    choose_leaders(int masks, const float* ratings, int inverted, const uint8_t* near, float least, int most, int* areas,
                   int* ranked, int* leaders, int* leads) {
    const auto objectness = [=](int k) {
        const float value = inverted != 0 ? 1.0f - ratings[k] : ratings[k];
        return value >= 0 ? value : 0.0f;
    };
    __shared__ int ranks;  // how many masks are not empty
    if (threadIdx.x == 0) ranks = 0;
    __syncthreads();
    for (int k = threadIdx.x; k < masks; k += blockDim.x) {
        leaders[k] = -1;
        if (areas[k] <= 0) continue;
        int rank = 0;
        const float own = objectness(k);
        for (int j = 0; j < masks; ++j) rank += areas[j] > 0 && vocabseg::precedes(objectness(j), j, own, k);
        ranked[rank] = k;
        atomicAdd(&ranks, 1);
    }
    __syncthreads();
    int chosen = 0;
    for (int rank = 0; rank < ranks && chosen < most; ++rank) {
        const int leader = ranked[rank];
        if (rank > 0 && objectness(leader) < least) break;  // the best one always leads
        const bool led = leaders[leader] >= 0;
        __syncthreads();
        if (led) continue;
        ++chosen;
        const uint8_t* row = near == nullptr ? nullptr : near + static_cast<int64_t>(leader) * masks;
        for (int k = threadIdx.x; k < masks; k += blockDim.x) {
            const bool follows = row != nullptr && k != leader && areas[k] > 0 && leaders[k] < 0 && row[k] != 0 &&
                                 objectness(k) >= least;
            if (k == leader || follows) leaders[k] = leader;
        }
        __syncthreads();
    }
    for (int k = threadIdx.x; k < masks; k += blockDim.x) {
        leads[k] = leaders[k] == k;
        if (areas[k] > 0 && leaders[k] < 0) areas[k] = -1;
    }
}

// A block per region: the row of the crop that stands for it. leaders (masks,); order: the masks of the regions; crops
// (count,): the masks that lead, in order. Rows have `width` numbers of 16 bits.
extern "C" __global__ void __launch_bounds__(vocabseg::kSharingThreads)
    share_rows(const uint16_t* features, const int* leaders, const int* order, const int* crops, const int* count,
               int width, uint16_t* rows) {
    const int leader = leaders[order[blockIdx.x]];
    int low = 0, high = *count - 1;
    while (low < high) {
        const int middle = (low + high) / 2;
        if (crops[middle] < leader) low = middle + 1;
        else high = middle;
    }
    const uint16_t* from = features + static_cast<int64_t>(low) * width;
    uint16_t* to = rows + static_cast<int64_t>(blockIdx.x) * width;
    for (int k = threadIdx.x; k < width; k += blockDim.x) to[k] = from[k];
}
