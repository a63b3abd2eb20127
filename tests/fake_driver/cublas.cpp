// libcublas.so.13: the matrix products that ONNX Runtime asks for, as plain loops on the stream of the handle.
//
// Matrices are column by column, as in Fortran; types are those of cudaDataType_t: 0 float, 2 half.
#include <cuda.h>
#include <stdint.h>
#include <string.h>

#include <functional>

namespace {

constexpr int kSuccess = 0, kNotSupported = 15;

struct Handle {
    CUstream stream = nullptr;
    int math_mode = 0;
};

struct Matrix {
    void* data;
    int type;
    int64_t leading, stride;  // elements from a column to the next, and from a matrix of the batch to the next
    float get(int64_t batch, int64_t row, int64_t column) const {
        const int64_t at = batch * stride + column * leading + row;
        return type == 0 ? static_cast<float*>(data)[at] : static_cast<float>(static_cast<_Float16*>(data)[at]);
    }
    void set(int64_t batch, int64_t row, int64_t column, float value) const {
        const int64_t at = batch * stride + column * leading + row;
        if (type == 0) static_cast<float*>(data)[at] = value;
        else static_cast<_Float16*>(data)[at] = static_cast<_Float16>(value);
    }
};

// Graphs may run work again, so it is never deleted.
void CUDA_CB run(void* work) { (*static_cast<std::function<void()>*>(work))(); }

int product(void* handle, int transpose_a, int transpose_b, int m, int n, int k, float alpha, Matrix a, Matrix b, float beta, Matrix c,
            int batch) {
    for (const Matrix& each : {a, b, c}) {
        if (each.type != 0 && each.type != 2) return kNotSupported;
    }
    auto work = new std::function<void()>([=] {
        for (int64_t each = 0; each < batch; ++each) {
            for (int64_t column = 0; column < n; ++column) {
                for (int64_t row = 0; row < m; ++row) {
                    float sum = 0;
                    for (int64_t i = 0; i < k; ++i) {
                        const float left = transpose_a != 0 ? a.get(each, i, row) : a.get(each, row, i);
                        sum += left * (transpose_b != 0 ? b.get(each, column, i) : b.get(each, i, column));
                    }
                    c.set(each, row, column, alpha * sum + (beta == 0 ? 0 : beta * c.get(each, row, column)));
                }
            }
        }
    });
    return cuLaunchHostFunc(static_cast<Handle*>(handle)->stream, run, work) == CUDA_SUCCESS ? kSuccess : kNotSupported;
}

// Factors are of the type of the products' sums: float for all but CUBLAS_COMPUTE_16F (64).
float factor(const void* value, int compute) {
    return compute == 64 ? static_cast<float>(*static_cast<const _Float16*>(value)) : *static_cast<const float*>(value);
}
void* writable(const void* data) { return const_cast<void*>(data); }

}  // namespace

extern "C" {

int cublasCreate_v2(void** handle) { return *handle = new Handle, kSuccess; }
int cublasDestroy_v2(void* handle) { return delete static_cast<Handle*>(handle), kSuccess; }
int cublasSetStream_v2(void* handle, CUstream stream) { return static_cast<Handle*>(handle)->stream = stream, kSuccess; }
int cublasSetMathMode(void* handle, int mode) { return static_cast<Handle*>(handle)->math_mode = mode, kSuccess; }
int cublasGetMathMode(void* handle, int* mode) { return *mode = static_cast<Handle*>(handle)->math_mode, kSuccess; }
const char* cublasGetStatusName(int) { return "CUBLAS_STATUS"; }
const char* cublasGetStatusString(int) { return "what this stand-in of cuBLAS does not do"; }

int cublasGemmStridedBatchedEx(void* handle, int transpose_a, int transpose_b, int m, int n, int k, const void* alpha, const void* a,
                               int a_type, int lda, long long a_stride, const void* b, int b_type, int ldb, long long b_stride,
                               const void* beta, void* c, int c_type, int ldc, long long c_stride, int batch, int compute, int) {
    return product(handle, transpose_a, transpose_b, m, n, k, factor(alpha, compute), {writable(a), a_type, lda, a_stride},
                   {writable(b), b_type, ldb, b_stride}, factor(beta, compute), {c, c_type, ldc, c_stride}, batch);
}
int cublasGemmEx(void* handle, int transpose_a, int transpose_b, int m, int n, int k, const void* alpha, const void* a, int a_type,
                 int lda, const void* b, int b_type, int ldb, const void* beta, void* c, int c_type, int ldc, int compute, int) {
    return cublasGemmStridedBatchedEx(handle, transpose_a, transpose_b, m, n, k, alpha, a, a_type, lda, 0, b, b_type, ldb, 0, beta, c,
                                      c_type, ldc, 0, 1, compute, 0);
}
int cublasSgemmStridedBatched(void* handle, int transpose_a, int transpose_b, int m, int n, int k, const float* alpha, const float* a,
                              int lda, long long a_stride, const float* b, int ldb, long long b_stride, const float* beta, float* c,
                              int ldc, long long c_stride, int batch) {
    return cublasGemmStridedBatchedEx(handle, transpose_a, transpose_b, m, n, k, alpha, a, 0, lda, a_stride, b, 0, ldb, b_stride, beta,
                                      c, 0, ldc, c_stride, batch, 68, 0);
}
int cublasSgemm_v2(void* handle, int transpose_a, int transpose_b, int m, int n, int k, const float* alpha, const float* a, int lda,
                   const float* b, int ldb, const float* beta, float* c, int ldc) {
    return cublasSgemmStridedBatched(handle, transpose_a, transpose_b, m, n, k, alpha, a, lda, 0, b, ldb, 0, beta, c, ldc, 0, 1);
}

}
