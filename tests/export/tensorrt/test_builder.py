"""Building plans with the double of TensorRT: what is set, kept, written and refused; and the progress it shows."""

import _thread
import json
import signal
import threading
import time

import msgspec
import pytest

from tests.doubles import tensorrt as tensorrt_double
from tests.doubles.tensorrt_cases import build, half_bundle
from tests.fake_driver.machine import installed
from vocabseg.export.tensorrt.builder import BuildOptions, build_plan
from vocabseg.export.tensorrt.installer import build_engine, timing_cache
from vocabseg.export.tensorrt.monitor import PARTS, Monitor
from vocabseg.export.tensorrt.profiles import default_profiles
from vocabseg.export.tensorrt.target import PlanTarget
from vocabseg.runtime.bundle.plans import ENGINES, RECORD, EngineRecord, read_plans
from vocabseg.runtime.cuda.device import open_device
from vocabseg.runtime.engines.tensorrt.package import require_builder
from vocabseg.runtime.errors import BundleError, ConfigurationError, EngineError, OutputError
from vocabseg.runtime.progress import silent

CROPS = "image_encoder:crops=1,4,6"


@pytest.fixture
def device():
    with installed(), tensorrt_double.installed():
        yield open_device(0)


@pytest.fixture
def bundle(tmp_path):
    return half_bundle(tmp_path / "demo")


def config():
    return tensorrt_double.seen["config"][-1]


def test_the_record_says_what_was_built_out_of_what_on_what(bundle, device):
    plan = build(bundle, "image_encoder", device, CROPS)
    assert plan.folder == bundle.folder / ENGINES / "nvidia-emulated-100-sm90"
    record = json.loads((plan.folder / RECORD).read_text())["plans"][0]
    graph = bundle.graph("image_encoder", "float16")
    assert record["graph_digest"] == graph.digest()
    assert (record["gpu"], record["compute_capability"]) == ("NVIDIA Emulated 100", [9, 0])
    assert (record["tensorrt"], record["driver"]) == ("11.4.0.106", str(device.driver_version))
    assert record["profiles"] == [{"crops": {"min": [1, 3, 64, 64], "opt": [4, 3, 64, 64], "max": [6, 3, 64, 64]}}]
    assert record["flags"] == ["RUNTIME_ACTIVATION_RESIZE_10_10", "STRONGLY_TYPED"]
    assert record["bytes"] == plan.path.stat().st_size
    assert [tensor["dtype"] for tensor in record["inputs"]] == ["float16"]
    assert read_plans(plan.folder) == [plan]


def test_what_is_asked_of_the_builder(bundle, device):
    build(bundle, "image_encoder", device, CROPS, optimization_level=5, workspace_bytes=3 << 30)
    assert config().builder_optimization_level == 5
    assert config().max_aux_streams == 0
    assert config().flags == set()  # TF32 is on unless it is cleared
    assert tensorrt_double.seen["pool"] == [("WORKSPACE", 3 << 30)]
    assert tensorrt_double.seen["preview"] == [("RUNTIME_ACTIVATION_RESIZE_10_10", True)]
    build(
        bundle,
        "image_encoder",
        device,
        CROPS,
        version_compatible=True,
        hardware_compatibility="same-compute-capability",
    )
    assert {flag.name for flag in config().flags} == {"VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"}
    assert config().hardware_compatibility_level.name == "SAME_COMPUTE_CAPABILITY"
    build(bundle, "image_encoder", device, CROPS, hardware_compatibility="ampere-plus")
    assert config().hardware_compatibility_level.name == "AMPERE_PLUS"


@pytest.mark.parametrize(
    ("wrong", "text"), [({"optimization_level": 6}, "level is 6: give 0 to 5"), ({"workspace_bytes": 5}, "5 bytes")]
)
def test_options_that_tensorrt_does_not_take(wrong, text):
    with pytest.raises(ConfigurationError, match=text):
        BuildOptions(**wrong).check()


def test_other_plans_stay_unless_their_graph_has_changed(bundle, device):
    encoder = build(bundle, "image_encoder", device, CROPS)
    build(bundle, "text_encoder", device)
    build(bundle, "text_encoder", device, precision="float32")
    again = build(bundle, "image_encoder", device, "image_encoder:crops=1,2,3")
    names = [plan.record.file for plan in read_plans(again.folder)]
    assert names == ["image_encoder-float16.plan", "text_encoder-float16.plan", "text_encoder-float32.plan"]
    assert sorted(path.name for path in again.folder.iterdir()) == [RECORD, *names]
    assert again.record.sha256 != encoder.record.sha256
    record = json.loads((again.folder / RECORD).read_text())
    record["plans"][1]["graph_digest"] = "0" * 64
    (again.folder / RECORD).write_text(json.dumps(record))
    build(bundle, "image_encoder", device, CROPS)
    assert [plan.record.file for plan in read_plans(again.folder)] == [names[0], names[2]]


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("fault", "texts"),
    [
        (
            {"parser": [("node_Conv_1", "Conv", "weights must be\nconstant"), ("b", "Add", "x")]},
            ("cannot parse image_encoder.onnx", "node 'node_Conv_1' (Conv): weights must be constant (and 1 more)"),
        ),
        ({"build": "Error Code 10: no implementation for node x"}, ("cannot build", "Error Code 10")),
    ],
)
def test_a_build_that_fails_says_where_and_changes_nothing(bundle, device, fault, texts):
    build(bundle, "image_encoder", device, CROPS)
    before = contents(bundle.folder)
    tensorrt_double.faults.update(fault)
    with pytest.raises(EngineError) as caught:
        build(bundle, "image_encoder", device, CROPS)
    for text in texts:
        assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert contents(bundle.folder) == before


def test_ctrl_c_stops_the_builder_and_leaves_nothing_behind(bundle, device):
    before = contents(bundle.folder)
    tensorrt_double.faults["slow"] = 1.0
    # Shells start background commands with the signal ignored.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    began = time.monotonic()
    threading.Timer(0.5, _thread.interrupt_main).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            build(bundle, "image_encoder", device, CROPS)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert time.monotonic() - began < 7  # all steps would take 8 seconds and more
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("build ") and thread.is_alive()]
    assert contents(bundle.folder) == before


def test_a_folder_that_cannot_be_written_is_told(bundle, device):
    (bundle.folder / ENGINES).mkdir()
    (bundle.folder / ENGINES / device.key).write_text("a file in its place")
    with pytest.raises(OutputError, match="a file has that name"):
        build(bundle, "image_encoder", device, CROPS)
    assert (bundle.folder / ENGINES / device.key).read_text() == "a file in its place"


def test_graphs_that_the_parser_does_not_take_are_told_before_anything_is_parsed(bundle, device, monkeypatch):
    monkeypatch.setattr(
        "vocabseg.export.tensorrt.builder.check_operators", lambda path, version: ["a: node 'x': no", "b"]
    )
    monkeypatch.setattr(tensorrt_double.OnnxParser, "parse_from_file", None)
    with pytest.raises(EngineError, match=r"TensorRT 11.4.0.106 cannot take a: node 'x': no \(and 1 more\)"):
        build(bundle, "image_encoder", device, CROPS)


def test_timings_are_kept_for_the_next_build(bundle, device):
    path = timing_cache(PlanTarget(require_builder(), device))
    for expected in (b"", b"+", b"++"):
        build(bundle, "image_encoder", device, CROPS)
        assert config().cache.data == expected
    assert path.read_bytes() == b"+++"
    path.write_bytes(b"foreign to this GPU")
    build(bundle, "image_encoder", device, CROPS)
    assert config().cache.data == b""


def test_without_a_cache_folder_nothing_is_kept(bundle, device, monkeypatch):
    monkeypatch.setenv("VOCABSEG_CACHE_DIR", "")
    assert timing_cache(PlanTarget(require_builder(), device)) is None
    build(bundle, "image_encoder", device, CROPS)


@pytest.mark.parametrize("package", ["tensorrt_lean", "none of them"])
def test_without_the_full_package_nothing_is_built(bundle, device, package):
    with tensorrt_double.installed(package), pytest.raises(EngineError, match="pip install tensorrt"):
        build(bundle, "image_encoder", device, CROPS)


def test_progress_goes_from_nothing_to_everything_and_never_back(bundle, device):
    shown = []
    graph = bundle.graph_path("image_encoder", "float16")
    profiles = default_profiles(bundle.manifest, "image_encoder", bundle.graph("image_encoder", "float16"))
    target = PlanTarget(require_builder(), device)
    build_plan(graph, profiles, BuildOptions(), target, None, lambda *step: shown.append(step))
    assert {(what, total) for what, _, total in shown} == {("building image_encoder", PARTS)}
    done = [done for _, done, _ in shown]
    # Two steps of four smaller ones each; the end of a phase adds nothing to its own steps.
    assert done == [125, 250, 375, 500, 625, 750, 875, 1000]


def test_phases_within_phases():
    phases = Monitor("x", silent)
    phases.phase_start("all", None, 4)
    phases.step_complete("all", 0)
    assert phases.fraction == 0.25
    phases.phase_start("inner", "all", 2)
    phases.phase_start("innermost", "inner", 10)
    phases.step_complete("innermost", 4)
    assert phases.fraction == pytest.approx(0.25 + 0.25 * 0.25)
    phases.phase_finish("innermost")
    phases.step_complete("inner", 0)
    phases.phase_start("beside", "all", 1)
    phases.step_complete("beside", 0)
    assert phases.fraction == pytest.approx(0.5)  # the parts inside one step never count for more than it
    phases.phase_finish("inner")
    phases.phase_finish("beside")
    assert phases.fraction == pytest.approx(0.5)
    phases.step_complete("unknown", 3)
    phases.phase_finish("unknown")
    phases.phase_start("orphan", "gone", 100)
    phases.step_complete("orphan", 1)
    assert phases.fraction == pytest.approx(0.5)
    phases.phase_finish("all")
    assert phases.fraction == 1.0


def test_a_monitor_that_is_cancelled_says_so_at_the_next_step():
    monitor = Monitor("x", silent)
    monitor.phase_start("all", None, 3)
    assert monitor.step_complete("all", 0)
    monitor.cancel()
    assert not monitor.step_complete("all", 1)


def test_the_record_is_written_in_the_form_that_is_read(bundle, device):
    plan = build(bundle, "text_encoder", device)
    text = (plan.folder / RECORD).read_bytes()
    assert msgspec.json.decode(text, type=EngineRecord).plans == [plan.record]
    assert text.count(b"\n") > 20  # to be read by people


def test_a_graph_that_the_bundle_lacks_is_told(bundle, device):
    target = PlanTarget(require_builder(), device)
    with pytest.raises(BundleError, match=r"no image_encoder in int8-float16: .* --precision int8"):
        build_engine(bundle, "image_encoder", "int8", [], BuildOptions(), target)
