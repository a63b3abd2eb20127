// The kernels, compiled for the CPU, and the functions that tests call through ctypes.
#include VOCABSEG_DEVICE_SOURCE  // device.cu, or another that tests compile

#include <utility>

namespace emulation {

const char* run(void (*entry)(void**), const unsigned* grid, const unsigned* block, unsigned shared_bytes, void** parameters);

namespace {

template <auto Function> struct Entry;
template <class... Parameters, void (*Function)(Parameters...)> struct Entry<Function> {
    // Parameters lie outside of what kernels may touch.
#define UNWATCHED __attribute__((no_sanitize("thread"), noipa))
    UNWATCHED static void call(void** parameters) { call(parameters, std::index_sequence_for<Parameters...>()); }
    template <size_t... I> UNWATCHED static void call(void** parameters, std::index_sequence<I...>) {
        Function(*static_cast<std::remove_reference_t<Parameters>*>(parameters[I])...);
    }
    static constexpr unsigned sizes[] = {static_cast<unsigned>(sizeof(Parameters))..., 0};
    static constexpr unsigned alignments[] = {static_cast<unsigned>(alignof(Parameters))..., 1};
};

struct Kernel {
    const char* name;
    void (*entry)(void**);
    const unsigned *sizes, *alignments;  // of the parameters, in bytes; the sizes end with 0
};

#define KERNEL(name) {#name, &Entry<&name>::call, Entry<&name>::sizes, Entry<&name>::alignments},
const Kernel kernels[] = {
#include "kernel_list.inc"  // KERNEL(name) for every kernel in the sources; library.py writes it
};
#undef KERNEL

const Kernel* find(const char* name) {
    for (const Kernel& kernel : kernels) {
        if (strcmp(kernel.name, name) == 0) return &kernel;
    }
    return nullptr;
}

}  // namespace
}  // namespace emulation

extern "C" {

// As cuLaunchKernel: grid and block are three numbers each, parameters[k] points at the k-th parameter. Runs at once, in
// this thread; one launch at a time. Returns null, or a message that is valid until the next launch.
const char* emulation_launch(const char* name, const unsigned* grid, const unsigned* block, unsigned shared_bytes, void** parameters) {
    const emulation::Kernel* kernel = emulation::find(name);
    return kernel == nullptr ? "no such kernel" : emulation::run(kernel->entry, grid, block, shared_bytes, parameters);
}

// The same with the parameters in one piece, each aligned to its type, as CU_LAUNCH_PARAM_BUFFER_POINTER takes them.
const char* emulation_launch_packed(const char* name, const unsigned* grid, const unsigned* block, unsigned shared_bytes,
                                    unsigned char* data, size_t size) {
    const emulation::Kernel* kernel = emulation::find(name);
    if (kernel == nullptr) return "no such kernel";
    void* parameters[64];
    size_t at = 0;
    for (int k = 0; kernel->sizes[k] != 0; ++k) {
        at = (at + kernel->alignments[k] - 1) / kernel->alignments[k] * kernel->alignments[k];
        parameters[k] = data + at;
        at += kernel->sizes[k];
        if (at > size) return "too few bytes of parameters";
    }
    if (at != size && (at + 7) / 8 * 8 != size) return "too many bytes of parameters";
    return emulation::run(kernel->entry, grid, block, shared_bytes, parameters);
}

// Sizes and alignments in bytes of the kernel's parameters (at most 64); returns how many, or -1 for an unknown kernel.
int emulation_parameters(const char* name, unsigned* sizes, unsigned* alignments) {
    const emulation::Kernel* kernel = emulation::find(name);
    if (kernel == nullptr) return -1;
    int count = 0;
    for (; kernel->sizes[count] != 0; ++count) {
        sizes[count] = kernel->sizes[count];
        alignments[count] = kernel->alignments[count];
    }
    return count;
}

// The name of the kernel of this number, null beyond the last.
const char* emulation_kernel(unsigned number) {
    return number < sizeof emulation::kernels / sizeof emulation::kernels[0] ? emulation::kernels[number].name : nullptr;
}

}
