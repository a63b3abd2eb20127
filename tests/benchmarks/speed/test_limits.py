"""Variants that are held to one thread, or kept from AMX: which there are, and that their processes are."""

import subprocess
import sys
from pathlib import Path

import pytest

from vocabseg.benchmarks.speed import machine, selection
from vocabseg.benchmarks.speed.engine import EngineSpec
from vocabseg.benchmarks.speed.selection import make_benchmark
from vocabseg.benchmarks.speed.variants import LIMITS
from vocabseg.benchmarks.speed.workers import limited, numerical_threads
from vocabseg.runtime.bundle.folder import demo_folder, open_bundle
from vocabseg.runtime.errors import ConfigurationError
from vocabseg.runtime.text.vocabulary import Vocabulary

VOCABULARY = Vocabulary(["cat", "grass", "sky"], templates=["{}"])
IMAGES = [Path("image.png")]  # never read


def test_limits_of_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "processor", lambda: "a CPU (avx512f, amx_bf16)")
    bundle = open_bundle(demo_folder())
    against = ["onnxruntime@1-thread", "openvino@no-amx", "onnxruntime@no-amx"]
    benchmark = make_benchmark(bundle, VOCABULARY, IMAGES, "no", "openvino", against, ["float32"])
    assert [spec.name for spec in benchmark.variants] == ["openvino", "onnxruntime@1-thread", "openvino@no-amx"]
    assert [(one.name, str(one.reason)[:32]) for one in benchmark.missing] == [
        ("onnxruntime@no-amx", "ONNX Runtime has no setting that")
    ]
    with pytest.raises(ConfigurationError, match="behind the @ stands one of 1-thread, no-amx"):
        make_benchmark(bundle, VOCABULARY, IMAGES, "", against=["openvino@half"])
    monkeypatch.setattr(selection, "processor", lambda: "a CPU (avx512f)")
    benchmark = make_benchmark(bundle, VOCABULARY, IMAGES, "no", "openvino", against[1:2], ["float32"])
    assert benchmark.missing[0].reason == "this CPU has no AMX"


def test_a_limit_holds_the_process_and_nothing_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOCABSEG_THREADS", "3")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    seen = "import os; print(*map(os.environ.get, ['VOCABSEG_THREADS', 'OMP_NUM_THREADS', 'ONEDNN_MAX_CPU_ISA']))"

    def environment() -> str:
        return subprocess.run([sys.executable, "-c", seen], capture_output=True, text=True, check=True).stdout.strip()

    before = environment()
    specs = [EngineSpec(demo_folder(), "openvino", "float32", VOCABULARY, limit=limit) for limit in LIMITS]
    found = []
    for spec in specs:
        with limited(spec), numerical_threads(3):
            found.append(environment())
    assert found == ["1 1 None", "3 3 AVX512_CORE_BF16"]
    assert environment() == before


MULTIPLYING = """
import numpy as np, openvino
from openvino import opset8
given = opset8.parameter([64, 64], np.float32)
model = openvino.Model([opset8.matmul(given, opset8.constant(np.eye(64, dtype=np.float32)), False, False)], [given], "")
compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
kinds = [node.get_rt_info()["primitiveType"].value for node in compiled.get_runtime_model().get_ordered_ops()]
print(any("amx" in kind for kind in kinds), any("bf16" in kind for kind in kinds))
"""


@pytest.mark.skipif("amx_bf16" not in machine.processor(), reason="this CPU has no AMX")
@pytest.mark.parametrize(("limit", "printed"), [("", "True True"), ("no-amx", "False True")])
def test_openvino_multiplies_without_amx_where_it_is_told_to(limit: str, printed: str) -> None:
    with limited(EngineSpec(demo_folder(), "openvino", "bfloat16", VOCABULARY, limit=limit)):
        run = subprocess.run([sys.executable, "-c", MULTIPLYING], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == printed, run.stderr
