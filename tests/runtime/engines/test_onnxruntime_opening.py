"""What ONNX Runtime's CUDA engine needs to open a graph, and what it does where it is refused at first."""

import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.golden import REPOSITORY
from vocabseg.runtime import doctor
from vocabseg.runtime.engines import choose
from vocabseg.runtime.engines import onnxruntime_cuda as cuda
from vocabseg.runtime.engines import onnxruntime_libraries as libraries
from vocabseg.runtime.engines.onnxruntime_cuda import open_session
from vocabseg.runtime.errors import EngineError


@pytest.mark.parametrize("version", [12, 13])
@pytest.mark.parametrize("look", ["choosing", "opening", "doctor"])
def test_what_the_provider_cannot_load_is_named_before_anything_runs(monkeypatch, look, version):
    """Without cuDNN alone, sessions would open, and fail at their first run."""
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [cuda.CUDA])
    monkeypatch.setattr(libraries, "cuda_version", lambda: version)
    check = {
        "choosing": lambda: choose._check_onnxruntime_gpu(SimpleNamespace(bundle=None), "float16", None),
        "opening": lambda: open_session(Path("graph.onnx"), 0, 0, cuda_graphs=False),
        "doctor": doctor._onnxruntime_gpu,
    }[look]
    monkeypatch.setattr(libraries, "_loads", lambda name: not name.startswith(("libcublas.", "libcudnn")))
    with pytest.raises(EngineError) as caught:
        check()
    assert f"libcublas.so.{version}, libcudnn.so.9 cannot be loaded: pip install" in str(caught.value)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(libraries, "_loads", lambda name: name != libraries.DRIVER)
    with pytest.raises(EngineError, match="no NVIDIA driver"):
        check()


def test_the_extra_for_gpus_brings_the_libraries_that_are_needed():
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]["gpu"]
    assert any(wanted.startswith("onnxruntime-gpu[cuda,cudnn]") for wanted in extras)


@pytest.mark.parametrize(
    "refusal",
    [
        "This session cannot use the graph capture feature as requested by the user",  # texts of ONNX Runtime 1.31
        "This session contains graph nodes that are assigned to the default CPU EP, but fallback to CPU EP has been",
    ],
)
def test_arithmetic_on_sizes_is_left_to_the_cpu_where_the_faster_layout_is_refused(monkeypatch, refusal):
    asked, assigned = [], []

    def session(onnxruntime, path, provider, settings):
        asked.append((provider["prefer_nhwc"], dict(settings)))
        if len(asked) == 1:
            raise EngineError(f"ONNX Runtime cannot open {path} on the GPU: {refusal}")
        nodes = [SimpleNamespace(op_type=one) for one in assigned]
        parts = [SimpleNamespace(ep_name="CPUExecutionProvider", get_nodes=lambda: nodes)]
        return SimpleNamespace(get_providers=lambda: [cuda.CUDA], get_provider_graph_assignment_info=lambda: parts)

    monkeypatch.setattr(cuda, "_session", session)
    monkeypatch.setattr(cuda, "check_provider", lambda: None)
    assigned[:] = ["Shape", "Concat"]
    assert open_session(Path("graph.onnx"), 0, 0, True).get_providers() == [cuda.CUDA]
    assert [layout for layout, _ in asked] == ["1", "0"]
    assert asked[0][1] == cuda.SESSION_OPTIONS
    assert "session.disable_cpu_ep_fallback" not in asked[1][1]
    asked.clear()
    assigned[:] = ["Shape", "Conv"]
    with pytest.raises(EngineError, match="would run Conv"):
        open_session(Path("graph.onnx"), 0, 0, True)
