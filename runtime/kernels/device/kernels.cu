// The kernels for NVIDIA GPUs, one family in each header. Names ending in _f32 or _f16 differ by a data type.
#include "boxes.cuh"
#include "classify.cuh"
#include "compose.cuh"
#include "crops.cuh"
#include "resize.cuh"
