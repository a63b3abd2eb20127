"""`vocabseg build`, as a user types it: FP16 graphs on any machine, engines where TensorRT and a GPU are."""

import json
import os
import shutil
import sys
from importlib.util import find_spec

import pytest

from tests.doubles import tensorrt as tensorrt_double
from tests.doubles.tensorrt_cases import half_bundle
from tests.fake_driver.machine import installed
from vocabseg import cli
from vocabseg.runtime.bundle.folder import demo_folder, open_bundle
from vocabseg.runtime.bundle.plans import ENGINES, RECORD, read_plans
from vocabseg.runtime.cuda.device import open_device
from vocabseg.runtime.engines.tensorrt.graph import TensorRtGraph
from vocabseg.runtime.engines.tensorrt.package import load_package
from vocabseg.runtime.engines.tensorrt.scratch import scratch_of


def run(capsys, *arguments):
    """Exit code, standard output and standard error of `vocabseg build`."""
    with pytest.raises(SystemExit) as exit_:
        cli.main(["build", *map(str, arguments)])
    captured = capsys.readouterr()
    return exit_.value.code, captured.out, captured.err


@pytest.fixture
def folder(tmp_path):
    """A bundle without FP16 graphs."""
    return shutil.copytree(demo_folder(), tmp_path / "demo")


@pytest.fixture
def half(tmp_path):
    return half_bundle(tmp_path / "demo").folder


@pytest.fixture
def gpu():
    with installed(), tensorrt_double.installed():
        yield


@pytest.fixture
def no_gpu():
    with tensorrt_double.installed("none of them"):
        yield


def test_without_tensorrt_the_fp16_graphs_are_made_and_the_rest_is_told(folder, capsys, no_gpu):
    code, out, err = run(capsys, folder)
    assert (code, out) == (0, f"{folder}\n")
    assert "No engines were built: TensorRT is not installed: pip install tensorrt" in err
    assert "The FP16 graphs are in the bundle, ready for ONNX Runtime on a GPU." in err
    assert "graphs/float16/proposal.onnx" in err
    assert "operations stay in float32" in err
    bundle = open_bundle(folder)
    assert bundle.manifest.variants["float16"].keys() == bundle.manifest.graphs.keys()
    assert not (folder / ENGINES).exists()


def test_graphs_that_are_there_are_not_made_again(half, capsys, no_gpu):
    before = (half / "manifest.json").read_bytes()
    code, _, err = run(capsys, half)
    assert code == 0
    assert "has its FP16 graphs already" in err
    assert (half / "manifest.json").read_bytes() == before


def test_graphs_made_from_others_are_made_again(half, capsys, no_gpu):
    manifest = json.loads((half / "manifest.json").read_text())
    manifest["variants"]["float16"]["text_encoder"]["provenance"]["made_from"] = "0" * 64
    (half / "manifest.json").write_text(json.dumps(manifest))
    _, out, _ = run(capsys, half, "--dry-run")
    assert out.startswith("FP16 graphs to make: text_encoder\n")
    assert run(capsys, half)[0] == 0
    bundle = open_bundle(half)
    assert bundle.graph("text_encoder", "float16").provenance["made_from"] == bundle.graph("text_encoder").digest()


def test_with_tensorrt_every_engine_is_built_and_can_be_opened(folder, capsys, gpu):
    code, out, err = run(capsys, folder, "--profile", "image_encoder:crops=1,2,3")
    assert (code, out) == (0, f"{folder}\n")
    for name in ("proposal", "image_encoder", "text_encoder"):
        assert f"engines/nvidia-emulated-100-sm90/{name}-float16.plan" in err
    assert "building proposal: 50 %, about" in err
    bundle, device = open_bundle(folder), open_device(0)
    assert (
        TensorRtGraph(bundle, "image_encoder", "float16", device, scratch_of(device), load_package()).largest_batch == 3
    )


def test_only_some_engines_with_options(half, capsys, gpu):
    options = (
        "--graphs",
        "text_encoder",
        "--level",
        1,
        "--workspace",
        2,
        "--lean",
        "--hardware-compatible",
        "ampere-plus",
    )
    assert run(capsys, half, *options)[0] == 0
    (plan,) = read_plans(half / ENGINES / "nvidia-emulated-100-sm90")
    record = plan.record
    assert (record.graph, record.optimization_level, record.workspace_bytes) == ("text_encoder", 1, 2_000_000_000)
    assert (record.version_compatible, record.hardware_compatibility) == (True, "ampere-plus")


def test_engines_in_float32(half, capsys, gpu):
    assert run(capsys, half, "--precision", "fp32", "--graphs", "text_encoder", "-q")[0] == 0
    (plan,) = read_plans(half / ENGINES / "nvidia-emulated-100-sm90")
    assert plan.record.graph_digest == open_bundle(half).graph("text_encoder").digest()


def test_a_dry_run_shows_everything_and_changes_nothing(folder, capsys, gpu):
    before = sorted(path for path in folder.rglob("*"))
    code, out, _ = run(capsys, folder, "--dry-run", "--profile", "image_encoder:crops=1,2,3", "--lean")
    assert code == 0
    assert out == (
        "FP16 graphs to make: proposal, image_encoder, text_encoder\n"
        "engines/nvidia-emulated-100-sm90/proposal-float16.plan\n"
        "    image 1x3x32x192 .. 1x3x192x640, tuned for 1x3x192x256\n"
        "    image 1x3x192x32 .. 1x3x640x192, tuned for 1x3x256x192\n"
        "engines/nvidia-emulated-100-sm90/image_encoder-float16.plan\n"
        "    crops 1x3x64x64 .. 3x3x64x64, tuned for 2x3x64x64\n"
        "engines/nvidia-emulated-100-sm90/text_encoder-float16.plan\n"
        "    token_ids 1x24 .. 256x24, tuned for 64x24\n"
        "    eot_index 1 .. 256, tuned for 64\n"
        "Level 3, version-compatible\n"
        "With TensorRT 11.4.0.106 on NVIDIA Emulated 100 (nvidia-emulated-100-sm90)\n"
    )
    assert sorted(path for path in folder.rglob("*")) == before


def test_a_dry_run_without_tensorrt(half, capsys, no_gpu):
    code, out, _ = run(capsys, half, "--dry-run")
    assert code == 0
    assert "engines/<device>/proposal-float16.plan" in out
    assert "No engines can be built here: TensorRT is not installed" in out


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--precision", "fp4"], "--precision 'fp4' is unknown: did you mean fp"),
        (["--precision", "int8"], "vocabseg calibrate"),
        (["--profile", "crops=3"], "cannot be read: write GRAPH:INPUT=MIN,OPT,MAX"),
        (["--graphs", "proposals"], "no such graph; did you mean proposal"),
        (["--level", "7"], "the optimisation level is 7: give 0 to 5"),
        (["--workspace", "0"], "give at least 1 MB"),
        (["--hardware-compatible", "ampere"], "'ampere' is unknown: did you mean ampere-plus"),
        (["--device", "gpu"], "device 'gpu' is not supported"),
        (["--device", "cpu"], "--device cpu: plans are built on a GPU"),
        (["--recipe", "none.toml"], "none.toml"),
        (
            ["--precision", "fp32", "--recipe", "r.toml"],
            "--recipe says what stays in float32",
        ),
    ],
)
def test_bad_use_is_one_line_and_changes_nothing(half, capsys, no_gpu, options, text):
    before = sorted((path, path.stat().st_mtime_ns) for path in half.rglob("*"))
    code, out, err = run(capsys, half, *options)
    assert (code, out) == (2, "")
    assert text in err.splitlines()[-1]
    assert sorted((path, path.stat().st_mtime_ns) for path in half.rglob("*")) == before


def test_nothing_is_built_into_the_installed_package(capsys, gpu):
    before = sorted(demo_folder().rglob("*"))
    for precision in ("fp16", "fp32"):
        code, _, err = run(capsys, demo_folder(), "--precision", precision)
        assert code == 2
        assert "is the built-in demo model" in err.splitlines()[-1]
    assert sorted(demo_folder().rglob("*")) == before


def test_a_bundle_that_is_not_there(tmp_path, capsys):
    code, _, err = run(capsys, tmp_path / "nothing")
    assert code == 2
    assert "no bundle at" in err


def test_a_build_that_fails_keeps_what_was_built(half, capsys, gpu):
    assert run(capsys, half, "--graphs", "text_encoder")[0] == 0
    tensorrt_double.faults["build"] = "Error Code 10: no implementation"
    code, _, err = run(capsys, half)
    assert code == 2
    assert "TensorRT cannot build proposal.onnx: Error Code 10: no implementation" in err
    folder = half / ENGINES / "nvidia-emulated-100-sm90"
    assert sorted(path.name for path in folder.iterdir()) == [RECORD, "text_encoder-float16.plan"]


# With NVIDIA's own builder of TensorRT for RTX, which needs no GPU.


@pytest.fixture
def genuine():
    if find_spec("tensorrt_rtx_bindings") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no genuine builder: pip install 'vocabseg[rtx]'")


def test_without_a_gpu_plans_are_built_for_generations_and_explained(folder, capsys, genuine):
    report = folder.parent / "report"
    options = ("--engine", "tensorrt-rtx", "--gpus", "sm89,sm86", "--graphs", "image_encoder", "--explain")
    code, out, err = run(capsys, folder, *options, "--report", report)
    assert code == 0
    (plan,) = read_plans(folder / ENGINES / "rtx-sm86-sm89")
    assert plan.path.read_bytes().startswith(b"vtrt")
    assert (plan.record.engine, plan.record.generations) == ("tensorrt-rtx", [(8, 6), (8, 9)])
    assert out.splitlines()[-1] == str(folder)
    assert "image_encoder float16: kernels in the order in which they run" in out
    rows = [line.split() for line in out.splitlines()]
    assert ["product", "FP16", "stages.0.0.conv1", "Conv_332,", "relu_3"] in rows
    assert "With TensorRT for RTX 1.7.1.116 for sm86, sm89" in err
    rows = [line.split() for line in err.splitlines()]
    (summary,) = (row for row in rows if row[:1] == ["image_encoder"] and len(row) > 7)
    assert summary[3:5] == ["22", "FP16"]
    assert summary[5] == "1"  # the fused attention of the pooling
    kernels = json.loads((report / "plans.json").read_text())["plans"][0]["kernels"]
    assert len(kernels) > 30
    assert (report / "plans.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--gpus", "sm89"], "--gpus goes with --engine tensorrt-rtx"),
        (["--engine", "openvino"], "--engine 'openvino' is unknown: use one of tensorrt, tensorrt-rtx"),
        (["--engine", "tensorrt-rtx", "--gpus", "sm90"], "does not build for sm90"),
        (["--engine", "tensorrt-rtx", "--gpus", "sm86", "--precision", "fp8"], "sm86 has no kernels in fp8"),
        (["--engine", "tensorrt-rtx", "--lean"], "--version-compatible is of --engine tensorrt"),
    ],
)
def test_what_tensorrt_for_rtx_cannot_build_is_told_first(half, capsys, options, text):
    code, out, err = run(capsys, half, *options)
    assert (code, out) == (2, "")
    assert text in err.splitlines()[-1]
    assert not (half / ENGINES).exists()


def test_a_dry_run_for_generations(half, capsys, genuine):
    code, out, _ = run(capsys, half, "--engine", "tensorrt-rtx", "--dry-run", "--precision", "bf16")
    assert code == 0
    assert out.startswith("bfloat16 graphs to make: proposal, image_encoder, text_encoder\n")
    assert "engines/rtx-sm80-sm86-sm89-sm120/proposal-bfloat16.plan" in out
    assert "for sm80, sm86, sm89, sm120 and this version alone" in out


def test_without_the_package_the_graphs_are_made_and_the_rest_is_told(folder, capsys, no_gpu):
    code, _, err = run(capsys, folder, "--engine", "tensorrt-rtx", "--precision", "bf16")
    assert code == 0
    assert "No engines were built: TensorRT for RTX is not installed: pip install 'vocabseg[rtx]'" in err
    assert open_bundle(folder).manifest.variants["bfloat16"].keys() == open_bundle(folder).manifest.graphs.keys()


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit):
        cli.main(["build", "--help"])
    assert "vocabseg build my-bundle --precision fp16" in capsys.readouterr().out


def test_nothing_of_a_gpu_is_imported_to_show_help(capsys):
    with pytest.raises(SystemExit):
        cli.main(["build", "--help"])
    assert not {"tensorrt", "pycuda.driver"} & set(sys.modules)
