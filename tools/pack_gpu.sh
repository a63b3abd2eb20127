#!/usr/bin/env bash
# Makes what a bare offline GPU host needs for tools/gpu_host.py, in files of at most 60 MB.
#
#     tools/pack_gpu.sh FOLDER [WHEEL ...]
#
# 1-host.tar.xz         pure wheels and small ones, and PyCUDA: its wheel if one is given, else its source
# 2-onnxruntime.tar.xz  ONNX Runtime for CUDA, with the code of one GPU architecture only
# 3-NAME.tar.xz         TensorRT (tensorrt) or TensorRT for RTX (tensorrt-rtx), from the wheels that are given
#
# A file above 60 MB is cut into NAME.00, NAME.01, ...; gpu_host.py joins them. Needs bash, pip, python3, xz and the
# network. The host has Python 3.12 (PYTHON=3.11 for another), torch for CUDA and nvcc; CAPABILITY=80 packs for another
# GPU than sm_90. The project itself is carried as the checkout that it is.
set -euo pipefail
tools=$(cd "$(dirname "$0")" && pwd)
folder=${1:?give the folder for the parts}
shift
python=${PYTHON:-3.12} capability=${CAPABILITY:-90} largest=60000000
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# fetch FOLDER PACKAGE...: wheels for the host
fetch() {
    pip download -q --dest "$1" --no-deps --python-version "$python" --implementation cp --only-binary=:all: \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux2014_x86_64 \
        --platform manylinux_2_17_x86_64 --platform manylinux_2_24_x86_64 --platform any "${@:2}"
}

# pack FOLDER NAME LEVEL: NAME.tar.xz of what the folder holds, in pieces if it is too large
pack() {
    rm -f "$folder/$2.tar.xz"*
    tar -C "$1" -c . | xz -T0 "-$3" > "$scratch/$2.tar.xz"
    if [ "$(stat -c %s "$scratch/$2.tar.xz")" -gt $largest ]; then
        split --bytes $largest --numeric-suffixes --suffix-length 2 "$scratch/$2.tar.xz" "$folder/$2.tar.xz."
    else
        mv "$scratch/$2.tar.xz" "$folder/"
    fi
    rm -rf "$1" "$scratch/$2.tar.xz"
}

# unpack_wheels FOLDER WHEEL...: their packages, ready to import
unpack_wheels() {
    mkdir -p "$1"
    for wheel in "${@:2}"; do
        python3 -m zipfile -e "$wheel" "$1"
    done
}

mkdir -p "$scratch/host/wheels" "$scratch/wheels"
pycuda="" tensorrt=() rtx=()
for wheel in "$@"; do
    [ -f "$wheel" ] || { echo "pack_gpu.sh: there is no $wheel" >&2; exit 2; }
    case $(basename "$wheel") in
        pycuda-*) pycuda=$wheel ;;
        tensorrt_rtx*) rtx+=("$wheel") ;;
        tensorrt*) tensorrt+=("$wheel") ;;
        *) echo "pack_gpu.sh: $wheel is no wheel of PyCUDA, TensorRT or TensorRT for RTX" >&2; exit 2 ;;
    esac
done

fetch "$scratch/host/wheels" \
    cuda-bindings cuda-pathfinder pytools platformdirs siphash24 typing_extensions mako markupsafe msgspec safetensors \
    ftfy regex wcwidth pycocotools opencv-python-headless typer rich click shellingham annotated_doc markdown-it-py mdurl \
    pygments pytest pytest-xdist execnet iniconfig pluggy packaging hypothesis sortedcontainers tokenizers onnx onnxscript \
    onnx-ir ml_dtypes open_clip_torch timm huggingface_hub tqdm scipy matplotlib contourpy cycler fonttools kiwisolver \
    pyparsing python-dateutil six
if [ -n "$pycuda" ]; then
    cp "$pycuda" "$scratch/host/wheels/"
else
    pip download -q --dest "$scratch/host/wheels" --no-deps --no-binary pycuda pycuda
fi
pack "$scratch/host" 1-host 0  # wheels are compressed already

fetch "$scratch/wheels" onnxruntime-gpu flatbuffers
unpack_wheels "$scratch/onnxruntime/site" "$scratch"/wheels/*.whl
python3 "$tools/zero_architectures.py" --keep "$capability" \
    "$scratch"/onnxruntime/site/onnxruntime/capi/libonnxruntime_providers_cuda.so
rm -f "$scratch"/onnxruntime/site/onnxruntime/capi/libonnxruntime_providers_tensorrt.so
pack "$scratch/onnxruntime" 2-onnxruntime 6

if [ ${#tensorrt[@]} -gt 0 ]; then
    unpack_wheels "$scratch/tensorrt/site" "${tensorrt[@]}"
    pack "$scratch/tensorrt" 3-tensorrt 6
fi
if [ ${#rtx[@]} -gt 0 ]; then
    unpack_wheels "$scratch/rtx/site" "${rtx[@]}"
    pack "$scratch/rtx" 3-tensorrt-rtx 6
fi
ls -l "$folder"
