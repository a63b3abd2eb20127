// libcublasLt.so.13, libcurand.so.10 and libcudnn.so.9: handles that ONNX Runtime makes when it opens a session.
#include <stdlib.h>

extern "C" {
int cublasLtCreate(void** handle) { return *handle = calloc(1, 64), 0; }
int cublasLtDestroy(void* handle) { return free(handle), 0; }
int cudnnCreate(void** handle) { return *handle = calloc(1, 64), 0; }
int cudnnDestroy(void* handle) { return free(handle), 0; }
int cudnnSetStream(void*, void*) { return 0; }
size_t cudnnGetVersion() { return 92400; }
size_t cudnnGetCudartVersion() { return 13000; }
const char* cudnnGetErrorString(int) { return "what this stand-in of cuDNN does not do"; }
}
