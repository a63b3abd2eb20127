#!/usr/bin/env bash
# Runs the tests of the host's kernels with the kernels compiled under AddressSanitizer and UndefinedBehaviorSanitizer.
#
#     tools/sanitize_kernels.sh [FOLDER]     # needs cmake, g++ and nanobind; builds in FOLDER, default build/sanitized
#
# The first access outside of an array, overflow or shift of a negative number ends the run with its place in the source.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(realpath -m "${1:-build/sanitized}")
checks="-fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all -fno-omit-frame-pointer -g"
nanobind=${nanobind_ROOT:-$(python -m nanobind --cmake_dir)}
cmake -S . -B "$folder/build" -DVOCABSEG_CUDA=OFF -DPython_EXECUTABLE="$(command -v python)" -Dnanobind_ROOT="$nanobind" \
    -DCMAKE_CXX_FLAGS="$checks"
cmake --build "$folder/build" --parallel "${JOBS:-2}"
python tests/package_tree.py "$folder/tree"
cp "$folder"/build/_native*.so "$folder/tree/vocabseg/runtime/kernels/host/"
# Python itself leaks on purpose; its own library must come before all others.
export PYTHONPATH="$folder/tree" ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1
LD_PRELOAD="$(g++ -print-file-name=libasan.so):$(g++ -print-file-name=libubsan.so)" \
    python -m pytest -q -p no:cacheprovider --capture=sys tests/runtime/kernels/test_host.py tests/runtime/kernels/test_variants.py \
    tests/runtime/kernels/test_golden.py "tests/attack/test_numbers.py::test_kernels_pass_numbers_that_are_none_on"
