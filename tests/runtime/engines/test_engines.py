"""Engines: what is chosen, what is told, and that a graph that is none is refused in one line."""

import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import vocabseg
from vocabseg.runtime.bundle.folder import demo_folder, open_bundle
from vocabseg.runtime.doctor import examine
from vocabseg.runtime.engines import choose as choosing
from vocabseg.runtime.engines import onnxruntime_cuda
from vocabseg.runtime.engines.choose import ON_CPU, choose
from vocabseg.runtime.engines.host_engines import Engine, open_engine
from vocabseg.runtime.engines.interface import Choice
from vocabseg.runtime.errors import BundleError, EngineError


def test_openvino_comes_first_and_onnxruntime_without_it(monkeypatch):
    assert choose().name == "openvino"
    monkeypatch.setattr(choosing, "installed", lambda name: name == "onnxruntime")
    choice = choose()
    assert choice.key == "onnxruntime-cpu-float32"
    assert "OpenVINO" in choice.reason
    with pytest.raises(EngineError, match="pip install openvino"):
        choose("openvino")
    monkeypatch.setattr(choosing, "installed", lambda name: False)
    with pytest.raises(EngineError, match=r"vocabseg\[cpu\]"):
        choose()


def test_a_cpu_runs_float32_unless_bfloat16_is_asked_for():
    assert choose().key == choose("openvino").key == "openvino-cpu-float32"
    assert choose("onnxruntime").key == "onnxruntime-cpu-float32"
    choice = choose(precision="bfloat16")
    assert choice.key == "openvino-cpu-bfloat16"
    assert choice.for_graph("image_encoder") == choice
    assert choice.for_graph("proposal").key == choice.for_graph("text_encoder").key == "openvino-cpu-float32"


def test_a_small_model_opens_fastest_in_onnxruntime(monkeypatch):
    limit = choosing.SMALL_MODEL_BYTES
    assert choose(model_bytes=limit).name == "onnxruntime"
    assert choose(model_bytes=limit + 1).name == "openvino"
    assert choose(model_bytes=limit, precision="bfloat16").name == "openvino"
    assert choose("openvino", model_bytes=limit).name == "openvino"
    monkeypatch.setattr(choosing, "installed", lambda name: name == "openvino")
    assert choose(model_bytes=limit).name == "openvino"


@pytest.mark.parametrize("name", [offer.name for offer in ON_CPU])
def test_a_file_that_is_no_graph_is_refused_in_one_line(tmp_path, name):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"this is no graph")
    with pytest.raises(EngineError, match=r"broken\.onnx") as caught:
        open_engine(path, name).run({"x": np.zeros(1, np.float32)})
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def scaled(tmp_path_factory):
    """y = 2 x and z = the sum of x's rows, for any batch of three numbers."""
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["x", "x"], ["y"]),
            helper.make_node("ReduceSum", ["x", "axes"], ["z"], keepdims=0),
        ],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch"]),
        ],
        [numpy_helper.from_array(np.array([1]), "axes")],
    )
    path = tmp_path_factory.mktemp("scaled") / "graph.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_halves_of_a_batch_run_side_by_side_in_openvino(monkeypatch, scaled, threads):
    monkeypatch.setenv("VOCABSEG_THREADS", str(threads))
    engine = Engine(scaled, choose("openvino", "cpu", "float32"), batched=True)
    for batch in (5, 1, 2, 0, 8):
        x = np.arange(3 * batch, dtype=np.float32).reshape(batch, 3)
        found = engine.run({"x": x})
        np.testing.assert_array_equal(found["y"], 2 * x)
        np.testing.assert_array_equal(found["z"], x.sum(1))
    for batch in (1, 5):
        with pytest.raises(EngineError, match=rf"cannot run on x \({batch}, 4\)"):
            engine.run({"x": np.zeros((batch, 4), np.float32)})
    np.testing.assert_array_equal(engine.run({"x": x})["y"], 2 * x)  # it still runs


# On a GPU


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A machine with an emulated GPU, kernels and an ONNX Runtime that knows it and finds its libraries."""
    import onnxruntime

    from tests.fake_driver.machine import FATBIN, installed
    from vocabseg.runtime.engines import onnxruntime_cuda
    from vocabseg.runtime.kernels.device import face, fatbin

    monkeypatch.setattr(choosing, "gpu_present", lambda: True)
    for module in (face, fatbin):
        monkeypatch.setattr(module, "kernels_fatbin", lambda: FATBIN)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime_cuda, "check_libraries", lambda _: None)
    choosing.tell_fallback.cache_clear()
    with installed() as machine:
        yield machine


def demo():
    return open_bundle(demo_folder())


def test_auto_takes_the_gpu_and_says_why_in_float32(gpu):
    choice = choose(bundle=demo())
    assert choice.key == "onnxruntime-cuda:0-float32"
    assert "TensorRT cannot run this bundle" in choice.reason
    assert "vocabseg build" in choice.reason
    assert choose("onnxruntime", "cuda").reason == "it was asked for"
    assert choose("openvino").device == "cpu"
    assert choose(device="cpu").device == "cpu"


def test_auto_falls_back_once_and_says_why(gpu):
    gpu.init_error = 100
    with pytest.warns(RuntimeWarning, match="CPU is used: the NVIDIA driver does not start") as told:
        choices = [choose(bundle=demo()) for _ in range(2)]
    assert [choice.device for choice in choices] == ["cpu", "cpu"]
    assert len(told) == 1
    with pytest.raises(EngineError, match="does not start"):
        choose(device="cuda", bundle=demo())


def test_what_is_missing_on_a_gpu_is_told(gpu, monkeypatch):

    with pytest.raises(EngineError, match="tensorrt"):
        choose("tensorrt", "cuda", bundle=demo())
    with pytest.raises(EngineError, match="'openvino' does not run on a GPU"):
        choose("openvino", "cuda")
    with pytest.raises(EngineError, match="no precision 'float8'"):
        choose(device="cuda", precision="float8")
    with pytest.raises(EngineError, match="no GPU cuda:3"):
        choose(device="cuda:3")
    with pytest.raises(BundleError, match="vocabseg build"):
        choose("onnxruntime", "cuda", "float16", bundle=demo())
    monkeypatch.setattr(onnxruntime_cuda, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"vocabseg\[gpu\]"):
        choose("onnxruntime", "cuda")


def test_a_gpu_is_where_the_system_says(monkeypatch):
    gpu_present = choosing.gpu_present.found
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        gpu_present.cache_clear()
        assert not gpu_present()
    gpu_present.cache_clear()


def test_tensorrt_needs_a_gpu():
    with pytest.raises(EngineError, match="needs an NVIDIA GPU"):
        choose("tensorrt")


def test_load_opens_the_pipeline_of_the_gpu(gpu):
    segmenter = vocabseg.load(device="cuda")
    assert type(segmenter.stages).__name__ == "CudaStages"
    assert segmenter.engine("proposal").key == "onnxruntime-nvidia-emulated-100-sm90-float32"


def test_doctor_tells_about_the_gpu(gpu):
    found = {finding.what: finding for finding in examine()}
    assert "NVIDIA Emulated 100 (nvidia-emulated-100-sm90)" in found["GPU"].text
    assert "they load on this GPU" in found["CUDA kernels"].text
    assert found["engine onnxruntime on the GPU"].fine
    assert not found["engine tensorrt on the GPU"].fine
    rtx = found["engine tensorrt-rtx on the GPU"]
    assert "TensorRT for RTX" in rtx.text
    assert ("builds plans without a GPU" if rtx.fine else "pip install 'vocabseg[rtx]'") in rtx.text
    assert "cuda:0" in found["engine used here"].text


def test_doctor_without_a_gpu():
    found = {finding.what: finding for finding in examine()}
    assert "no NVIDIA GPU was found" in found["GPU"].text
    assert "cpu" in found["engine used here"].text
    choice = vocabseg.load().choice
    assert found["engine of the demo model"].text.startswith(f"{choice.name} on cpu in {choice.precision}, because")
    assert {"ray", "tritonclient"} <= found.keys()


def test_doctor_tells_about_memory_and_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("VOCABSEG_CACHE_DIR", str(tmp_path / "cache"))
    found = {finding.what: finding for finding in examine()}
    free, total = (float(word) for word in re.findall(r"\d+\.\d", found["memory"].text))
    assert 0 < free < total
    assert found["cache"].text == f"text embeddings are kept in {tmp_path / 'cache'}"
    (tmp_path / "file").touch()
    monkeypatch.setenv("VOCABSEG_CACHE_DIR", str(tmp_path / "file" / "cache"))
    (cache,) = (finding for finding in examine() if finding.what == "cache")
    assert not cache.fine
    assert "is not a folder" in cache.text


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
    assert Choice(name=name, device=device, precision=precision, reason="").variant == variant


def test_precisions_have_short_names():
    assert choose("onnxruntime", "cpu", "fp32").precision == "float32"
    assert choose("onnxruntime", "cpu", "FP16").precision == "float16"
