// Memory and streams of the GPU that is not there: see machine.h.
#include "machine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <atomic>

namespace fake {

Machine machine;
Control control;

namespace {

constexpr int kPoison = 0xFF;
constexpr uint64_t kQuarantine = 64ull << 20;  // bytes of freed memory that are kept, to see who writes there
constexpr uint64_t kAlignment = 512;

bool late() { return control.seed < 0; }

void check_freed(Lock& lock, uint64_t address, uint64_t size) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(address);
    if (std::any_of(bytes, bytes + size, [](unsigned char byte) { return byte != kPoison; })) {
        fault(lock, "memory was written after it was freed (" + std::to_string(size) + " bytes)");
    }
    free(reinterpret_cast<void*>(address));
}

// Runs the first operation of a stream; false where that waits for another stream whose turn has not come.
bool step(Lock& lock, const std::shared_ptr<Stream>& stream) {
    if (stream->busy || stream->waiting.empty()) return false;
    Operation& first = stream->waiting.front();
    stream->busy = true;
    if (first.work) {
        lock.unlock();
        first.work();
        lock.lock();
    } else if (!first.waits_for.reached()) {
        const Mark mark = first.waits_for;
        if (late()) reach(lock, mark);
        if (!mark.reached()) {
            stream->busy = false;
            return false;
        }
    }
    stream->busy = false;
    stream->waiting.pop_front();
    ++stream->done;
    machine.changed.notify_all();
    return true;
}

bool random_step(Lock& lock) {
    std::vector<std::shared_ptr<Stream>> ready;
    for (auto& [handle, stream] : machine.streams) {
        if (!stream->waiting.empty()) ready.push_back(stream);
    }
    std::shuffle(ready.begin(), ready.end(), machine.chance);
    return std::any_of(ready.begin(), ready.end(), [&](auto& stream) { return step(lock, stream); });
}

}  // namespace

bool Mark::reached() const { return !stream || stream->done >= place; }

uint64_t this_thread() {
    static std::atomic<uint64_t> count{1};
    thread_local uint64_t own = count++;
    return own;
}

void fault(Lock&, const std::string& text) {
    machine.faults.push_back(text);
    if (getenv("FAKE_DRIVER_KERNELS") != nullptr) fprintf(stderr, "[fake driver] %s\n", text.c_str());
}

uint64_t allocate(Lock&, uint64_t size, bool is_pinned) {
    if (!is_pinned) {
        if (size > control.largest_block || control.used + size > control.total) return 0;
        control.used += size;
    }
    const uint64_t whole = (size + kAlignment - 1) / kAlignment * kAlignment;
    void* memory = aligned_alloc(kAlignment, whole);
    if (memory == nullptr) return 0;
    memset(memory, kPoison, whole);
    const auto address = reinterpret_cast<uint64_t>(memory);
    machine.blocks[address] = {size, is_pinned};
    if (machine.kernels.allocated != nullptr && !is_pinned) machine.kernels.allocated(memory, size, 0);
    return address;
}

bool release(Lock& lock, uint64_t address, bool is_pinned) {
    auto found = machine.blocks.find(address);
    if (found == machine.blocks.end() || found->second.pinned != is_pinned) return false;
    const uint64_t size = found->second.size;
    machine.blocks.erase(found);
    if (!is_pinned) control.used -= size;
    if (machine.kernels.freed != nullptr && !is_pinned) machine.kernels.freed(reinterpret_cast<void*>(address));
    memset(reinterpret_cast<void*>(address), kPoison, size);
    machine.freed.emplace_back(address, size);
    uint64_t held = 0;
    for (auto& [at, bytes] : machine.freed) held += bytes;
    while (held > kQuarantine) {
        held -= machine.freed.front().second;
        check_freed(lock, machine.freed.front().first, machine.freed.front().second);
        machine.freed.pop_front();
    }
    return true;
}

bool inside(Lock&, uint64_t address, uint64_t size) {
    auto after = machine.blocks.upper_bound(address);
    if (after == machine.blocks.begin()) return false;
    --after;
    return address + size <= after->first + after->second.size;
}

bool pinned(Lock& lock, const void* address) {
    auto after = machine.blocks.upper_bound(reinterpret_cast<uint64_t>(address));
    return after != machine.blocks.begin() && (--after)->second.pinned && inside(lock, reinterpret_cast<uint64_t>(address), 1);
}

void put(Lock& lock, const std::shared_ptr<Stream>& stream, Operation operation) {
    stream->waiting.push_back(std::move(operation));
    ++stream->started;
    while (!late() && machine.chance() % 2 == 0 && random_step(lock)) {
    }
}

void reach(Lock& lock, const Mark& mark) {
    while (!mark.reached()) {
        const bool ran = late() ? step(lock, mark.stream) : random_step(lock) || step(lock, mark.stream);
        if (!ran && !mark.reached()) machine.changed.wait(lock);
    }
}

void finish(Lock& lock) {
    std::vector<Mark> marks;
    for (auto& [handle, stream] : machine.streams) marks.push_back(mark_of(stream));
    for (const Mark& mark : marks) reach(lock, mark);
}

void reset(Lock& lock) {
    machine.streams.clear();
    machine.events.clear();
    machine.graphs.clear();
    machine.functions.clear();
    machine.shared_limits.clear();
    while (!machine.blocks.empty()) release(lock, machine.blocks.begin()->first, machine.blocks.begin()->second.pinned);
    for (auto& [address, size] : machine.freed) check_freed(lock, address, size);
    machine.freed.clear();
    machine.error = 0;
    control.used = control.copied_up = control.copied_down = control.copied_within = 0;
    control.streams = 0;
    machine.chance.seed(static_cast<uint64_t>(std::max<int64_t>(control.seed, 0)));
}

}  // namespace fake
