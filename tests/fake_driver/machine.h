// A GPU that is not there: memory, streams, events and captures on the host, where a missing wait gives a wrong result.
//
// Work on a stream is queued. It runs only when somebody waits for it, and then no more than what that wait needs, so a
// stream that should have waited for another reads memory that nobody has written. Fresh memory is full of 0xFF:
// not-a-number in every float type, and -1. With a seed, the streams take turns at random instead, so that memory is
// also overwritten before a forgotten reader came to it.
#pragma once

#include <stdint.h>

#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

namespace fake {

// What a test sets and reads, by ctypes: machine.py mirrors it. Errors are CUresult, 0 for none.
struct Control {
    uint64_t total = 0, used = 0, largest_block = 0;  // bytes; no block may be larger than the last
    uint64_t copied_up = 0, copied_down = 0, copied_within = 0;
    int64_t seed = -1;  // of the order in which streams take turns; -1 runs work as late as possible
    int32_t devices = 1, driver_version = 13000, major = 9, minor = 0;
    int32_t init_error = 0, module_error = 0;
    int32_t streams = 0;
};

using Work = std::function<void()>;
using Lock = std::unique_lock<std::mutex>;
struct Stream;

// What an event was last recorded as: reached when `stream` has done `place` operations.
struct Mark {
    std::shared_ptr<Stream> stream;
    uint64_t place = 0;
    bool reached() const;
};

struct Capture {
    int mode = 0;
    uint64_t thread = 0;
    bool invalid = false;
    std::vector<Work> work;
};

struct Operation {
    Work work;
    Mark waits_for;  // in place of work
};

struct Stream {
    std::deque<Operation> waiting;
    uint64_t started = 0, done = 0;
    bool busy = false;  // its first operation runs in some thread
    std::unique_ptr<Capture> capture;
};

struct Event {
    Mark mark;
    bool recorded = false, captured = false;
};

struct Block {
    uint64_t size;
    bool pinned;
};

// The emulated kernels (tests/cuda_emulation/kernels.cpp and watch.cpp).
struct Kernels {
    const char* (*launch)(const char*, const unsigned*, const unsigned*, unsigned, unsigned char*, size_t) = nullptr;
    int (*parameters)(const char*, unsigned*, unsigned*) = nullptr;
    void (*allocated)(void*, size_t, int) = nullptr;  // of the watch over memory; null where nothing is watched
    void (*freed)(void*) = nullptr;
    void (*written)(void*, size_t, int) = nullptr;
};

struct Machine {
    std::mutex mutex;
    std::condition_variable changed;
    std::map<uint64_t, std::shared_ptr<Stream>> streams;  // by handle; handles are never used twice
    std::map<uint64_t, Event> events;
    std::map<uint64_t, std::shared_ptr<std::vector<Work>>> graphs;
    std::map<uint64_t, std::string> functions;   // and modules, which have no name
    std::map<uint64_t, unsigned> shared_limits;  // of functions, in bytes
    std::map<uint64_t, Block> blocks;            // by address
    std::deque<std::pair<uint64_t, uint64_t>> freed;  // addresses and sizes of blocks that nobody may write any more
    std::vector<std::string> faults;
    uint64_t handles = 0x1000;
    int error = 0;  // CUresult that every call gives once work has failed
    std::mt19937_64 chance;
    Kernels kernels;
    std::mutex launching;  // the emulation runs one launch at a time
};

extern Machine machine;
extern Control control;

uint64_t this_thread();
void fault(Lock& lock, const std::string& text);

// Memory
uint64_t allocate(Lock& lock, uint64_t size, bool pinned);  // 0 where there is not enough
bool release(Lock& lock, uint64_t address, bool pinned);
bool inside(Lock& lock, uint64_t address, uint64_t size);
bool pinned(Lock& lock, const void* address);
void reset(Lock& lock);

// Streams
void put(Lock& lock, const std::shared_ptr<Stream>& stream, Operation operation);
void reach(Lock& lock, const Mark& mark);
void finish(Lock& lock);  // everything
inline Mark mark_of(const std::shared_ptr<Stream>& stream) { return {stream, stream->started}; }

}  // namespace fake
