"""Engines: what is chosen, what is told, and that a graph that is none is refused in one line."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import vocabseg
from vocabseg.runtime import engines
from vocabseg.runtime.bundle import demo_folder, open_bundle
from vocabseg.runtime.doctor import examine
from vocabseg.runtime.errors import BundleError, EngineError
from vocabseg.runtime.segmenter import Segmenter


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
    engine = engines.Engine(scaled, engines.choose("openvino", "cpu", "float32"), batched=True)
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
    """A machine with an emulated GPU, kernels and an ONNX Runtime that knows it."""
    import onnxruntime

    from tests.cuda_emulation import fake_pycuda
    from tests.cuda_emulation.machine import Machine
    from vocabseg.runtime.engines import cuda_choice
    from vocabseg.runtime.kernels import cuda as cuda_kernels

    monkeypatch.setattr(engines, "gpu_present", lambda: True)
    monkeypatch.setattr(cuda_kernels, "kernels_fatbin", lambda: b"fatbin")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    cuda_choice.tell_fallback.cache_clear()
    with fake_pycuda.installed(Machine()):
        yield fake_pycuda


def demo():
    return open_bundle(demo_folder())


def test_auto_takes_the_gpu_and_says_why_in_float32(gpu):
    choice = engines.choose(bundle=demo())
    assert choice.key == "onnxruntime-cuda:0-float32"
    assert "TensorRT cannot run this bundle" in choice.reason
    assert "vocabseg build" in choice.reason
    assert engines.choose("onnxruntime", "cuda").reason == "it was asked for"
    assert engines.choose("openvino").device == "cpu"
    assert engines.choose(device="cpu").device == "cpu"


def test_auto_falls_back_once_and_says_why(gpu):
    gpu.settings()["no_device"] = True
    with pytest.warns(RuntimeWarning, match="CPU is used: the NVIDIA driver does not start") as told:
        choices = [engines.choose(bundle=demo()) for _ in range(2)]
    assert [choice.device for choice in choices] == ["cpu", "cpu"]
    assert len(told) == 1
    with pytest.raises(EngineError, match="does not start"):
        engines.choose(device="cuda", bundle=demo())


def test_what_is_missing_on_a_gpu_is_told(gpu, monkeypatch):
    from vocabseg.runtime.engines import cuda_choice

    with pytest.raises(EngineError, match="tensorrt"):
        engines.choose("tensorrt", "cuda", bundle=demo())
    with pytest.raises(EngineError, match="'openvino' does not run on a GPU"):
        engines.choose("openvino", "cuda")
    with pytest.raises(EngineError, match="no precision 'float8'"):
        engines.choose(device="cuda", precision="float8")
    with pytest.raises(EngineError, match="no GPU cuda:3"):
        engines.choose(device="cuda:3")
    with pytest.raises(BundleError, match="vocabseg build"):
        engines.choose("onnxruntime", "cuda", "float16", bundle=demo())
    monkeypatch.setattr(cuda_choice, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"vocabseg\[gpu\]"):
        engines.choose("onnxruntime", "cuda")


def test_a_gpu_is_where_the_system_says(monkeypatch):
    from vocabseg.runtime.engines import cuda_choice

    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        cuda_choice.gpu_present.cache_clear()
        assert not cuda_choice.gpu_present()
    cuda_choice.gpu_present.cache_clear()


def test_tensorrt_needs_a_gpu():
    with pytest.raises(EngineError, match="needs an NVIDIA GPU"):
        engines.choose("tensorrt")


def test_a_segmenter_of_the_host_refuses_a_gpu(gpu):
    with pytest.raises(EngineError, match=r"vocabseg\.load"):
        Segmenter(demo(), "cuda")


def test_load_opens_the_pipeline_of_the_gpu(gpu):
    segmenter = vocabseg.load(device="cuda")
    assert type(segmenter).__name__ == "CudaSegmenter"
    assert segmenter.engine("proposal").key == "onnxruntime-nvidia-emulated-100-sm90-float32"


def test_doctor_tells_about_the_gpu(gpu):
    found = {finding.what: finding for finding in examine()}
    assert "NVIDIA Emulated 100 (nvidia-emulated-100-sm90)" in found["GPU"].text
    assert "they load on this GPU" in found["CUDA kernels"].text
    assert found["engine onnxruntime on the GPU"].fine
    assert not found["engine tensorrt on the GPU"].fine
    assert "cuda:0" in found["engine used here"].text


def test_doctor_without_a_gpu():
    found = {finding.what: finding for finding in examine()}
    assert "no NVIDIA GPU was found" in found["GPU"].text
    assert "cpu" in found["engine used here"].text


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
