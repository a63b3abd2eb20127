"""The CUDA kernels' own source, compiled with g++ and run on the CPU: see cuda_emulation.h and library.py."""
