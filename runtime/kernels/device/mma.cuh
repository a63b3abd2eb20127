// Half-precision matrix products on tensor cores, and the split of a float into two halves.
//
// Fragments as in the PTX manual for mma.sync.m16n8k16, lane 4 g + t: A word 0: row g, columns 2 t and 2 t + 1; word 1:
// row g + 8; words 2 and 3: the same 8 columns further. B word 0: column g, rows 2 t and 2 t + 1; word 1: 8 rows
// further. C words 0 and 1: row g, columns 2 t and 2 t + 1; words 2 and 3: row g + 8.
#pragma once

#include "platform.cuh"

namespace vocabseg {

#if (defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800) || defined(VOCABSEG_EMULATE_TURING)
#define VOCABSEG_SHORT_MMA  // Turing multiplies 8 columns at a time
#endif

// c += a b; a is 16 x 16, b 16 x 8 and c 16 x 8.
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if !defined(__CUDACC__)
#if defined(VOCABSEG_SHORT_MMA)
    const uint32_t near[2] = {a[0], a[1]}, far[2] = {a[2], a[3]}, first[1] = {b0}, second[1] = {b1};
    emulation::mma(c, near, first);
    emulation::mma(c, far, second);
#else
    const uint32_t both[2] = {b0, b1};
    emulation::mma(c, a, both);
#endif
#elif defined(VOCABSEG_SHORT_MMA)
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(b0));
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[2]), "r"(a[3]), "r"(b1));
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// high + low equals the value to about 22 bits if it lies between about 2^-14 and 2^15; smaller values keep an absolute
// precision of 2^-25.
struct HalfPair {
    unsigned short high, low;
};

__device__ __forceinline__ HalfPair split(float value) {
    const __half high = __float2half_rn(value);
    return {__half_as_ushort(high), __half_as_ushort(__float2half_rn(value - __half2float(high)))};
}

// The hardware's 2^x and 1 / x, to 2 ulp and 1 ulp (PTX manual, ex2.approx and rcp.approx).
__device__ __forceinline__ float fast_exp2(float x) {
#if defined(__CUDACC__)
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}

__device__ __forceinline__ float fast_reciprocal(float x) {
#if defined(__CUDACC__)
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return 1.0f / x;
#endif
}

}  // namespace vocabseg
