"""NVIDIA's driver with no GPU behind it, for the genuine PyCUDA and ONNX Runtime: machine.h, machine.py, build.py."""
