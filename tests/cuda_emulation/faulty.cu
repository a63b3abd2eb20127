// Kernels with faults that the emulation must find, and right ones whose results are known.
#include "mma.cuh"

namespace {
__device__ int* shared_numbers() { return reinterpret_cast<int*>(vocabseg::dynamic_shared()); }
__device__ __forceinline__ int4 four_of(const int* values) { return *reinterpret_cast<const int4*>(values); }
}  // namespace

// Every thread reads its neighbour's number.
extern "C" __global__ void neighbours(const int* given, int* out, int with_barrier) {
    int* numbers = shared_numbers();
    numbers[threadIdx.x] = given[threadIdx.x];
    if (with_barrier != 0) __syncthreads();
    out[threadIdx.x] = numbers[(threadIdx.x + 1) % blockDim.x];
}

// The same within a warp.
extern "C" __global__ void warp_neighbours(const int* given, int* out, int with_barrier) {
    int* numbers = shared_numbers();
    numbers[threadIdx.x] = given[threadIdx.x];
    if (with_barrier != 0) __syncwarp();
    out[threadIdx.x] = numbers[threadIdx.x / 32 * 32 + (threadIdx.x + 1) % 32];
}

extern "C" __global__ void half_a_barrier(int* out) {
    if (threadIdx.x < blockDim.x / 2) __syncthreads();
    out[threadIdx.x] = 1;
}

extern "C" __global__ void half_a_warp(int* out) {
    if (threadIdx.x % 2 == 0) out[threadIdx.x] = __ballot_sync(0xffffffffu, 1);
}

extern "C" __global__ void foreign_lane(int* out) {
    if (threadIdx.x < 4) out[threadIdx.x] = __shfl_sync(0xfu, 1, 7);
}

extern "C" __global__ void read_at(const int* given, int* out, int index) { out[threadIdx.x] = given[index]; }

extern "C" __global__ void read_unwritten(int* out) { out[threadIdx.x] = shared_numbers()[threadIdx.x]; }

// Two numbers at once, of global or shared memory, beginning with the one of this index.
extern "C" __global__ void pair_at(const int* given, int* out, int index, int shared) {
    if (shared != 0) shared_numbers()[threadIdx.x] = given[threadIdx.x];
    __syncthreads();
    const int2 pair = *reinterpret_cast<const int2*>((shared != 0 ? shared_numbers() : given) + index);
    out[threadIdx.x] = pair.x + pair.y;
}

// A sum of three of four numbers that are to be read at once, though the compiler may read them one by one.
extern "C" __global__ void four_at(const int* given, int* out, int index) {
    shared_numbers()[threadIdx.x] = given[threadIdx.x];
    __syncthreads();
    const int4 four = four_of(shared_numbers() + index);
    out[threadIdx.x] = four.x + 2 * four.y + 3 * four.z;
}

extern "C" __global__ void blocks_in_turn(int* out) { out[0] = blockIdx.x; }

extern "C" __global__ void count_threads(int* out) { atomicAdd(out, 1); }

// d = a b + c: a (16, 16), b (16, 8), c and d (16, 8).
extern "C" __global__ void product(const float* a, const float* b, const float* c, float* d) {
    const int g = threadIdx.x / 4, t = threadIdx.x % 4;
    const auto pair = [](float first, float second) {
        const uint32_t low = __half_as_ushort(__float2half_rn(first)), high = __half_as_ushort(__float2half_rn(second));
        return low | high << 16;
    };
    uint32_t left[4], right[2];
    for (int k = 0; k < 4; ++k) {
        const float* at = a + (g + k % 2 * 8) * 16 + 2 * t + k / 2 * 8;
        left[k] = pair(at[0], at[1]);
    }
    for (int k = 0; k < 2; ++k) {
        const float* at = b + (2 * t + 8 * k) * 8 + g;
        right[k] = pair(at[0], at[8]);
    }
    float sums[4];
    for (int k = 0; k < 4; ++k) sums[k] = c[(g + k / 2 * 8) * 8 + 2 * t + k % 2];
    vocabseg::multiply_add(sums, left, right[0], right[1]);
    for (int k = 0; k < 4; ++k) d[(g + k / 2 * 8) * 8 + 2 * t + k % 2] = sums[k];
}

// A sum of each warp by every kind of shuffle, and what ballots say.
extern "C" __global__ void shuffles(const int* given, int* out) {
    const int own = given[threadIdx.x];
    int sum = own;
    for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
    int* target = out + 6 * threadIdx.x;
    target[0] = sum;
    target[1] = __shfl_up_sync(0xffffffffu, own, 3);
    target[2] = __shfl_down_sync(0xffffffffu, own, 5);
    target[3] = __shfl_sync(0xffffffffu, own, 7, 8);
    target[4] = static_cast<int>(__ballot_sync(0xffffffffu, own % 3 == 0));
    target[5] = __any_sync(0xffffffffu, own > 1000) * 2 + __all_sync(0xffffffffu, own >= 0);
}
