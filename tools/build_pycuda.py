"""Build and install PyCUDA from its sources in a folder of wheels, on an offline host.

    python tools/build_pycuda.py WHEELS SCRATCH [SITE]      # SITE: the folder that packages are installed in

Without cuRAND, with the toolkit of the nvcc that is actually called, and a libcuda.so to link with.
"""

import glob
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile

wheels, folder = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
sources = sorted(wheels.glob("pycuda-*.tar.gz"))
if not sources:
    sys.exit("no pycuda-*.tar.gz among the wheels")
shutil.rmtree(folder, ignore_errors=True)
folder.mkdir(parents=True)
with tarfile.open(sources[-1]) as archive:
    archive.extractall(folder, filter="data")
source = next(folder.glob("pycuda-*"))
roots = [os.environ.get("CUDA_HOME"), "/usr/local/cuda", *sorted(glob.glob("/usr/local/cuda-*"), reverse=True)]
nvcc = shutil.which("nvcc")
roots += [str(pathlib.Path(os.path.realpath(nvcc)).parents[1])] if nvcc else []
root = next((r for r in roots if r and (pathlib.Path(r) / "include" / "cuda.h").is_file()), None)
if root is None:
    sys.exit(f"no cuda.h below any of {roots}")
library = folder / "lib"
library.mkdir()
# Not recursive: below /usr/lib there may be links that lead back to the root.
places = [root + "/lib64/stubs/libcuda.so", *(f"{lib}/libcuda.so.1" for lib in ("/usr/lib*", "/usr/lib*/*", "/lib/*"))]
found = [path for place in [*places, "/usr/local/nvidia/lib*/libcuda.so.1"] for path in sorted(glob.glob(place))]
if not found:
    sys.exit("no libcuda.so.1: is there an NVIDIA driver?")
os.symlink(found[0], library / "libcuda.so")
settings = f"CUDA_ROOT = {root!r}\nCUDA_ENABLE_CURAND = False\nCUDADRV_LIB_DIR = [{str(library)!r}]\n"
(source / "siteconf.py").write_text(settings + 'CUDADRV_LIBNAME = ["cuda"]\n')
environment = {**os.environ, "CUDA_ROOT": root, "PATH": f"{root}/bin:{os.environ['PATH']}"}
command = [sys.executable, "-m", "pip", "install", "--no-index", "--find-links", str(wheels), "--no-build-isolation"]
command += ["--target", sys.argv[3]] if len(sys.argv) > 3 else []
sys.exit(subprocess.run([*command, "--no-deps", str(source)], env=environment).returncode)
