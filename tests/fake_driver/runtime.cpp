// libcudart.so.13 as ONNX Runtime uses it, over the fake driver, so that both police the same streams and memory.
//
// ONNX Runtime's own kernels are machine code for GPUs: they take their turn on the stream and compute nothing.
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <string.h>

namespace {

thread_local cudaError_t last = cudaSuccess;

cudaError_t told(CUresult result) {
    if (result != CUDA_SUCCESS) last = static_cast<cudaError_t>(result);
    return static_cast<cudaError_t>(result);
}

// The runtime makes the primary context current where none is.
void context() {
    CUcontext current = nullptr;
    cuInit(0);
    cuCtxGetCurrent(&current);
    if (current != nullptr) return;
    static CUcontext primary = [] {
        CUcontext made = nullptr;
        cuDevicePrimaryCtxRetain(&made, 0);
        return made;
    }();
    cuCtxPushCurrent_v2(primary);
}

// What the default stream is for is done on a stream of its own, and waited for.
CUstream own_stream() {
    static CUstream stream = [] {
        context();
        CUstream made = nullptr;
        cuStreamCreate(&made, 0);
        return made;
    }();
    return stream;
}
CUdeviceptr device(const void* address) { return reinterpret_cast<CUdeviceptr>(address); }

CUresult copy(void* target, const void* source, size_t size, cudaMemcpyKind kind, CUstream stream) {
    switch (kind) {
        case cudaMemcpyHostToDevice: return cuMemcpyHtoDAsync_v2(device(target), source, size, stream);
        case cudaMemcpyDeviceToHost: return cuMemcpyDtoHAsync_v2(target, device(source), size, stream);
        case cudaMemcpyDeviceToDevice: return cuMemcpyDtoDAsync_v2(device(target), device(source), size, stream);
        default: return CUDA_ERROR_NOT_SUPPORTED;
    }
}
void CUDA_CB nothing(void*) {}
cudaError_t kernel(cudaStream_t stream) {
    context();
    return told(cuLaunchHostFunc(stream == nullptr ? own_stream() : stream, nothing, nullptr));
}

}  // namespace

#define OVER(name, parameters, call)      \
    cudaError_t CUDARTAPI name parameters { \
        context();                        \
        return told(call);                \
    }
#define NOTHING(name, parameters, result) \
    cudaError_t CUDARTAPI name parameters { return result; }

extern "C" {

// Devices
OVER(cudaGetDeviceCount, (int* count), cuDeviceGetCount(count))
NOTHING(cudaGetDevice, (int* device), (*device = 0, cudaSuccess))
NOTHING(cudaSetDevice, (int), (context(), cudaSuccess))
OVER(cudaDriverGetVersion, (int* version), cuDriverGetVersion(version))
NOTHING(cudaRuntimeGetVersion, (int* version), (*version = CUDART_VERSION, cudaSuccess))
OVER(cudaDeviceGetAttribute, (int* value, cudaDeviceAttr attribute, int), cuDeviceGetAttribute(value, static_cast<CUdevice_attribute>(attribute), 0))
OVER(cudaDeviceSynchronize, (), cuCtxSynchronize())
cudaError_t CUDARTAPI cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
    context();
    memset(properties, 0, sizeof *properties);
    cuDeviceGetName(properties->name, sizeof properties->name, 0);
    cuDeviceGetAttribute(&properties->major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 0);
    cuDeviceGetAttribute(&properties->minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, 0);
    cuDeviceTotalMem_v2(&properties->totalGlobalMem, 0);
    properties->multiProcessorCount = 132;
    properties->warpSize = 32;
    properties->maxThreadsPerBlock = properties->maxThreadsDim[0] = properties->maxThreadsDim[1] = 1024;
    properties->maxThreadsDim[2] = 64;
    properties->maxThreadsPerMultiProcessor = 2048;
    properties->sharedMemPerBlock = 48 << 10;
    properties->sharedMemPerBlockOptin = 227 << 10;
    properties->regsPerBlock = properties->regsPerMultiprocessor = 65536;
    properties->maxGridSize[0] = 0x7fffffff;
    properties->maxGridSize[1] = properties->maxGridSize[2] = 65535;
    return cudaSuccess;
}

// Errors
cudaError_t CUDARTAPI cudaGetLastError() {
    const cudaError_t error = last;
    last = cudaSuccess;
    return error;
}
cudaError_t CUDARTAPI cudaPeekAtLastError() { return last; }
const char* CUDARTAPI cudaGetErrorName(cudaError_t error) {
    const char* text = nullptr;
    return cuGetErrorName(static_cast<CUresult>(error), &text), text;
}
const char* CUDARTAPI cudaGetErrorString(cudaError_t error) {
    const char* text = nullptr;
    return cuGetErrorString(static_cast<CUresult>(error), &text), text;
}

// Memory
OVER(cudaMalloc, (void** memory, size_t size), cuMemAlloc_v2(reinterpret_cast<CUdeviceptr*>(memory), size))
OVER(cudaFree, (void* memory), memory == nullptr ? CUDA_SUCCESS : cuMemFree_v2(device(memory)))
OVER(cudaHostAlloc, (void** memory, size_t size, unsigned flags), cuMemHostAlloc(memory, size, flags))
OVER(cudaMallocHost, (void** memory, size_t size), cuMemHostAlloc(memory, size, 0))
OVER(cudaFreeHost, (void* memory), memory == nullptr ? CUDA_SUCCESS : cuMemFreeHost(memory))
OVER(cudaMemGetInfo, (size_t* free, size_t* total), cuMemGetInfo_v2(free, total))
OVER(cudaMemcpyAsync, (void* target, const void* source, size_t size, cudaMemcpyKind kind, cudaStream_t stream),
     copy(target, source, size, kind, stream == nullptr ? own_stream() : stream))
cudaError_t CUDARTAPI cudaMemcpy(void* target, const void* source, size_t size, cudaMemcpyKind kind) {
    context();
    if (CUresult wrong = copy(target, source, size, kind, own_stream())) return told(wrong);
    return told(cuStreamSynchronize(own_stream()));
}
OVER(cudaMemsetAsync, (void* target, int byte, size_t size, cudaStream_t stream),
     cuMemsetD8Async(device(target), static_cast<unsigned char>(byte), size, stream == nullptr ? own_stream() : stream))
cudaError_t CUDARTAPI cudaMemset(void* target, int byte, size_t size) {
    context();
    if (CUresult wrong = cuMemsetD8Async(device(target), static_cast<unsigned char>(byte), size, own_stream())) return told(wrong);
    return told(cuStreamSynchronize(own_stream()));
}
cudaError_t CUDARTAPI cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* address) {
    memset(attributes, 0, sizeof *attributes);
    attributes->type = cudaMemoryTypeDevice;
    attributes->devicePointer = const_cast<void*>(address);
    return cudaSuccess;
}

// Streams, events and captures
OVER(cudaStreamCreate, (cudaStream_t* stream), cuStreamCreate(stream, 0))
OVER(cudaStreamCreateWithFlags, (cudaStream_t* stream, unsigned flags), cuStreamCreate(stream, flags))
OVER(cudaStreamDestroy, (cudaStream_t stream), cuStreamDestroy_v2(stream))
OVER(cudaStreamSynchronize, (cudaStream_t stream), cuStreamSynchronize(stream == nullptr ? own_stream() : stream))
OVER(cudaStreamWaitEvent, (cudaStream_t stream, cudaEvent_t event, unsigned), cuStreamWaitEvent(stream, event, 0))
OVER(cudaStreamBeginCapture, (cudaStream_t stream, cudaStreamCaptureMode mode),
     cuStreamBeginCapture_v2(stream, static_cast<CUstreamCaptureMode>(mode)))
OVER(cudaStreamEndCapture, (cudaStream_t stream, cudaGraph_t* graph), cuStreamEndCapture(stream, graph))
OVER(cudaStreamIsCapturing, (cudaStream_t stream, cudaStreamCaptureStatus* status),
     stream == nullptr ? (*status = cudaStreamCaptureStatusNone, CUDA_SUCCESS)
                       : cuStreamIsCapturing(stream, reinterpret_cast<CUstreamCaptureStatus*>(status)))
OVER(cudaGraphInstantiate, (cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long flags),
     cuGraphInstantiateWithFlags(executable, graph, flags))
OVER(cudaGraphLaunch, (cudaGraphExec_t executable, cudaStream_t stream), cuGraphLaunch(executable, stream))
OVER(cudaGraphDestroy, (cudaGraph_t graph), cuGraphDestroy(graph))
OVER(cudaGraphExecDestroy, (cudaGraphExec_t executable), cuGraphExecDestroy(executable))
OVER(cudaEventCreate, (cudaEvent_t* event), cuEventCreate(event, 0))
OVER(cudaEventCreateWithFlags, (cudaEvent_t* event, unsigned flags), cuEventCreate(event, flags))
OVER(cudaEventDestroy, (cudaEvent_t event), cuEventDestroy_v2(event))
OVER(cudaEventRecord, (cudaEvent_t event, cudaStream_t stream), cuEventRecord(event, stream == nullptr ? own_stream() : stream))
OVER(cudaEventRecordWithFlags, (cudaEvent_t event, cudaStream_t stream, unsigned), cuEventRecord(event, stream == nullptr ? own_stream() : stream))
OVER(cudaEventSynchronize, (cudaEvent_t event), cuEventSynchronize(event))
OVER(cudaLaunchHostFunc, (cudaStream_t stream, cudaHostFn_t function, void* data), cuLaunchHostFunc(stream, function, data))

// Kernels
NOTHING(cudaLaunchKernel, (const void*, dim3, dim3, void**, size_t, cudaStream_t stream), kernel(stream))
NOTHING(__cudaLaunchKernel, (cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t stream), kernel(stream))
NOTHING(cudaLaunchKernelExC, (const cudaLaunchConfig_t* config, const void*, void**), kernel(config->stream))
NOTHING(cudaLaunchCooperativeKernel, (const void*, dim3, dim3, void**, size_t, cudaStream_t stream), kernel(stream))
NOTHING(cudaFuncSetAttribute, (const void*, cudaFuncAttribute, int), cudaSuccess)
cudaError_t CUDARTAPI cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
    memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = 1024;
    attributes->numRegs = 32;
    attributes->binaryVersion = attributes->ptxVersion = 90;
    return cudaSuccess;
}
NOTHING(cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags, (int* blocks, const void*, int, size_t, unsigned), (*blocks = 2, cudaSuccess))
NOTHING(__cudaGetKernel, (cudaKernel_t* kernel, const void* function), (*kernel = (cudaKernel_t)function, cudaSuccess))
void** CUDARTAPI __cudaRegisterFatBinary(void*) {
    static void* handle[4];
    return handle;
}
void CUDARTAPI __cudaRegisterFatBinaryEnd(void**) {}
void CUDARTAPI __cudaUnregisterFatBinary(void**) {}
void CUDARTAPI __cudaRegisterFunction(void**, const char*, char*, const char*, int, uint3*, uint3*, dim3*, dim3*, int*) {}
void CUDARTAPI __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
namespace {
struct Configuration {
    dim3 grid, block;
    size_t shared;
    void* stream;
};
thread_local Configuration configuration;
}
unsigned CUDARTAPI __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void* stream) {
    configuration = {grid, block, shared, stream};
    return 0;
}
cudaError_t CUDARTAPI __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
    *grid = configuration.grid, *block = configuration.block, *shared = configuration.shared;
    *static_cast<void**>(stream) = configuration.stream;
    return cudaSuccess;
}
cudaError_t CUDARTAPI cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long,
                                                       cudaDriverEntryPointQueryResult* found) {
    *function = dlsym(RTLD_DEFAULT, name);
    if (found != nullptr) *found = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}

}
