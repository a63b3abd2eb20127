// What the kernels need from their platform: CUDA, or the emulation that tests compile them with
// (tests/cuda_emulation).
#pragma once

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#else
#include "cuda_emulation.h"
#endif

#include "../pixel_math.h"

namespace vocabseg {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// The block's dynamic shared memory.
__device__ __forceinline__ unsigned char* dynamic_shared() {
#if defined(__CUDACC__)
    extern __shared__ __align__(16) unsigned char memory[];
    return memory;
#else
    return emulation::dynamic_shared();
#endif
}

// A tap in shared memory that lanes read as one 16-byte word.
struct alignas(16) SharedTap {
    LinearTap tap;
};

__device__ __forceinline__ LinearTap read_tap(const SharedTap& from) {
    static_assert(sizeof(SharedTap) == sizeof(int4) && alignof(SharedTap) >= alignof(int4));
    const int4 words = *reinterpret_cast<const int4*>(&from);
    return {words.x, words.y, __int_as_float(words.z), __int_as_float(words.w)};
}

// Keeps the compiler from splitting a pointer into a base and an offset that it adds again at every use.
template <class T> __device__ __forceinline__ void keep_pointer(const T*& pointer) {
#if defined(__CUDACC__)
    asm("" : "+l"(pointer));
#endif
}

// Outputs are written and inputs read as float or half.
__device__ __forceinline__ void put(float* target, float value) { *target = value; }
__device__ __forceinline__ void put(__half* target, float value) { *target = __float2half_rn(value); }
__device__ __forceinline__ float get(const float* source) { return __ldg(source); }
__device__ __forceinline__ float get(const __half* source) { return __half2float(__ldg(source)); }

}  // namespace vocabseg
