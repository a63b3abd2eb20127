"""Engines: what is chosen, what is told, and that a graph that is none is refused in one line."""

import numpy as np
import pytest

from vocabseg.runtime import engines
from vocabseg.runtime.errors import EngineError


def test_openvino_comes_first_and_onnxruntime_without_it(monkeypatch):
    assert engines.choose().name == "openvino"
    monkeypatch.setattr(engines, "installed", lambda name: name == "onnxruntime")
    choice = engines.choose()
    assert choice.key == "onnxruntime-cpu-float32"
    assert "OpenVINO" in choice.reason
    with pytest.raises(EngineError, match="pip install openvino"):
        engines.choose("openvino")
    monkeypatch.setattr(engines, "installed", lambda name: False)
    with pytest.raises(EngineError, match=r"vocabseg\[cpu\]"):
        engines.choose()


def test_bfloat16_is_the_default_on_a_cpu_with_amx(monkeypatch):
    assert engines.choose("openvino").precision == "float32"
    monkeypatch.setattr(engines, "has_amx", lambda: True)
    choice = engines.choose()
    assert choice.key == "openvino-cpu-bfloat16"
    assert "AMX" in choice.reason
    assert engines.choose(precision="float32").precision == "float32"
    assert engines.choose("onnxruntime").precision == "float32"
    assert choice.for_graph("image_encoder") == choice
    assert choice.for_graph("proposal").key == choice.for_graph("text_encoder").key == "openvino-cpu-float32"


def test_a_small_model_opens_fastest_in_onnxruntime(monkeypatch):
    limit = engines.SMALL_MODEL_BYTES
    assert engines.choose(model_bytes=limit).name == "onnxruntime"
    assert engines.choose(model_bytes=limit + 1).name == "openvino"
    assert engines.choose(model_bytes=limit, precision="bfloat16").name == "openvino"
    assert engines.choose("openvino", model_bytes=limit).name == "openvino"
    monkeypatch.setattr(engines, "installed", lambda name: name == "openvino")
    assert engines.choose(model_bytes=limit).name == "openvino"


@pytest.mark.parametrize("name", list(engines.CPU_ENGINES))
def test_a_file_that_is_no_graph_is_refused_in_one_line(tmp_path, name):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"this is no graph")
    with pytest.raises(EngineError, match=r"broken\.onnx") as caught:
        engines.open_engine(path, name).run({"x": np.zeros(1, np.float32)})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "device", "precision", "variant"),
    [
        ("openvino", "cpu", "bfloat16", "float32"),
        ("onnxruntime", "cpu", "float16", "float16-rounded"),
        ("onnxruntime", "cuda:1", "float16", "float16-onnxruntime"),
        ("tensorrt", "cuda", "float16", "float16"),
        ("onnxruntime", "cpu", "float32", "float32"),
    ],
)
def test_each_engine_runs_the_graphs_made_for_it(name, device, precision, variant):
    assert engines.Choice(name=name, device=device, precision=precision, reason="").variant == variant
