"""Plans of TensorRT for RTX on the emulated GPU: how they run, what is kept between runs, which are refused."""

import warnings

import msgspec
import numpy as np
import pytest

from tests.doubles import tensorrt as tensorrt_double
from tests.doubles import tensorrt_rtx as rtx_double
from tests.doubles.tensorrt_cases import half_bundle, run_on_host
from tests.fake_driver.machine import installed
from vocabseg.export.tensorrt.builder import BuildOptions
from vocabseg.export.tensorrt.installer import build_engine, timing_cache
from vocabseg.export.tensorrt.profiles import choose_profiles
from vocabseg.export.tensorrt.target import open_target
from vocabseg.runtime.bundle.plans import RECORD
from vocabseg.runtime.cuda.device import open_device
from vocabseg.runtime.engines.choose import choose
from vocabseg.runtime.engines.tensorrt.graph import TensorRtGraph
from vocabseg.runtime.engines.tensorrt.jit import kernels_file
from vocabseg.runtime.engines.tensorrt.package import load_package
from vocabseg.runtime.engines.tensorrt.scratch import scratch_of
from vocabseg.runtime.errors import EngineError

GENERATIONS = ("sm86", "sm89")


@pytest.fixture
def device():
    with installed() as machine, rtx_double.installed():
        machine.major, machine.minor = 8, 9
        yield open_device(0)


@pytest.fixture
def bundle(tmp_path):
    return half_bundle(tmp_path / "demo")


def build(bundle, graph="image_encoder", generations=GENERATIONS):
    profiles = choose_profiles(bundle.manifest, bundle.manifest.graphs, ["image_encoder:crops=1,4,6"])[graph]
    target = open_target("tensorrt-rtx", 0, generations)
    return build_engine(bundle, graph, "float16", profiles, BuildOptions(), target)[0]


def open_encoder(bundle, device):
    return TensorRtGraph(bundle, "image_encoder", "float16", device, scratch_of(device), load_package("tensorrt-rtx"))


class Run:
    """Runs the image encoder on the same arrays each time, so that its work can be captured."""

    def __init__(self, graph, device, bundle, count=2):
        self.graph, self.stream, self.bundle = graph, device.stream(), bundle
        self.crops = device.empty((count, 3, 64, 64), np.float16)
        width = bundle.graph("image_encoder").outputs[0].shape[1]
        self.features = device.empty((count, width), np.float16)

    def __call__(self, seed):
        given = np.random.default_rng(seed).normal(size=self.crops.shape).astype(np.float16)
        self.stream.upload(self.crops, given)
        self.graph.run({"crops": self.crops}, {"image_features": self.features}, self.stream)
        expected = run_on_host(self.bundle, "image_encoder", "float16", {"crops": given})["image_features"]
        np.testing.assert_array_equal(self.features.to_host(self.stream), expected)


def test_a_plan_is_built_for_generations_without_a_gpu_and_without_timings(bundle):
    with rtx_double.installed():  # no emulated GPU
        plan = build(bundle)
        assert timing_cache(open_target("tensorrt-rtx", 0, GENERATIONS)) is None
    assert plan.folder.name == "rtx-sm86-sm89"
    record = plan.record
    assert (record.engine, record.tensorrt, record.generations) == ("tensorrt-rtx", "1.7.1.116", [(8, 6), (8, 9)])
    assert (record.gpu, record.compute_capability, record.driver) == ("", (0, 0), "")
    assert record.flags == ["REQUIRE_USER_ALLOCATION", "RUNTIME_ACTIVATION_RESIZE_10_10", "STRONGLY_TYPED"]
    assert tensorrt_double.seen["generations"] == ["SM86", "SM89"]


def test_a_plan_gives_what_its_graph_gives_captured_after_the_first_run(bundle, device):
    build(bundle)
    run = Run(open_encoder(bundle, device), device, bundle)
    for seed in range(4):
        run(seed)
    assert len(tensorrt_double.seen["enqueued"]) == 1
    assert len(tensorrt_double.seen["captured"]) == 1
    assert tensorrt_double.seen["host code"] == [False]


def test_a_model_that_cannot_be_captured_runs_without_and_says_so_once(bundle, device):
    build(bundle)
    run = Run(open_encoder(bundle, device), device, bundle)
    tensorrt_double.faults["not capturable"] = True
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for seed in range(5):
            run(seed)
    assert [str(warning.message) for warning in told] == [
        "image_encoder runs without CUDA graphs, which is slower: TensorRT for RTX cannot capture this model"
    ]
    assert len(tensorrt_double.seen["enqueued"]) == 5


def test_compiled_kernels_are_kept_for_the_next_process(bundle, device):
    plan = build(bundle)
    path = kernels_file(load_package("tensorrt-rtx").info, plan, device)
    Run(open_encoder(bundle, device), device, bundle)(0)
    assert path.read_bytes() == rtx_double.CACHE + bytes(1)
    assert path.parent.name == "tensorrt-rtx"
    graph = open_encoder(bundle, device)
    assert tensorrt_double.seen["cache"] == [rtx_double.CACHE + bytes(1)]
    Run(graph, device, bundle, 3)(1)  # another shape: more kernels
    assert path.read_bytes() == rtx_double.CACHE + bytes(2)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"of another driver"])
def test_kernels_that_cannot_be_read_are_compiled_again(bundle, device, content):
    path = kernels_file(load_package("tensorrt-rtx").info, build(bundle), device)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    Run(open_encoder(bundle, device), device, bundle)(0)
    assert path.read_bytes() == rtx_double.CACHE + bytes(1)


def test_without_a_cache_folder_nothing_is_kept(bundle, device, monkeypatch):
    monkeypatch.setenv("VOCABSEG_CACHE_DIR", "")
    plan = build(bundle)
    assert kernels_file(load_package("tensorrt-rtx").info, plan, device) is None
    Run(open_encoder(bundle, device), device, bundle)(0)


# Which plans are refused


def refused(bundle, device, *texts):
    with pytest.raises(EngineError) as caught:
        open_encoder(bundle, device)
    message = str(caught.value)
    for text in (*texts, f"`vocabseg build {bundle.folder} --precision fp16 --engine tensorrt-rtx`"):
        assert text in message
    assert "\n" not in message


def test_a_plan_for_another_generation_is_refused(bundle, device):
    build(bundle, generations=("sm80", "sm120"))
    refused(bundle, device, "it is for compute capability 8.0, 12.0, NVIDIA Emulated 100 has 8.9")


def test_a_plan_of_another_version_is_refused(bundle, device):
    build(bundle)
    with rtx_double.installed(version="1.8.0.1"):
        refused(bundle, device, "it was built with TensorRT for RTX 1.7.1.116, installed is 1.8.0.1")


def test_a_plan_with_one_byte_changed_is_refused(bundle, device):
    plan = build(bundle)
    data = bytearray(plan.path.read_bytes())
    data[len(data) // 2] ^= 1
    plan.path.write_bytes(data)
    refused(bundle, device, "does not match its SHA-256")
    assert "host code" not in tensorrt_double.seen


def test_what_the_plans_header_says_is_asked_before_it_is_opened(bundle, device, monkeypatch):
    build(bundle)
    monkeypatch.setattr(tensorrt_double.Runtime, "deserialize_cuda_engine", None)
    tensorrt_double.faults["validity"] = 2 | 4
    refused(
        bundle, device, "cannot run engines/rtx-sm86-sm89/image_encoder-float16.plan here (unsupported cc, old cuda"
    )


def test_a_plan_of_tensorrt_is_none_of_tensorrt_for_rtx(bundle, device):
    plan = build(bundle)
    record = msgspec.json.decode((plan.folder / RECORD).read_bytes())
    del record["plans"][0]["engine"]  # as records were written before there was a choice
    (plan.folder / RECORD).write_bytes(msgspec.json.encode(record))
    refused(bundle, device, "has no TensorRT for RTX plan of image_encoder in float16")


# Which engine is chosen


def test_plans_are_chosen_where_they_fit_this_gpu(bundle, device):
    for graph in ("proposal", "image_encoder"):
        build(bundle, graph)
    choice = choose(device="cuda", bundle=bundle)
    assert (choice.name, choice.precision, choice.variant) == ("tensorrt-rtx", "float16", "float16")
    assert "TensorRT cannot run it here" in choice.reason
    for precision, graphs in (("int8", "int8-float16"), ("fp8", "fp8-float16"), ("bfloat16", "bfloat16")):
        assert msgspec.structs.replace(choice, precision=precision).variant == graphs
