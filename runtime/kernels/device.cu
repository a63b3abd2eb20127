// The kernels for NVIDIA GPUs, one family in each header. Names ending in _f32 or _f16 differ by a data type.
#include "device_boxes.cuh"
#include "device_classify.cuh"
#include "device_compose.cuh"
#include "device_crops.cuh"
#include "device_resize.cuh"
