#!/usr/bin/env bash
# Downloads what tools/gpu_host.py installs on an offline GPU host with Python 3.12, torch and CUDA 13 present.
#
#     tools/gpu_wheels.sh FOLDER        # needs pip and the network, nothing else: no torch, no NVIDIA libraries
#
# torchvision, which open_clip needs, must be the one made for the host's torch: if the host lacks it, add that wheel.
# Files above 60 MB are cut into parts NAME.part00, NAME.part01, ..., which gpu_host.py joins again.
set -euo pipefail
folder=${1:?give the folder for the wheels}
mkdir -p "$folder"
common=(--dest "$folder" --no-deps)
target=(--python-version 3.12 --implementation cp --only-binary=:all:
        --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux2014_x86_64
        --platform manylinux_2_17_x86_64 --platform any)
pip download "${common[@]}" "${target[@]}" \
    onnxruntime-gpu onnx onnxscript onnx-ir ml_dtypes protobuf flatbuffers \
    open_clip_torch timm ftfy regex wcwidth huggingface_hub safetensors tqdm \
    numpy msgspec opencv-python-headless pillow pycocotools platformdirs typer rich click shellingham \
    markdown-it-py mdurl pygments matplotlib contourpy cycler fonttools kiwisolver pyparsing python-dateutil six scipy \
    pytest pytest-xdist execnet iniconfig pluggy packaging hypothesis sortedcontainers tokenizers \
    nanobind scikit-build-core pathspec cmake ninja cuda-bindings cuda-pathfinder pytools siphash24 tzdata mako markupsafe \
    typing_extensions setuptools wheel annotated-doc defusedxml anyio certifi charset-normalizer filelock fsspec h11 \
    attrs truststore hf-xet httpcore2 httpx2 idna pyyaml requests urllib3 pydantic pydantic-core annotated-types typing-inspection
pip download "${common[@]}" --no-binary pycuda pycuda  # pip fetches what its metadata is made with
for wheel in "$folder"/*.whl; do
    if [ "$(stat -c %s "$wheel")" -gt 60000000 ]; then
        split --bytes 60000000 --numeric-suffixes --suffix-length 2 "$wheel" "$wheel.part"
        rm "$wheel"
    fi
done
du -sh "$folder"
