"""Plans on the emulated GPU: which are opened and which refused, and what running one gives."""

import contextlib
import hashlib
import warnings

import msgspec
import numpy as np
import pytest

from tests.doubles import tensorrt as tensorrt_double
from tests.doubles.tensorrt_cases import build, half_bundle, run_on_host
from tests.fake_driver.machine import current, installed
from vocabseg.runtime.bundle.plans import RECORD, PackageInfo, differences, read_plans
from vocabseg.runtime.cuda.device import open_device
from vocabseg.runtime.engines.tensorrt.graph import TensorRtGraph
from vocabseg.runtime.engines.tensorrt.package import load_package
from vocabseg.runtime.engines.tensorrt.scratch import STEP, SharedScratch, scratch_of
from vocabseg.runtime.errors import DeviceMemoryError, EngineError

CROPS = "image_encoder:crops=1,4,6"


@pytest.fixture
def device():
    with installed(), tensorrt_double.installed():
        yield open_device(0)


@pytest.fixture
def bundle(tmp_path):
    return half_bundle(tmp_path / "demo")


def crops(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 3, 64, 64)).astype(np.float16)


class Runner:
    """Runs a graph as the pipeline does: arrays on the device in, arrays on the device out."""

    def __init__(self, graph, device, stream=None):
        self.graph, self.device, self.stream = graph, device, stream or device.stream()
        self.arrays = {}

    def __call__(self, inputs, shapes, reuse=None):
        keep = self.arrays.setdefault(reuse, {}) if reuse is not None else {}
        device_inputs, outputs = {}, {}
        for name, array in inputs.items():
            device_inputs[name] = keep.setdefault(name, self.device.empty(array.shape, array.dtype))
            self.stream.upload(device_inputs[name], array)
        for name, shape in shapes.items():
            outputs[name] = keep.setdefault(name, self.device.empty(shape, self.graph.output_dtypes[name]))
        self.graph.run(device_inputs, outputs, self.stream)
        return {name: array.to_host(self.stream) for name, array in outputs.items()}


def open_encoder(bundle, device, scratch=None):
    return TensorRtGraph(bundle, "image_encoder", "float16", device, scratch or scratch_of(device), load_package())


def test_a_plan_gives_what_its_graph_gives(bundle, device):
    build(bundle, "image_encoder", device, CROPS)
    graph = open_encoder(bundle, device)
    assert graph.input_dtypes == {"crops": np.float16}
    assert graph.output_dtypes == {"image_features": np.float16}
    assert graph.largest_batch == 6
    run = Runner(graph, device)
    for count in (3, 1, 6):
        given = {"crops": crops(count, count)}
        expected = run_on_host(bundle, "image_encoder", "float16", given)
        found = run(given, {"image_features": expected["image_features"].shape})
        np.testing.assert_array_equal(found["image_features"], expected["image_features"])
    assert tensorrt_double.seen["host code"] == [False]


def test_proposals_choose_the_profile_by_the_shape_of_the_image(bundle, device):
    build(bundle, "proposal", device)
    graph = TensorRtGraph(bundle, "proposal", "float16", device, scratch_of(device), load_package())
    run = Runner(graph, device)
    for height, width in ((64, 192), (192, 64)):
        image = np.random.default_rng(1).normal(size=(1, 3, height, width))
        given = {"image": image.astype(graph.input_dtypes["image"])}
        expected = run_on_host(bundle, "proposal", "float16", given)
        found = run(given, {name: array.shape for name, array in expected.items()})
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array)
    with pytest.raises(
        EngineError, match=r"--profile proposal:image=1x32x192,1x192x256,1x224x640 --profile proposal:image=1x192x32"
    ):
        graph.run(*shaped(graph, device, {"image": (1, 3, 224, 608)}, {}), device.stream())


def shaped(graph, device, inputs, outputs):
    made = [
        {name: device.empty(shape, dtypes[name]) for name, shape in shapes.items()}
        for shapes, dtypes in ((inputs, graph.input_dtypes), (outputs, graph.output_dtypes))
    ]
    for name in graph.output_dtypes:
        made[1].setdefault(name, device.empty((1,), graph.output_dtypes[name]))
    return made


def test_arrays_at_the_same_addresses_are_captured_once_and_replayed(bundle, device):
    build(bundle, "image_encoder", device, CROPS)
    graph = open_encoder(bundle, device)
    run = Runner(graph, device)
    for round_ in range(4):
        given = {"crops": crops(2, round_)}
        expected = run_on_host(bundle, "image_encoder", "float16", given)["image_features"]
        found = run(given, {"image_features": expected.shape}, reuse="a")["image_features"]
        np.testing.assert_array_equal(found, expected)
    assert len(tensorrt_double.seen["enqueued"]) == 1
    assert len(tensorrt_double.seen["captured"]) == 1
    run({"crops": crops(2)}, {"image_features": expected.shape}, reuse="b")
    assert len(tensorrt_double.seen["enqueued"]) == 2  # other addresses, the same context
    assert len(tensorrt_double.seen["contexts"]) == 1


def test_scratch_memory_that_grows_makes_captured_graphs_anew(bundle, device):
    build(bundle, "image_encoder", device, CROPS)
    build(bundle, "proposal", device)
    graph = open_encoder(bundle, device)
    stream = device.stream()
    run = Runner(graph, device, stream)
    given = {"crops": crops(2)}
    expected = run_on_host(bundle, "image_encoder", "float16", given)["image_features"]
    for _ in range(3):
        run(given, {"image_features": expected.shape}, reuse=0)
    block = scratch_of(device).block(1, stream)
    before, generation = block.pointer, block.generation
    proposal = TensorRtGraph(bundle, "proposal", "float16", device, scratch_of(device), load_package())
    image = {"image": np.ones((1, 3, 192, 640), proposal.input_dtypes["image"])}
    shapes = {name: array.shape for name, array in run_on_host(bundle, "proposal", "float16", image).items()}
    Runner(proposal, device, stream)(image, shapes)
    assert block.generation > generation
    assert block.size >= 64 * 3 * 192 * 640 > 0
    assert before % 256 == block.pointer % 256 == 0
    for _ in range(3):
        found = run(given, {"image_features": expected.shape}, reuse=0)["image_features"]
        np.testing.assert_array_equal(found, expected)
    assert len([shapes for shapes in tensorrt_double.seen["captured"] if "crops" in shapes]) == 2


def test_each_stream_has_contexts_and_scratch_of_its_own(bundle, device):
    build(bundle, "image_encoder", device, CROPS)
    scratch = SharedScratch(device)
    graph = open_encoder(bundle, device, scratch)
    given = {"crops": crops(2)}
    expected = run_on_host(bundle, "image_encoder", "float16", given)["image_features"]
    for _ in range(2):
        found = Runner(graph, device)(given, {"image_features": expected.shape})["image_features"]
        np.testing.assert_array_equal(found, expected)
    assert len(tensorrt_double.seen["contexts"]) == 2
    assert scratch.size == 2 * STEP  # each needs less than a step
    graph.close()
    scratch.close()
    assert scratch.size == 0
    with pytest.raises(EngineError, match="was closed"):
        Runner(graph, device)(given, {"image_features": expected.shape})


def test_what_cannot_be_captured_runs_without_and_says_so_once(bundle, device):
    build(bundle, "image_encoder", device, CROPS)
    graph = open_encoder(bundle, device)
    run = Runner(graph, device)
    given = {"crops": crops(2)}
    expected = run_on_host(bundle, "image_encoder", "float16", given)["image_features"]
    tensorrt_double.faults["capture"] = "a loop cannot be captured"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(4):
            found = run(given, {"image_features": expected.shape}, reuse=0)["image_features"]
            np.testing.assert_array_equal(found, expected)
    assert [str(warning.message) for warning in told] == [
        "image_encoder runs without CUDA graphs, which is slower: a loop cannot be captured"
    ]
    assert len(tensorrt_double.seen["enqueued"]) == 4


@pytest.mark.parametrize("failures", [1, 2])
def test_a_failed_capture_is_tried_again(bundle, device, failures):
    build(bundle, "image_encoder", device, CROPS)
    run = Runner(open_encoder(bundle, device), device)
    given = {"crops": crops(2)}
    expected = run_on_host(bundle, "image_encoder", "float16", given)["image_features"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(failures + 3):
            tensorrt_double.faults["capture"] = "full" if number <= failures else ""
            found = run(given, {"image_features": expected.shape}, reuse=0)["image_features"]
            np.testing.assert_array_equal(found, expected)
    assert len(tensorrt_double.seen["enqueued"]) == 1 + failures
    assert len(tensorrt_double.seen["captured"]) == 1


def test_batches_beyond_the_profile_name_the_command_that_widens_it(bundle, device):
    build(bundle, "image_encoder", device, CROPS)
    graph = open_encoder(bundle, device)
    with pytest.raises(EngineError) as caught:
        graph.run(*shaped(graph, device, {"crops": (9, 3, 64, 64)}, {}), device.stream())
    assert str(caught.value) == (
        "the plan of image_encoder was built for crops 1x3x64x64 to 6x3x64x64, not for crops 9x3x64x64: widen it with "
        f"`vocabseg build {bundle.folder} --precision fp16 --profile image_encoder:crops=1,4,9`"
    )


@pytest.mark.parametrize(
    ("inputs", "outputs", "text"),
    [
        ({"crops": (2, 3, 32, 64)}, {}, r"input crops has shape \(2, 3, 32, 64\).*\(batch, 3, 64, 64\)"),
        ({"crops": (0, 3, 64, 64)}, {}, r"input crops has shape \(0, 3"),
        ({"crops": (2, 3, 64, 64)}, {"image_features": (3, 5)}, r"output image_features has shape \(3, 5\)"),
    ],
)
def test_arrays_of_other_shapes_are_refused(bundle, device, inputs, outputs, text):
    build(bundle, "image_encoder", device, CROPS)
    graph = open_encoder(bundle, device)
    with pytest.raises(EngineError, match=text):
        graph.run(*shaped(graph, device, inputs, outputs), device.stream())


def test_arrays_of_other_names_types_and_streams_are_refused(bundle, device):
    build(bundle, "image_encoder", device, CROPS)
    graph = open_encoder(bundle, device)
    inputs, outputs = shaped(graph, device, {"crops": (1, 3, 64, 64)}, {})
    with pytest.raises(EngineError, match="inputs crops, given are pixels"):
        graph.run({"pixels": inputs["crops"]}, outputs, device.stream())
    with pytest.raises(EngineError, match="input crops is float32, the plan has float16"):
        graph.run({"crops": device.empty((1, 3, 64, 64), np.float32)}, outputs, device.stream())
    default = device.stream()
    default.handle = 0
    with pytest.raises(EngineError, match="default stream"):
        graph.run(inputs, outputs, default)


@pytest.mark.parametrize(
    ("fault", "text", "error"),
    [
        ("context", "Error Code 2: OutOfMemory (Requested size was 1 byte)", DeviceMemoryError),
        ("context", "Error Code 1: Internal", EngineError),
        ("run", "Error Code 1: CUDA failure", EngineError),
    ],
)
def test_errors_carry_what_tensorrt_said(bundle, device, fault, text, error):
    build(bundle, "image_encoder", device, CROPS)
    graph = open_encoder(bundle, device)
    tensorrt_double.faults[fault] = text
    width = bundle.graph("image_encoder").outputs[0].shape[1]
    with pytest.raises(EngineError, match="image_encoder on crops") as caught:
        Runner(graph, device)({"crops": crops(1)}, {"image_features": (1, width)})
    assert type(caught.value) is error
    assert text in str(caught.value)


def test_too_little_memory_for_scratch_is_told_and_a_smaller_batch_still_runs(bundle, device):
    build(bundle, "image_encoder", device, "image_encoder:crops=1,4,64")
    graph = open_encoder(bundle, device)
    run = Runner(graph, device)
    width = bundle.graph("image_encoder").outputs[0].shape[1]
    run({"crops": crops(2)}, {"image_features": (2, width)})
    current().largest_block = 20 << 20
    with pytest.raises(DeviceMemoryError, match="out of memory"):
        run({"crops": crops(40)}, {"image_features": (40, width)})
    expected = run_on_host(bundle, "image_encoder", "float16", {"crops": crops(3)})["image_features"]
    np.testing.assert_array_equal(run({"crops": crops(3)}, {"image_features": (3, width)})["image_features"], expected)


# Which plans are refused


def refused(bundle, device, *texts):
    with pytest.raises(EngineError) as caught:
        open_encoder(bundle, device)
    message = str(caught.value)
    for text in (*texts, f"`vocabseg build {bundle.folder} --precision fp16`"):
        assert text in message
    assert "\n" not in message


def rewrite(plan, **changes):
    """The record of a plan on disk with other entries."""
    path = plan.folder / RECORD
    record = msgspec.json.decode(path.read_bytes())
    record["plans"][0].update(changes)
    path.write_bytes(msgspec.json.encode(record))


def test_without_a_plan_the_command_that_builds_one_is_named(bundle, device):
    refused(bundle, device, "no TensorRT plan of image_encoder in float16")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda data: data[:-5], "is cut short"),
        (lambda data: data + b"x", "is too long"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "does not match its SHA-256"),
        (lambda data: b"", "is cut short"),
    ],
)
def test_a_damaged_plan_is_never_given_to_tensorrt(bundle, device, change, text):
    plan = build(bundle, "image_encoder", device, CROPS)
    plan.path.write_bytes(change(plan.path.read_bytes()))
    refused(bundle, device, "image_encoder-float16.plan", text)
    assert "host code" not in tensorrt_double.seen


def test_a_plan_that_tensorrt_cannot_open_is_told_with_its_reason(bundle, device):
    plan = build(bundle, "image_encoder", device, CROPS)
    data = b"no plan at all"
    plan.path.write_bytes(data)
    rewrite(plan, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    refused(bundle, device, "cannot open", "Magic tag does not match")


def test_a_runtime_that_cannot_start_is_not_touched(bundle, device):
    build(bundle, "image_encoder", device, CROPS)
    tensorrt_double.faults["start"] = "CUDA initialization failure with error: 35"
    with pytest.raises(EngineError, match="TensorRT's runtime does not start: CUDA initialization failure"):
        open_encoder(bundle, device)
    with pytest.raises(EngineError, match="TensorRT's builder does not start: CUDA initialization failure"):
        build(bundle, "image_encoder", device, CROPS)


def test_a_missing_plan_is_told(bundle, device):
    plan = build(bundle, "image_encoder", device, CROPS)
    plan.path.unlink()
    refused(bundle, device, "cannot be read", "no such file")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"gpu": "NVIDIA A100"}, "it was built on NVIDIA A100 (9.0), this is NVIDIA Emulated 100 (9.0)"),
        ({"compute_capability": [8, 6]}, "(8.6), this is"),
        ({"tensorrt": "10.13.3.9"}, "it was built with TensorRT 10.13.3.9, installed is 11.4.0.106"),
        ({"graph_digest": "0" * 64}, "has changed since it was built"),
        (
            {"hardware_compatibility": "same-compute-capability", "compute_capability": [8, 0]},
            "it is for compute capability 8.0, NVIDIA Emulated 100 has 9.0",
        ),
    ],
)
def test_a_plan_for_something_else_is_refused(bundle, device, changes, text):
    plan = build(bundle, "image_encoder", device, CROPS)
    rewrite(plan, **changes)
    refused(bundle, device, "does not fit here", text)


def test_plans_of_another_gpu_are_used_where_they_are_compatible(bundle, device):
    plan = build(bundle, "image_encoder", device, CROPS, hardware_compatibility="ampere-plus")
    rewrite(plan, gpu="NVIDIA A100", compute_capability=[8, 0])
    plan.folder.rename(plan.folder.parent / "nvidia-a100-sm80")
    assert open_encoder(bundle, device).largest_batch == 6


@pytest.mark.parametrize(
    ("record", "package", "lean", "text"),
    [
        ({}, ("full", "11.4.0.106"), False, None),
        ({}, ("lean", "11.4.0.106"), False, "needs a plan that was built with --version-compatible"),
        ({"version_compatible": True}, ("lean", "11.4.0.106"), False, None),
        ({"version_compatible": True}, ("full", "11.4.0.106"), False, None),
        ({"version_compatible": True}, ("full", "11.5.0.2"), False, "needs the lean library of TensorRT 11.4.0.106"),
        ({"version_compatible": True}, ("full", "11.5.0.2"), True, None),
        ({"version_compatible": True}, ("full", "11.3.9.9"), True, "newer than 11.3.9.9"),
        ({"version_compatible": True}, ("dispatch", "11.4.0.106"), False, "needs the lean library"),
        ({"version_compatible": True}, ("dispatch", "11.4.0.106"), True, None),
    ],
)
def test_which_tensorrt_opens_which_plan(bundle, device, tmp_path, monkeypatch, record, package, lean, text):
    plan = build(bundle, "image_encoder", device, CROPS)
    if lean:
        (tmp_path / "libnvinfer_lean.so.11").write_text("11.4.0.106")
        monkeypatch.setenv("VOCABSEG_TENSORRT_LEAN", str(tmp_path / "libnvinfer_lean.so.11"))
    changed = msgspec.structs.replace(plan.record, **record)
    found = differences(changed, plan.record.graph_digest, device, PackageInfo("tensorrt", *package))
    assert [text in line for line in found] == ([] if text is None else [True])


def test_a_newer_runtime_runs_a_compatible_plan_with_its_lean_library(bundle, device, tmp_path, monkeypatch):
    build(bundle, "image_encoder", device, CROPS, version_compatible=True)
    library = tmp_path / "libnvinfer_lean.so.11"
    library.write_text("11.4.0.106")
    with tensorrt_double.installed("tensorrt_dispatch", "11.5.0.2"):
        monkeypatch.setenv("VOCABSEG_TENSORRT_LEAN", str(library))
        graph = open_encoder(bundle, device)
        assert graph.largest_batch == 6
        assert tensorrt_double.seen["host code"] == [False, False]
        library.write_text("no library")
        with pytest.raises(EngineError, match=r"cannot load .*it is no library of TensorRT"):
            open_encoder(bundle, device)
        monkeypatch.setenv("VOCABSEG_TENSORRT_LEAN", str(tmp_path / "missing"))
        with pytest.raises(EngineError, match="there is no such file"):
            open_encoder(bundle, device)


def test_the_lean_runtime_opens_only_compatible_plans(bundle, device):
    build(bundle, "image_encoder", device, CROPS)
    with tensorrt_double.installed("tensorrt_lean_bindings"):
        refused(bundle, device, "needs a plan that was built with --version-compatible")
    build(bundle, "image_encoder", device, CROPS, version_compatible=True)
    with tensorrt_double.installed("tensorrt_lean_bindings"):
        assert open_encoder(bundle, device).largest_batch == 6


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b"{", "no valid engine record"),
        (b'{"format": 2, "plans": []}', "has format 2"),
        (b"\xff", "no valid engine record"),
    ],
)
def test_a_record_that_cannot_be_read_is_told(bundle, device, text, error):
    plan = build(bundle, "image_encoder", device, CROPS)
    (plan.folder / RECORD).write_bytes(text)
    with pytest.raises(EngineError, match=error):
        open_encoder(bundle, device)


@pytest.mark.parametrize("file", ["../proposal.onnx", "/etc/passwd", "a/b.plan", ".."])
def test_a_record_that_names_files_elsewhere_is_refused(bundle, device, file):
    plan = build(bundle, "image_encoder", device, CROPS)
    rewrite(plan, file=file)
    with pytest.raises(EngineError, match="outside its folder"):
        read_plans(plan.folder)


# Which package


@pytest.mark.parametrize(
    ("package", "version", "kind"),
    [
        ("tensorrt", "10.13.3.9", "full"),
        ("tensorrt_lean", "11.4.0.106", "lean"),
        ("tensorrt_dispatch_bindings", "11.5.0", "dispatch"),
    ],
)
def test_every_kind_of_package_is_found(package, version, kind):
    with tensorrt_double.installed(package, version):
        assert load_package().info == ("tensorrt", kind, version)


def test_packages_that_do_not_do_are_told():
    with contextlib.ExitStack() as stack:
        stack.enter_context(tensorrt_double.installed("none of them"))
        with pytest.raises(EngineError, match="TensorRT is not installed: pip install tensorrt"):
            load_package()
    with (
        tensorrt_double.installed("tensorrt", "10.12.0.36"),
        pytest.raises(EngineError, match=r"10\.12\.0\.36 is too old"),
    ):
        load_package()


def test_a_package_without_its_libraries_is_told(tmp_path, monkeypatch):
    (tmp_path / "tensorrt_lean.py").write_text("raise ImportError('libnvinfer_lean.so.11: cannot open')")
    with tensorrt_double.installed("none of them"):
        monkeypatch.delitem(__import__("sys").modules, "tensorrt_lean")
        monkeypatch.syspath_prepend(str(tmp_path))
        with pytest.raises(EngineError, match=r"tensorrt_lean cannot be imported \(libnvinfer_lean.so.11"):
            load_package()


# Plans of strangers


def test_a_record_without_end_is_not_read(bundle, device):
    plan = build(bundle, "image_encoder", device, CROPS)
    (plan.folder / RECORD).unlink()
    (plan.folder / RECORD).symlink_to("/dev/zero")
    with pytest.raises(EngineError, match=r"no valid engine record .*it is a pipe or a device"):
        open_encoder(bundle, device)
    (plan.folder / RECORD).unlink()
    with (plan.folder / RECORD).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(EngineError, match=r"no valid engine record .*1099511627776 bytes, more than"):
        open_encoder(bundle, device)


def test_a_plan_that_is_a_link_or_endless_is_not_read(bundle, device):
    plan = build(bundle, "image_encoder", device, CROPS)
    elsewhere = bundle.folder.parent / "plan"
    plan.path.rename(elsewhere)
    plan.path.symlink_to(elsewhere)
    with pytest.raises(EngineError, match=r"image_encoder-float16\.plan is a link"):
        open_encoder(bundle, device)
    plan.path.unlink()
    with plan.path.open("wb") as file:
        file.truncate(1 << 40)
    refused(bundle, device, "is too long: 1099511627776 bytes")


def test_engines_that_lie_outside_the_bundle_are_none_of_its(bundle, device):
    plan = build(bundle, "image_encoder", device, CROPS)
    elsewhere = bundle.folder.parent / "engines"
    plan.folder.rename(elsewhere)
    plan.folder.symlink_to(elsewhere, target_is_directory=True)
    refused(bundle, device, "has no TensorRT plan of image_encoder")


@pytest.mark.parametrize("changes", [{"graph": "../x"}, {"precision": "a/b"}, {"gpu": "\x1b[2J"}, {"bytes": -1}])
def test_names_and_numbers_of_a_record_have_ranges(bundle, device, changes):
    plan = build(bundle, "image_encoder", device, CROPS)
    rewrite(plan, **changes)
    with pytest.raises(EngineError, match="no valid engine record"):
        read_plans(plan.folder)
