// The kernels, compiled for the CPU, and the functions that tests call through ctypes.
#include "device.cu"

#include <utility>

namespace emulation {

const char* run(void (*entry)(void**), const unsigned* grid, const unsigned* block, unsigned shared_bytes, void** parameters);

namespace {

template <auto Function> struct Entry;
template <class... Parameters, void (*Function)(Parameters...)> struct Entry<Function> {
    static void call(void** parameters) { call(parameters, std::index_sequence_for<Parameters...>()); }
    // Parameters lie outside of what kernels may touch.
    template <size_t... I>
    __attribute__((no_sanitize("thread"))) static void call(void** parameters, std::index_sequence<I...>) {
        Function(*static_cast<std::remove_reference_t<Parameters>*>(parameters[I])...);
    }
    static int sizes(unsigned* out) {
        unsigned own[] = {static_cast<unsigned>(sizeof(Parameters))..., 0};
        for (size_t k = 0; k < sizeof...(Parameters); ++k) out[k] = own[k];
        return sizeof...(Parameters);
    }
};

struct Kernel {
    const char* name;
    void (*entry)(void**);
    int (*sizes)(unsigned*);
};

#define KERNEL(name) {#name, &Entry<&name>::call, &Entry<&name>::sizes},
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

// Sizes in bytes of the kernel's parameters (at most 64); returns how many, or -1 for an unknown kernel.
int emulation_parameters(const char* name, unsigned* sizes) {
    const emulation::Kernel* kernel = emulation::find(name);
    return kernel == nullptr ? -1 : kernel->sizes(sizes);
}

// The name of the kernel of this number, null beyond the last.
const char* emulation_kernel(unsigned number) {
    return number < sizeof emulation::kernels / sizeof emulation::kernels[0] ? emulation::kernels[number].name : nullptr;
}

}
