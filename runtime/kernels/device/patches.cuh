// patch_masks: which patches of each crop hold a pixel of its region, for image encoders that take mask prompts; for the
// regions of many images in one launch.
//
// A thread looks down a column of the crop within a row of patches, at the nearest pixel of the mask, until one is
// inside. 91 regions, crops of 224 x 224 pixels, 14 x 14 patches: up to 7.7 MB of bits are read, 36 kB written: 1.6 us at
// 4.8 TB/s. Counted for sm_90 (kernel_bench --estimate, its synthetic masks): 2.3 to 2.4 M instructions of warps, 2.2 to
// 2.3 us at the 1.05 T/s that an H200 issues; 3.6 to 3.7 M for 100 whole images of which no pixel is inside.
#pragma once

#include "crops.cuh"

namespace vocabseg {

struct PatchSettings {
    float limit;  // logit above which a pixel counts for its patch
    int size, across, crops;  // of a crop: pixels and patches along its side; the capacity
};

// blockIdx: x the row of patches, y the region, z the image.
template <class Out, bool kBits>
__device__ __forceinline__ void patch_masks(const CropSource& source, const PatchSettings& settings, Out* patches) {
    const int region = blockIdx.y, crop = source.first + region, across = settings.across;
    if (region >= source.capacity || region >= __ldg(source.count) || crop >= settings.crops) return;  // the whole block
    int* found = reinterpret_cast<int*>(dynamic_shared());
    for (int k = threadIdx.x; k < across; k += blockDim.x) found[k] = 0;
    __syncthreads();
    const int left = __ldg(source.boxes + 4 * region), top = __ldg(source.boxes + 4 * region + 1);
    const int width = __ldg(source.boxes + 4 * region + 2) - left;
    const int height = __ldg(source.boxes + 4 * region + 3) - top;
    const auto coverage = coverage_of<kBits>(source, __ldg(source.order + region), false, settings.limit);
    const int patch = settings.size / across, first = blockIdx.x * patch;
    for (int x = threadIdx.x; x < across * patch; x += blockDim.x) {
        const int column = left + nearest_index(width, settings.size, x);
        bool inside = false;
        for (int y = first; y < first + patch && !inside; ++y) {
            inside = coverage.inside(top + nearest_index(height, settings.size, y), column);
        }
        if (inside) atomicMax(found + x / patch, 1);
    }
    __syncthreads();
    Out* out = patches + (static_cast<int64_t>(crop) * across + blockIdx.x) * across;
    for (int k = threadIdx.x; k < across; k += blockDim.x) put(out + k, found[k] != 0 ? 1.0f : 0.0f);
}

}  // namespace vocabseg

#define VOCABSEG_PATCH_KERNEL(name, Out, has_bits)                                                               \
    extern "C" __global__ void __launch_bounds__(256)                                                            \
        name(vocabseg::CropSources sources, vocabseg::PatchSettings settings, Out* patches) {                    \
        vocabseg::patch_masks<Out, has_bits>(sources.of[blockIdx.z], settings, patches);                         \
    }
VOCABSEG_PATCH_KERNEL(patch_masks_bits_f32, float, true)
VOCABSEG_PATCH_KERNEL(patch_masks_bits_f16, __half, true)
VOCABSEG_PATCH_KERNEL(patch_masks_logits_f32, float, false)
VOCABSEG_PATCH_KERNEL(patch_masks_logits_f16, __half, false)
#undef VOCABSEG_PATCH_KERNEL
