// Which instruction sets the loops were compiled for, and which of them this processor has.
#pragma once

#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

#include "loops.h"

namespace vocabseg {

#if defined(VOCABSEG_X86_VARIANTS)
extern const Loops loops_v2, loops_v3, loops_v4;  // x86-64-v2: SSE4.2; v3: AVX2; v4: AVX-512

// The oldest first. These features distinguish the levels; the checks include that the operating system saves the wider
// registers.
inline std::vector<const Loops*> variants() {
    std::vector<const Loops*> found{&loops_v2};
    if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("fma"))) {
        return found;
    }
    found.push_back(&loops_v3);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        found.push_back(&loops_v4);
    }
    return found;
}
#else
extern const Loops loops_baseline;
inline std::vector<const Loops*> variants() { return {&loops_baseline}; }
#endif

inline std::atomic<const Loops*>& chosen_loops() {
    static std::atomic<const Loops*> chosen{variants().back()};
    return chosen;
}

inline const Loops& loops() { return *chosen_loops().load(std::memory_order_relaxed); }

// Throws std::invalid_argument for a name that is not among variants().
inline void choose_variant(const std::string& name) {
    std::string names;
    for (const Loops* variant : variants()) {
        if (name == variant->name) {
            chosen_loops() = variant;
            return;
        }
        names += (names.empty() ? "" : ", ") + std::string(variant->name);
    }
    throw std::invalid_argument("no kernels for the instruction set '" + name + "': this processor has " + names);
}

}  // namespace vocabseg
