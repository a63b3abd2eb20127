// The watch over memory: reads of what nobody wrote, accesses outside of what was allocated, and races.
//
// Built with -fsanitize=thread, the kernels call __tsan_read4(address) and its like before every access. These functions
// stand here instead of in the sanitizer's library. Two accesses of one byte are a race when one of them writes and no
// barrier of the block, and no operation of the whole warp if both are of one warp, lies between them; within a launch
// two blocks may never share a byte that one of them writes, but for atomics.
#include <dlfcn.h>

#include <map>
#include <unordered_map>
#include <vector>

#include "scheduler.h"

namespace emulation {
namespace {

struct Access {
    Where at{};
    bool ordered_before(const Where& now) const {
        if (at.block == 0) return true;
        if (at.block != now.block) return false;
        if (at.thread == now.thread || at.barriers != now.barriers) return true;
        return at.thread / 32 == now.thread / 32 && at.warp_barriers != now.warp_barriers;
    }
};

struct Byte {
    Access write, read, other_read;  // the last write, and the last reads of two threads since
    bool known = false;              // somebody wrote it
    bool atomic = false;             // the last write was an atomic operation
};

struct Allocation {
    size_t size;
    std::vector<bool> known;
    std::unordered_map<uint32_t, Byte> bytes;  // touched in this launch
};

std::map<uintptr_t, Allocation> allocations;
std::unordered_map<uintptr_t, Byte> shared_bytes;

void touch(Byte& byte, bool writes, bool is_atomic, const char* memory, uintptr_t address) {
    const Where now = where();
    const void* at = reinterpret_cast<const void*>(address);
    const bool both_atomic = is_atomic && byte.atomic;
    if (!both_atomic && !byte.write.ordered_before(now)) {
        fail("race in %s memory: it %s %p, which thread %u of the %u. block wrote without a barrier between", memory,
             writes ? "writes" : "reads", at, byte.write.at.thread, byte.write.at.block);
    }
    if (writes) {
        for (const Access* access : {&byte.read, &byte.other_read}) {
            if (!access->ordered_before(now)) {
                fail("race in %s memory: it writes %p, which thread %u of the %u. block read without a barrier between", memory, at,
                     access->at.thread, access->at.block);
            }
        }
        byte.write.at = now;
        byte.known = true;
        byte.atomic = is_atomic;
        byte.read = byte.other_read = Access{};
        return;
    }
    if (byte.read.at.block != 0 && byte.read.at.thread != now.thread) byte.other_read = byte.read;
    byte.read.at = now;
}

bool of_this_library(const void* address) {
    Dl_info own, other;
    return dladdr(reinterpret_cast<const void*>(&of_this_library), &own) != 0 && dladdr(address, &other) != 0 &&
           own.dli_fbase == other.dli_fbase;
}

void access(const void* address, size_t bytes, bool writes, bool is_atomic) {
    if (!running() || on_a_stack(address)) return;
    const auto first = reinterpret_cast<uintptr_t>(address);
    const auto check_alignment = [&] {
        if (first % bytes != 0 && bytes <= 16) fail("%zu bytes at %p are not aligned", bytes, address);
    };
    bool known = true;
    if (in_shared(address, bytes)) {
        check_alignment();
        for (size_t k = 0; k < bytes; ++k) {
            Byte& byte = shared_bytes[first + k];
            known = known && byte.known;
            touch(byte, writes, is_atomic, "shared", first + k);
        }
        if (!known && !writes) fail("reads %p in shared memory, which nobody has written", address);
        return;
    }
    auto found = allocations.upper_bound(first);
    if (found != allocations.begin()) {
        --found;
        Allocation& allocation = found->second;
        const uintptr_t offset = first - found->first;
        if (offset + bytes <= allocation.size) {
            check_alignment();
            known = false;  // one byte is enough: a word may reach over the end of an array of bytes
            for (size_t k = 0; k < bytes; ++k) {
                known = known || allocation.known[offset + k];
                touch(allocation.bytes[static_cast<uint32_t>(offset + k)], writes, is_atomic, "global", first + k);
                if (writes) allocation.known[offset + k] = true;
            }
            if (!known && (!writes || is_atomic)) fail("reads %p in global memory, which nobody has written", address);
            return;
        }
    }
    // Constants, threadIdx and its like.
    if (!of_this_library(address)) fail("%s %zu bytes at %p, which is outside of every allocation", writes ? "writes" : "reads", bytes, address);
}

}  // namespace

void watch_launch() {
    for (auto& [address, allocation] : allocations) allocation.bytes.clear();
}
void watch_block() { shared_bytes.clear(); }
void watch_atomic(const void* address, size_t bytes) {
    if (!allocations.empty()) access(address, bytes, true, true);
}

}  // namespace emulation

extern "C" {

// Memory that kernels may touch from now on; `known`: whether it holds something already.
void emulation_allocated(void* address, size_t bytes, int known) {
    emulation::allocations[reinterpret_cast<uintptr_t>(address)] = {bytes, std::vector<bool>(bytes, known != 0), {}};
}
void emulation_freed(void* address) { emulation::allocations.erase(reinterpret_cast<uintptr_t>(address)); }
// The host has written (known) or given up (not known) these bytes of an allocation.
void emulation_written(void* address, size_t bytes, int known) {
    auto found = emulation::allocations.upper_bound(reinterpret_cast<uintptr_t>(address));
    if (found == emulation::allocations.begin()) return;
    --found;
    const size_t offset = reinterpret_cast<uintptr_t>(address) - found->first;
    for (size_t k = offset; k < offset + bytes && k < found->second.size; ++k) found->second.known[k] = known != 0;
}
// Order of blocks and threads: as numbered (0), or drawn from this seed.
void emulation_seed(uint64_t seed);

#define ACCESS(bytes) \
    void __tsan_read##bytes(void* at) { emulation::access(at, bytes, false, false); } \
    void __tsan_write##bytes(void* at) { emulation::access(at, bytes, true, false); } \
    void __tsan_unaligned_read##bytes(void* at) { emulation::access(at, bytes, false, false); } \
    void __tsan_unaligned_write##bytes(void* at) { emulation::access(at, bytes, true, false); }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
void __tsan_read_range(void* at, size_t bytes) { emulation::access(at, bytes, false, false); }
void __tsan_write_range(void* at, size_t bytes) { emulation::access(at, bytes, true, false); }
// Of a pointer that is used; what is loaded through it may be less than what it points to.
struct Mismatch {
    const char* file;
    uint32_t line, column;
    const void* type;
    unsigned char log_alignment, kind;
};
void __ubsan_handle_type_mismatch_v1(const Mismatch* found, const void* address) {
    if (emulation::running()) emulation::fail("%zu bytes at %p are not aligned", size_t{1} << found->log_alignment, address);
}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
}

namespace emulation { void choose_order(uint64_t seed); }
extern "C" void emulation_seed(uint64_t seed) { emulation::choose_order(seed); }
