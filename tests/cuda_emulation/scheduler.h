// The state of a launch, shared by the scheduler and the watch over memory.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "cuda_emulation.h"

namespace emulation {

struct Where {
    uint32_t block;          // number of the block in the order of the launch, from 1 on
    uint32_t thread;         // within the block
    uint32_t barriers;       // that the block has passed
    uint32_t warp_barriers;  // warp operations that the thread's warp has passed, all lanes taking part
};

Where where();
// Ends the launch with this message; does not return.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
bool running();                                     // inside a kernel
bool on_a_stack(const void* address);               // of a fiber
bool in_shared(const void* address, size_t bytes);  // in the shared memory of the running launch

// The watch over memory (watch.cpp); it sees accesses only where the kernels are compiled with -fsanitize=thread.
void watch_launch();
void watch_block();
void watch_atomic(const void* address, size_t bytes);

}  // namespace emulation
