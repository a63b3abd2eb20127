// libcuda.so.1 over the machine that is not there: the driver's rules on contexts, streams, captures and lifetimes.
//
// Which calls a capture forbids: CUDA C++ Programming Guide, "Prohibited and Unhandled Operations", and the driver API's
// cuThreadExchangeStreamCaptureMode. build.py adds a function that fails for each one that PyCUDA names beyond these.
#include <cuda.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "machine.h"

using namespace fake;

namespace {

const auto kPrimary = reinterpret_cast<CUcontext>(0x100);
constexpr unsigned kDefaultShared = 48 * 1024, kMostShared = 227 * 1024;  // bytes of a block on Hopper
thread_local std::vector<CUcontext> contexts;
thread_local int capture_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
bool initialised = false;
int retained = 0;

// Every call needs a context that is current in its thread, and fails once work on the GPU has failed.
CUresult usable(Lock& lock, const char* call) {
    if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
    if (contexts.empty() || retained <= 0) {
        fault(lock, std::string(call) + " without a current context");
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    return static_cast<CUresult>(machine.error);
}

// For calls that no capture sees: they fail, and end the capture.
CUresult uncaptured(Lock&) {
    if (capture_mode == CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_SUCCESS;
    for (auto& [handle, stream] : machine.streams) {
        Capture* capture = stream->capture.get();
        if (capture == nullptr || capture->mode == CU_STREAM_CAPTURE_MODE_RELAXED) continue;
        const bool everywhere = capture->mode == CU_STREAM_CAPTURE_MODE_GLOBAL && capture_mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
        if (capture->thread != this_thread() && !everywhere) continue;
        capture->invalid = true;
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    return CUDA_SUCCESS;
}

#define CALL                               \
    Lock lock(machine.mutex);              \
    if (CUresult wrong = usable(lock, __func__)) return wrong
// Handles and addresses of a machine before this one, which a late destructor may still give back.
#define KNOWN(container, handle, error)                             \
    {                                                               \
        Lock lock(machine.mutex);                                   \
        if (machine.container.count(handle) == 0) return error;     \
    }
#define UNCAPTURED_CALL \
    CALL;               \
    if (CUresult wrong = uncaptured(lock)) return wrong
#define REQUIRE(condition, error) \
    if (!(condition)) return error

template <class Handle> uint64_t number(Handle handle) { return reinterpret_cast<uint64_t>(handle); }
template <class Handle> Handle handle_of(uint64_t number) { return reinterpret_cast<Handle>(number); }

std::shared_ptr<Stream> find(CUstream handle) {
    auto found = machine.streams.find(number(handle));
    return found == machine.streams.end() ? nullptr : found->second;
}

// The default stream is never used: it would wait for others, and they for it.
CUresult enqueue(Lock& lock, CUstream handle, Work work, const char* call) {
    auto stream = find(handle);
    if (stream == nullptr) {
        if (number(handle) <= 2) fault(lock, std::string(call) + " on the default stream");
        return CUDA_ERROR_INVALID_HANDLE;
    }
    if (Capture* capture = stream->capture.get()) {
        REQUIRE(!capture->invalid, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        capture->work.push_back(std::move(work));
        return CUDA_SUCCESS;
    }
    put(lock, stream, {std::move(work), {}});
    return static_cast<CUresult>(machine.error);
}

void fail(const std::string& text, CUresult error) {
    Lock lock(machine.mutex);
    fault(lock, text);
    if (machine.error == 0) machine.error = error;
}

// Copies and fills when their turn comes: what they touch must still be there.
Work touching(CUdeviceptr address, uint64_t size, Work work, bool writes, const char* call) {
    return [=] {
        {
            Lock lock(machine.mutex);
            if (machine.error != 0) return;
            if (!inside(lock, address, size)) {
                lock.unlock();
                return fail(std::string(call) + " of memory that was freed before its turn came", CUDA_ERROR_ILLEGAL_ADDRESS);
            }
        }
        work();
        // Kernels read whole words, whose last bytes may lie beyond an array's end.
        if (writes && machine.kernels.written) machine.kernels.written(reinterpret_cast<void*>(address), (size + 3) / 4 * 4, 1);
    };
}

void* at(CUdeviceptr address) { return reinterpret_cast<void*>(address); }

}  // namespace

extern "C" {

// For tests, see machine.py.
Control* fake_driver_control() { return &control; }

void fake_driver_kernels(const char* library, int watched) {
    Lock lock(machine.mutex);
    Kernels& kernels = machine.kernels = {};
    void* emulation = library == nullptr ? nullptr : dlopen(library, RTLD_NOW | RTLD_LOCAL);
    if (emulation == nullptr) return;
    const auto get = [&](auto& function, const char* name) {
        function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(emulation, name));
    };
    get(kernels.launch, "emulation_launch_packed");
    if (getenv("FAKE_DRIVER_IDLE") != nullptr) {  // kernels compute nothing: for the time that submitting them takes
        kernels.launch = [](const char*, const unsigned*, const unsigned*, unsigned, unsigned char*, size_t) {
            return static_cast<const char*>(nullptr);
        };
    }
    get(kernels.parameters, "emulation_parameters");
    if (watched == 0) return;
    get(kernels.allocated, "emulation_allocated");
    get(kernels.freed, "emulation_freed");
    get(kernels.written, "emulation_written");
}

void fake_driver_reset() {
    Lock lock(machine.mutex);
    contexts.clear();  // PyCUDA leaves the one current that it detaches from
    retained = 0;
    reset(lock);
}

int fake_driver_inside(uint64_t address, uint64_t size) {
    Lock lock(machine.mutex);
    return inside(lock, address, size);
}

// The host has written memory, or (not known) given it up: then it holds what nobody may rely on.
void fake_driver_written(uint64_t address, uint64_t size, int known) {
    if (known == 0) memset(reinterpret_cast<void*>(address), 0xFF, size);
    if (machine.kernels.written != nullptr) machine.kernels.written(reinterpret_cast<void*>(address), (size + 3) / 4 * 4, known);
}

int fake_driver_contexts() { return static_cast<int>(contexts.size()); }  // of this thread
void fake_driver_fail(const char* text) { fail(text, CUDA_ERROR_LAUNCH_FAILED); }
const char* fake_driver_fault(int place) {
    Lock lock(machine.mutex);
    return place < static_cast<int>(machine.faults.size()) ? machine.faults[place].c_str() : nullptr;
}
void fake_driver_forget() {
    Lock lock(machine.mutex);
    machine.faults.clear();
}

// The driver

CUresult cuInit(unsigned) {
    if (const char* kernels = getenv("FAKE_DRIVER_KERNELS")) {
        if (!initialised) fake_driver_kernels(kernels, 0);
        control.total = control.largest_block = 8ull << 30;
    }
    REQUIRE(control.init_error == 0, static_cast<CUresult>(control.init_error));
    initialised = true;
    return CUDA_SUCCESS;
}
CUresult cuDriverGetVersion(int* version) { return *version = control.driver_version, CUDA_SUCCESS; }
CUresult cuGetErrorName(CUresult error, const char** text) {
    static thread_local char name[32];
    snprintf(name, sizeof name, "CUDA_ERROR_%d", static_cast<int>(error));
    return *text = name, CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult error, const char** text) {
    static const std::map<int, const char*> texts = {  // as the driver gives them
        {0, "no error"}, {1, "invalid argument"}, {2, "out of memory"}, {3, "initialization error"},
        {100, "no CUDA-capable device is detected"}, {101, "invalid device ordinal"}, {200, "device kernel image is invalid"},
        {201, "invalid device context"}, {209, "no kernel image is available for execution on the device"},
        {222, "the provided PTX was compiled with an unsupported toolchain."}, {400, "invalid resource handle"},
        {401, "the operation cannot be performed in the present state"}, {500, "named symbol not found"}, {600, "device not ready"},
        {700, "an illegal memory access was encountered"}, {701, "too many resources requested for launch"},
        {716, "misaligned address"}, {717, "operation not supported on global/shared address space"},
        {719, "unspecified launch failure"}, {801, "operation not supported"},
        {900, "operation not permitted when stream is capturing"},
        {901, "operation failed due to a previous error during capture"},
        {905, "dependency created on uncaptured work in another stream"},
        {907, "operation not permitted on an event last recorded in a capturing stream"},
        {908, "attempt to terminate a thread-local capture sequence from another thread"},
    };
    auto found = texts.find(error);
    *text = found == texts.end() ? "unknown error" : found->second;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int* count) { return *count = control.devices, initialised ? CUDA_SUCCESS : CUDA_ERROR_NOT_INITIALIZED; }
CUresult cuDeviceGet(CUdevice* device, int ordinal) {
    REQUIRE(ordinal >= 0 && ordinal < control.devices, CUDA_ERROR_INVALID_DEVICE);
    return *device = ordinal, CUDA_SUCCESS;
}
CUresult cuDeviceGetName(char* name, int size, CUdevice) { return snprintf(name, size, "NVIDIA Emulated 100"), CUDA_SUCCESS; }
CUresult cuDeviceComputeCapability(int* major, int* minor, CUdevice) {
    return *major = control.major, *minor = control.minor, CUDA_SUCCESS;
}
CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice) { return *bytes = control.total, CUDA_SUCCESS; }
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice) {
    static const std::map<int, int> values = {
        {CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 132}, {CU_DEVICE_ATTRIBUTE_WARP_SIZE, 32},
        {CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK, 1024}, {CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR, 2048},
        {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK, kDefaultShared},
        {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, kMostShared}, {CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING, 1},
    };
    auto found = values.find(attribute);
    *value = attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR   ? control.major
             : attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR ? control.minor
             : found == values.end()                                     ? 0
                                                                         : found->second;
    return CUDA_SUCCESS;
}

// Contexts: there is one, the primary one.

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) {
    ++retained;
    return *context = kPrimary, CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice) { return --retained, CUDA_SUCCESS; }
CUresult cuCtxPushCurrent_v2(CUcontext context) {
    REQUIRE(context == kPrimary && retained > 0, CUDA_ERROR_INVALID_CONTEXT);
    return contexts.push_back(context), CUDA_SUCCESS;
}
CUresult cuCtxPopCurrent_v2(CUcontext* context) {
    REQUIRE(!contexts.empty(), CUDA_ERROR_INVALID_CONTEXT);
    if (context != nullptr) *context = contexts.back();
    return contexts.pop_back(), CUDA_SUCCESS;
}
CUresult cuCtxGetCurrent(CUcontext* context) { return *context = contexts.empty() ? nullptr : contexts.back(), CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext context) {
    if (!contexts.empty()) contexts.pop_back();
    if (context != nullptr) contexts.push_back(context);
    return CUDA_SUCCESS;
}
CUresult cuCtxGetDevice(CUdevice* device) { return *device = 0, contexts.empty() ? CUDA_ERROR_INVALID_CONTEXT : CUDA_SUCCESS; }
CUresult cuCtxSynchronize() {
    UNCAPTURED_CALL;
    finish(lock);
    return static_cast<CUresult>(machine.error);
}

#include "memory.inc"
#include "streams.inc"

}
