// Fibers, barriers, warp operations, and the launch of a grid.
#include "scheduler.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <memory>
#include <random>
#include <vector>

extern "C" {
uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;
extern unsigned char __start_emulated_shared[] __attribute__((weak, visibility("hidden")));
extern unsigned char __stop_emulated_shared[] __attribute__((weak, visibility("hidden")));
}

#if defined(__x86_64__)
// Saves the registers that a call must keep and the stack pointer, and takes those of another fiber.
extern "C" void emulation_switch(void** save, void* load);
asm(R"(
.text
.hidden emulation_switch
.globl emulation_switch
.type emulation_switch,@function
emulation_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulation_switch,.-emulation_switch
)");
#else
#include <ucontext.h>
#endif

namespace emulation {
namespace {

constexpr size_t kStack = 64 * 1024;
constexpr size_t kSharedLimit = 227 * 1024;  // dynamic shared memory of a block on Hopper

enum class State { kReady, kBarrier, kWarp, kReturned };

struct Fiber {
#if defined(__x86_64__)
    void* stack_pointer;
#else
    ucontext_t context;
#endif
    unsigned char* stack;
    State state;
    uint3 index;
    Operation operation;
    uint32_t mask;
    uint32_t given[12], result[4];
};

struct Launch {
    void (*entry)(void**) = nullptr;
    void** parameters = nullptr;
    std::vector<Fiber> fibers;
    std::vector<uint32_t> warp_barriers;
    unsigned threads = 0, returned = 0, waiting = 0;
    uint32_t block = 0, barriers = 0;
    Fiber* current = nullptr;
    std::vector<unsigned char> shared;
    std::vector<std::unique_ptr<unsigned char[]>> stacks;
    bool failed = false;
    char message[512] = "";
#if defined(__x86_64__)
    void* home;
#else
    ucontext_t home;
#endif
};

Launch launch;
std::mt19937_64 random_numbers;
bool shuffled = false;

void to_fiber(Fiber& fiber) {
    launch.current = &fiber;
    threadIdx = fiber.index;
#if defined(__x86_64__)
    emulation_switch(&launch.home, fiber.stack_pointer);
#else
    swapcontext(&launch.home, &fiber.context);
#endif
    launch.current = nullptr;
}

void to_home() {
#if defined(__x86_64__)
    emulation_switch(&launch.current->stack_pointer, launch.home);
#else
    swapcontext(&launch.current->context, &launch.home);
#endif
}

void run_thread() {
    launch.entry(launch.parameters);
    launch.current->state = State::kReturned;
    ++launch.returned;
    to_home();
    abort();  // a thread that has returned is never run again
}

void prepare(Fiber& fiber, unsigned number) {
    if (launch.stacks.size() <= number) launch.stacks.emplace_back(new unsigned char[kStack]);
    fiber.stack = launch.stacks[number].get();
    fiber.state = State::kReady;
    fiber.index = {number % blockDim.x, number / blockDim.x % blockDim.y, number / (blockDim.x * blockDim.y)};
#if defined(__x86_64__)
    const uintptr_t top = (reinterpret_cast<uintptr_t>(fiber.stack) + kStack) & ~static_cast<uintptr_t>(15);
    void** stack = reinterpret_cast<void**>(top);
    *--stack = nullptr;  // a function begins with the stack 8 bytes off a multiple of 16
    *--stack = reinterpret_cast<void*>(&run_thread);
    for (int saved = 0; saved < 6; ++saved) *--stack = nullptr;
    fiber.stack_pointer = stack;
#else
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, &run_thread, 0);
#endif
}

float half_at(const uint32_t* words, int index) {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(words[index / 2] >> (16 * (index % 2)))));
}

// Lane 4 g + t holds of A the rows g, g + 8 and the columns 2 t, 2 t + 1 (and 8 further, with 16 columns), of B the same
// rows' numbers as columns g and rows 2 t, ...; of C and D the rows g, g + 8 and the columns 2 t, 2 t + 1.
void multiply(Fiber* lanes, int depth) {
    const int a_words = depth / 4, b_words = depth / 8;
    float a[16][16], b[16][8];
    for (int lane = 0; lane < 32; ++lane) {
        const int g = lane / 4, t = lane % 4;
        for (int half = 0; half < 2 * a_words; ++half) {
            const int word = half / 2;
            a[g + 8 * (word % 2)][2 * t + half % 2 + 8 * (word / 2)] = half_at(lanes[lane].given, half);
        }
        for (int half = 0; half < 2 * b_words; ++half) {
            b[2 * t + half % 2 + 8 * (half / 2)][g] = half_at(lanes[lane].given + a_words, half);
        }
    }
    for (int lane = 0; lane < 32; ++lane) {
        for (int k = 0; k < 4; ++k) {
            const int row = lane / 4 + 8 * (k / 2), column = 2 * (lane % 4) + k % 2;
            float sum = float_of(lanes[lane].given[a_words + b_words + k]);
            for (int d = 0; d < depth; ++d) sum += a[row][d] * b[d][column];
            lanes[lane].result[k] = bits_of(sum);
        }
    }
}

uint64_t completed[6];  // operations of warps so far, by kind

// Completes the operation that `lanes` wait in.
void complete(Fiber* lanes, Operation operation, uint32_t mask) {
    ++completed[static_cast<int>(operation)];
    uint32_t ballot = 0;
    for (int lane = 0; lane < 32; ++lane) {
        if (((mask >> lane) & 1) != 0 && operation == Operation::kBallot) ballot |= lanes[lane].given[0] << lane;
    }
    if (operation == Operation::kMma16) multiply(lanes, 16);
    if (operation == Operation::kMma8) multiply(lanes, 8);
    for (int lane = 0; lane < 32; ++lane) {
        if (((mask >> lane) & 1) == 0) continue;
        if (operation == Operation::kBallot) lanes[lane].result[0] = ballot;
        if (operation == Operation::kShuffle) {
            const uint32_t source = lanes[lane].given[1] & 31;
            if (((mask >> source) & 1) == 0) fail("lane %d asks for the value of lane %u, which is not in %#x", lane, source, mask);
            lanes[lane].result[0] = lanes[source].given[0];
        }
        lanes[lane].state = State::kReady;
    }
}

void run_block() {
    launch.returned = launch.waiting = launch.barriers = 0;
    std::fill(launch.warp_barriers.begin(), launch.warp_barriers.end(), 0);
    std::fill(launch.shared.begin(), launch.shared.end(), 0xff);  // NaN, and -1
    std::fill(__start_emulated_shared, __stop_emulated_shared, 0xff);
    watch_block();
    std::vector<unsigned> order(launch.threads);
    for (unsigned k = 0; k < launch.threads; ++k) {
        order[k] = k;
        prepare(launch.fibers[k], k);
    }
    while (launch.returned < launch.threads && !launch.failed) {
        if (shuffled) std::shuffle(order.begin(), order.end(), random_numbers);
        bool moved = false;
        for (unsigned k : order) {
            if (launch.fibers[k].state != State::kReady) continue;
            moved = true;
            to_fiber(launch.fibers[k]);
            if (launch.failed) return;
        }
        if (!moved) {
            snprintf(launch.message, sizeof launch.message,
                     "block (%u, %u, %u): %u of %u threads wait at a barrier, %u have returned, the others wait in a warp "
                     "operation that not all lanes of its mask reach",
                     blockIdx.x, blockIdx.y, blockIdx.z, launch.waiting, launch.threads, launch.returned);
            launch.failed = true;
        }
    }
}

}  // namespace

Where where() {
    const auto thread = static_cast<uint32_t>(launch.current - launch.fibers.data());
    return {launch.block, thread, launch.barriers, launch.warp_barriers[thread / 32]};
}
bool running() { return launch.current != nullptr; }
bool on_a_stack(const void* address) {
    const auto at = static_cast<const unsigned char*>(address);
    const unsigned char* own = launch.current->stack;
    return at >= own && at < own + kStack;
}
bool in_shared(const void* address, size_t bytes) {
    const auto at = static_cast<const unsigned char*>(address);
    const unsigned char* dynamic = launch.shared.data();
    return (at >= dynamic && at + bytes <= dynamic + launch.shared.size()) ||
           (at >= __start_emulated_shared && at + bytes <= __stop_emulated_shared);
}

void fail(const char* format, ...) {
    const int begun = snprintf(launch.message, sizeof launch.message, "block (%u, %u, %u), thread (%u, %u, %u): ", blockIdx.x,
                               blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(launch.message + begun, sizeof launch.message - begun, format, arguments);
    va_end(arguments);
    launch.failed = true;
    to_home();
    abort();
}

unsigned char* dynamic_shared() { return launch.shared.data(); }

void barrier() {
    if (++launch.waiting < launch.threads) {
        launch.current->state = State::kBarrier;
        to_home();
        return;
    }
    launch.waiting = 0;
    ++launch.barriers;
    for (Fiber& fiber : launch.fibers) fiber.state = State::kReady;
    to_home();
}

void exchange(Operation operation, uint32_t mask, const uint32_t* given, int words, uint32_t* result, int results) {
    Fiber& own = *launch.current;
    const auto number = static_cast<unsigned>(launch.current - launch.fibers.data());
    if (((mask >> (number % 32)) & 1) == 0) fail("a lane that is not in the mask %#x takes part", mask);
    own.operation = operation;
    own.mask = mask;
    std::copy_n(given, words, own.given);
    own.state = State::kWarp;
    Fiber* lanes = launch.fibers.data() + number / 32 * 32;
    bool all = true;
    for (unsigned lane = 0; lane < 32; ++lane) {
        if (((mask >> lane) & 1) == 0) continue;
        if (number / 32 * 32 + lane >= launch.threads) fail("the mask %#x names lanes that the block does not have", mask);
        if (lanes[lane].state == State::kReturned) fail("lane %u of the mask %#x has returned", lane, mask);
        all = all && lanes[lane].state == State::kWarp && lanes[lane].operation == operation && lanes[lane].mask == mask;
    }
    if (all) {
        complete(lanes, operation, mask);
        if (mask == 0xffffffffu) ++launch.warp_barriers[number / 32];
    }
    to_home();
    std::copy_n(own.result, results, result);
}

uint32_t atomic(void* address, uint32_t operand, uint32_t (*combine)(uint32_t, uint32_t)) {
    watch_atomic(address, 4);
    uint32_t old;
    memcpy(&old, address, 4);
    const uint32_t next = combine(old, operand);
    memcpy(address, &next, 4);
    return old;
}

// Returns nullptr, or what went wrong.
const char* run(void (*entry)(void**), const unsigned* grid, const unsigned* block, unsigned shared_bytes, void** parameters) {
    launch.failed = false;
    launch.message[0] = 0;
    const uint64_t threads = static_cast<uint64_t>(block[0]) * block[1] * block[2];
    const uint64_t blocks = static_cast<uint64_t>(grid[0]) * grid[1] * grid[2];
    if (threads == 0 || threads > 1024 || block[2] > 64 || blocks == 0 || grid[0] > 0x7fffffffu || grid[1] > 65535 || grid[2] > 65535) {
        snprintf(launch.message, sizeof launch.message, "a grid of (%u, %u, %u) blocks of (%u, %u, %u) threads cannot be launched",
                 grid[0], grid[1], grid[2], block[0], block[1], block[2]);
        return launch.message;
    }
    if (shared_bytes > kSharedLimit) {
        snprintf(launch.message, sizeof launch.message, "%u bytes of dynamic shared memory, there are %zu", shared_bytes, kSharedLimit);
        return launch.message;
    }
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    launch.entry = entry;
    launch.parameters = parameters;
    launch.threads = static_cast<unsigned>(threads);
    launch.fibers.resize(threads);
    launch.warp_barriers.resize((threads + 31) / 32);
    launch.shared.resize(shared_bytes);
    watch_launch();
    std::vector<uint32_t> order(blocks);
    for (uint32_t k = 0; k < blocks; ++k) order[k] = k;
    if (shuffled) std::shuffle(order.begin(), order.end(), random_numbers);
    launch.block = 0;
    for (uint32_t number : order) {
        ++launch.block;
        blockIdx = {number % grid[0], number / grid[0] % grid[1], number / (grid[0] * grid[1])};
        run_block();
        if (launch.failed) return launch.message;
    }
    return nullptr;
}

void choose_order(uint64_t seed) {
    shuffled = seed != 0;
    random_numbers.seed(seed);
}

extern "C" uint64_t emulation_completed(int operation) { return completed[operation]; }

}  // namespace emulation
