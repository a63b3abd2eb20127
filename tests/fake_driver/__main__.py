"""python -m tests.fake_driver: builds what is missing, and prints the environment in which a process runs over it.

With --onnxruntime, also the ONNX Runtime for GPUs, whose own kernels then compute nothing.
"""

import os
import shlex
import sys

from tests.cuda_emulation.library import emulation
from tests.fake_driver.build import build_fakes, build_pycuda, fetch_onnxruntime
from tests.fake_driver.machine import ENVIRONMENT

packages = [build_pycuda(), *([fetch_onnxruntime()] if "--onnxruntime" in sys.argv[1:] else [])]
for name, first in {"LD_LIBRARY_PATH": [build_fakes()], "PYTHONPATH": packages}.items():
    paths = [*map(str, first), os.environ.get(name, "")]
    print(f"export {name}={shlex.quote(os.pathsep.join(filter(None, paths)))}")
print(f"export {ENVIRONMENT}={shlex.quote(emulation().library._name)}")
