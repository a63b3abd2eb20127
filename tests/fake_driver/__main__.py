"""python -m tests.fake_driver: builds what is missing, and prints the environment in which a process runs over it.

With --onnxruntime, also the ONNX Runtime for GPUs: its matrix products are computed, its own kernels compute nothing.
"""

import shlex
import sys

from tests.fake_driver.build import build_pycuda, environment, fetch_onnxruntime

onnxruntime = "--onnxruntime" in sys.argv[1:]
build_pycuda()
if onnxruntime:
    fetch_onnxruntime()
for name, value in environment(onnxruntime).items():
    print(f"export {name}={shlex.quote(value)}")
