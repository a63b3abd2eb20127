// Vectors as wide as the instruction set that this unit is compiled for; a plain float if the compiler has none.
//
// Everything is static: units compiled for different instruction sets must not share a function.
#pragma once

#include <stdint.h>
#include <string.h>

namespace vocabseg {

#if defined(__GNUC__)  // clang too
#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float Lanes __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntLanes __attribute__((vector_size(4 * kLanes)));
#if !defined(__clang__)
#define VOCABSEG_SHUFFLES 1  // __builtin_shuffle with indices known only at run time
#endif
#else
constexpr int kLanes = 1;
typedef float Lanes;
typedef int32_t IntLanes;
#endif

// Four floats: a pixel's red, green and blue, and an unused one.
#if defined(__GNUC__)
typedef float Pixel __attribute__((vector_size(16)));
#else
struct Pixel {
    float value[4];
    friend Pixel operator+(Pixel a, Pixel b) {
        for (int c = 0; c < 4; ++c) a.value[c] += b.value[c];
        return a;
    }
    friend Pixel operator*(Pixel a, float b) {
        for (int c = 0; c < 4; ++c) a.value[c] *= b;
        return a;
    }
};
#endif

static inline Pixel load_pixel(const float* from) {
    Pixel value;
    memcpy(&value, from, sizeof value);
    return value;
}

static inline void store_pixel(float* to, Pixel value) { memcpy(to, &value, sizeof value); }

static inline Lanes load(const float* from) {
    Lanes value;
    memcpy(&value, from, sizeof value);
    return value;
}

static inline IntLanes load(const int32_t* from) {
    IntLanes value;
    memcpy(&value, from, sizeof value);
    return value;
}

static inline void store(float* to, Lanes value) { memcpy(to, &value, sizeof value); }
static inline void store(int32_t* to, IntLanes value) { memcpy(to, &value, sizeof value); }

}  // namespace vocabseg
