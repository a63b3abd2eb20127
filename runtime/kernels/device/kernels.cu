// The kernels for NVIDIA GPUs, one family per header. Names ending in _f32 or _f16 differ in a data type.
#include "boxes.cuh"
#include "classify.cuh"
#include "compose.cuh"
#include "crops.cuh"
#include "patches.cuh"
#include "resize.cuh"
#include "sharing.cuh"
#include "usable.cuh"
