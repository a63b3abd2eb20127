// What device code needs of CUDA, for g++: the kernels' very source runs on the CPU, so that tests need no GPU.
//
// The threads of a block are fibers that a scheduler (scheduler.cpp) runs in an order drawn from a seed; they change over
// at barriers and warp operations only. One block runs at a time. A kernel must not return before a barrier that other
// threads reach, and its objects must need no destructor: a launch that fails leaves its fibers where they stand.
// Arithmetic is IEEE float32 with no multiply-add fused; the approximate functions of the hardware are exact here.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
// Static shared memory lies together in one section, so that it can be poisoned before every block. g++ gives a section
// to variables of plain functions only: kernels that are templates take dynamic shared memory.
#define __shared__ static __attribute__((section("emulated_shared")))

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline int2 make_int2(int x, int y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

extern "C" {
extern uint3 threadIdx, blockIdx;  // of the fiber that runs
extern dim3 blockDim, gridDim;
}
constexpr int warpSize = 32;

namespace emulation {

enum class Operation : int { kNone, kSync, kBallot, kShuffle, kMma16, kMma8 };

unsigned char* dynamic_shared();
void barrier();
// Gives `words` of this lane to the lanes of `mask`, waits for them, and writes what the operation makes of all (`results`
// words).
void exchange(Operation operation, uint32_t mask, const uint32_t* given, int words, uint32_t* result, int results);
// old value; the address must be writable by all threads at once, so it is no race
uint32_t atomic(void* address, uint32_t operand, uint32_t (*combine)(uint32_t, uint32_t));

inline uint32_t bits_of(float value) { uint32_t bits; memcpy(&bits, &value, 4); return bits; }
inline float float_of(uint32_t bits) { float value; memcpy(&value, &bits, 4); return value; }
template <class T> inline uint32_t word_of(T value) {
    static_assert(sizeof(T) == 4, "shuffles take 32 bits");
    uint32_t word;
    memcpy(&word, &value, 4);
    return word;
}
template <class T> inline T value_of(uint32_t word) { T value; memcpy(&value, &word, 4); return value; }
inline int lane() { return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32; }
template <class T> inline T shuffle(uint32_t mask, T value, int source) {
    const uint32_t given[2] = {word_of(value), static_cast<uint32_t>(source)};
    uint32_t result;
    exchange(Operation::kShuffle, mask, given, 2, &result, 1);
    return value_of<T>(result);
}

}  // namespace emulation

inline void __syncthreads() { emulation::barrier(); }
inline void __syncwarp(uint32_t mask = 0xffffffffu) {
    emulation::exchange(emulation::Operation::kSync, mask, nullptr, 0, nullptr, 0);
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate) {
    const uint32_t given = predicate != 0;
    uint32_t result;
    emulation::exchange(emulation::Operation::kBallot, mask, &given, 1, &result, 1);
    return result;
}
inline int __any_sync(uint32_t mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(uint32_t mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }
template <class T> inline T __shfl_sync(uint32_t mask, T value, int source, int width = 32) {
    return emulation::shuffle(mask, value, (emulation::lane() & ~(width - 1)) + (source & (width - 1)));
}
template <class T> inline T __shfl_xor_sync(uint32_t mask, T value, int lanes) {
    return emulation::shuffle(mask, value, emulation::lane() ^ lanes);
}
template <class T> inline T __shfl_up_sync(uint32_t mask, T value, unsigned lanes) {
    const int lane = emulation::lane(), from = lane - static_cast<int>(lanes);
    return emulation::shuffle(mask, value, from < 0 ? lane : from);
}
template <class T> inline T __shfl_down_sync(uint32_t mask, T value, unsigned lanes) {
    const int lane = emulation::lane(), from = lane + static_cast<int>(lanes);
    return emulation::shuffle(mask, value, from > 31 ? lane : from);
}

inline int atomicAdd(int* at, int value) {
    return static_cast<int>(emulation::atomic(at, value, [](uint32_t a, uint32_t b) { return a + b; }));
}
inline int atomicMax(int* at, int value) {
    return static_cast<int>(emulation::atomic(at, value, [](uint32_t a, uint32_t b) {
        return static_cast<uint32_t>(std::max(static_cast<int>(a), static_cast<int>(b)));
    }));
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>(((static_cast<uint64_t>(high) << 32) | low) >> (shift & 31));
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const uint64_t bytes = (static_cast<uint64_t>(b) << 32) | a;
    unsigned out = 0;
    for (int k = 0; k < 4; ++k) out |= static_cast<unsigned>((bytes >> (8 * ((selector >> (4 * k)) & 7))) & 0xff) << (8 * k);
    return out;
}
template <class T> inline T __ldg(const T* at) { return *at; }
inline float __uint_as_float(unsigned bits) { return emulation::float_of(bits); }
inline float __int_as_float(int bits) { return emulation::float_of(static_cast<unsigned>(bits)); }
inline unsigned __float_as_uint(float value) { return emulation::bits_of(value); }
inline int __float_as_int(float value) { return static_cast<int>(emulation::bits_of(value)); }
using std::max;
using std::min;

// Half precision as bits, rounded to the nearest, ties to even.
struct __half { uint16_t bits; };
inline __half __float2half_rn(float value) {
    const _Float16 narrow = static_cast<_Float16>(value);
    __half out;
    memcpy(&out, &narrow, 2);
    return out;
}
inline float __half2float(__half value) {
    _Float16 narrow;
    memcpy(&narrow, &value, 2);
    return static_cast<float>(narrow);
}
inline unsigned short __half_as_ushort(__half value) { return value.bits; }
inline __half __ushort_as_half(unsigned short bits) { return {bits}; }

namespace emulation {

// d = a b + c of mma.sync.aligned.m16n8k16 (or .m16n8k8 with half of a and b) .row.col.f32.f16.f16.f32, by the fragment
// layout of the PTX manual ("Warp-level matrix instructions").
template <int AWords, int BWords> inline void mma(float (&d)[4], const uint32_t (&a)[AWords], const uint32_t (&b)[BWords]) {
    uint32_t given[AWords + BWords + 4];
    memcpy(given, a, sizeof a);
    memcpy(given + AWords, b, sizeof b);
    memcpy(given + AWords + BWords, d, sizeof d);
    const auto operation = AWords == 4 ? Operation::kMma16 : Operation::kMma8;
    uint32_t result[4];
    exchange(operation, 0xffffffffu, given, AWords + BWords + 4, result, 4);
    memcpy(d, result, sizeof d);
}

}  // namespace emulation
