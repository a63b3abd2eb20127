"""The script for a GPU host, as a machine without a GPU can tell: steps, budget, results, parts and pages."""

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import time
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.fake_driver.build import MissingError, environment
from tests.fake_driver.machine import skip
from tests.golden import REPOSITORY
from tools import gpu_host, gpu_page, gpu_parts
from tools.gpu_host import Host, Step

SCRIPT = REPOSITORY / "tools" / "gpu_host.py"
ON_GPU = REPOSITORY / "tests" / "runtime" / "segmenter" / "test_on_gpu.py"


def options(folder: Path, **given: object) -> argparse.Namespace:
    for name in ("parts", "work", "results"):
        (folder / name).mkdir(exist_ok=True)
    usual = {"budget": gpu_host.USUAL, "bundle": None, "only": set(), "rehearse": False}
    return argparse.Namespace(**{name: folder / name for name in ("parts", "work", "results")}, **{**usual, **given})


def script(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)


def results(host: Host) -> dict[str, dict]:
    found = json.loads(host.page.with_suffix(".json").read_text())
    return {step["name"]: step for step in found["steps"]}


def test_a_dry_run_prints_every_step_and_does_nothing(tmp_path: Path) -> None:
    done = script("--parts", tmp_path, "--work", tmp_path / "w", "--results", tmp_path / "r", "--dry-run")
    assert done.returncode == 0, done.stderr
    for name in ("machine", "install", "doctor", "tests", "kernels", "demo-torch", "memcheck", "torch", "bench"):
        assert f"\n{name} (" in "\n" + done.stdout
    assert not any((tmp_path / "r").glob("*.md"))
    unknown = script("--parts", tmp_path, "--work", tmp_path / "w", "--results", tmp_path / "r", "--only", "nonsense")
    assert (unknown.returncode, "no step nonsense" in unknown.stdout) == (2, True)
    assert "is not a folder: make it with tools/pack_gpu.sh" in script("--parts", tmp_path / "no").stderr


def test_what_the_steps_run_is_there(tmp_path: Path) -> None:
    """Files, modules, options, and the expressions that choose the tests; the shares fill the budget."""
    steps = gpu_host.plan(options(tmp_path))
    for step in steps:
        for part in step.command:
            if part.startswith(("tests/", "benchmarks/")):
                assert (REPOSITORY / part).exists(), part
            if part.startswith("vocabseg."):
                assert find_spec(part) is not None, part
        assert all(step.needs in ("", *(one.name for one in steps[:k])) for k, step in enumerate(steps))
    here = [step for step in steps if not step.name.startswith(("build-", "tensorrt"))]
    assert (
        sum(step.share for step in here if not step.beside) <= gpu_host.USUAL + 120
    )  # what fails early leaves its share
    chosen = {"memcheck": "test_regions_of_many_images_in_one_call", "tests-pipeline": "test_one_image"}
    for name, test in chosen.items():
        command = next(step.command for step in steps if step.name == name)
        command = [sys.executable, *command[command.index("-m") :], "--collect-only"]
        variables = os.environ | {"PYTEST_ADDOPTS": ""}  # -v would list them in another form
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY, env=variables)
        found = done.stdout
        assert f"::{test}" in found
        assert ("test_plans_built" in found) == (name == "tests-pipeline" and find_spec("tensorrt_rtx") is not None)


def test_every_step_s_end_is_kept_and_stops_no_other(tmp_path: Path) -> None:
    host = Host(options(tmp_path), time.monotonic())
    figure = {"name": "latency", "value": 7.0, "unit": "ms", "target": 5.0, "most": True}
    (tmp_path / "work" / "f.json").write_text(json.dumps([figure]))
    python = [sys.executable, "-c"]
    host.run(Step("good", [*python, "print('all | well')"], 60, figures=tmp_path / "work" / "f.json"))
    assert results(host)["good"] | {"seconds": 0} == {
        "name": "good", "state": "passed", "seconds": 0, "note": "all | well", "tail": ""
    }  # fmt: skip
    host.run(Step("bad", [*python, "import os; print(os.environ['PYTHONPATH']); raise SystemExit('no')"], 60))
    host.run(Step("lost", ["no-such-command"], 60))
    host.run(Step("left out", [], 60, skip="its package is missing"))
    states = {name: (step["state"], step["note"]) for name, step in results(host).items()}
    assert states["bad"] == ("failed", "no")
    assert results(host)["bad"]["tail"].startswith(str(tmp_path / "work" / "site"))
    assert states["lost"] == ("failed", "[Errno 2] No such file or directory: 'no-such-command'")
    assert states["left out"] == ("skipped", "its package is missing")
    text = host.page.read_text()
    assert "| latency | 7 | ms | at most 5, missed |" in text
    assert "| good | passed | 0 | all \\| well |" in text


def test_the_budget_is_shared_and_kept(tmp_path: Path) -> None:
    """Steps end with their share and what others left; one beside others is waited for, and ends with the budget."""
    slow = ["bash", "-c", "echo begun; sleep 60 & wait"]
    begin = time.monotonic()
    host = Host(options(tmp_path, budget=9), begin)
    share = gpu_host.USUAL / 9  # a second
    host.run(Step("beside", ["bash", "-c", "sleep 1; echo made"], 60 * share, beside=True))
    assert results(host)["beside"]["state"] == "begun"
    host.run(Step("short", slow, share / 2))
    assert results(host)["short"]["state"] == "out of time"
    assert results(host)["short"]["note"] == "begun"
    host.run(Step("user", ["true"], 3 * share, needs="beside"))
    assert results(host)["beside"]["note"] == "made"
    host.run(Step("user of a failure", ["true"], share, needs="short"))
    assert results(host)["user of a failure"]["note"] == "short out of time"
    if time.monotonic() - begin < 4:  # on a busy machine the budget is already used up here
        host.run(Step("rest", slow, 20 * share))
        assert results(host)["rest"]["state"] == "out of time"
    host.run(Step("late", ["true"], share))
    assert results(host)["late"]["state"] == "skipped"
    assert results(host)["late"]["note"].endswith("s of the budget are left")
    assert time.monotonic() - begin < 30


def packed(folder: Path, name: str, files: dict[str, bytes], pieces: int) -> None:
    """An archive as tools/pack_gpu.sh makes it."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:xz") as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    data, size = whole.getvalue(), -(-len(whole.getvalue()) // pieces)
    for k in range(pieces):
        (folder / (f"{name}.{k:02}" if pieces > 1 else name)).write_bytes(data[k * size : (k + 1) * size])


def test_parts_are_unpacked_once_and_what_the_host_has_is_left_alone(tmp_path: Path) -> None:
    def wheel(name: str) -> bytes:
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w") as archive:
            archive.writestr(f"{name}/__init__.py", "")
            archive.writestr(f"{name}-1.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
            archive.writestr(
                f"{name}-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            archive.writestr(f"{name}-1.dist-info/RECORD", "")
        return target.getvalue()

    parts, work = options(tmp_path).parts, tmp_path / "work"
    wheels = {f"wheels/{name}-1-py3-none-any.whl": wheel(name) for name in ("numpy", "carried_package")}
    packed(parts, "1-host.tar.xz", wheels, 3)
    packed(parts, "2-onnxruntime.tar.xz", {"site/onnxruntime/capi/libonnxruntime_providers_cuda.so": b"x"}, 1)
    assert gpu_parts.packages(parts, work)["onnxruntime-gpu"]
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, REPOSITORY / "tools" / "gpu_parts.py", parts, work],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "2 parts (1-host.tar.xz, 2-onnxruntime.tar.xz)" in done.stdout
        assert (work / "site" / "onnxruntime" / "capi" / "libonnxruntime_providers_cuda.so").read_bytes() == b"x"
        assert (work / "site" / "carried_package").is_dir()
        assert not (work / "site" / "numpy").exists()
        (work / "wheels" / "numpy-1-py3-none-any.whl").unlink(missing_ok=True)  # a second time nothing is unpacked
    (work / "site" / "onnxruntime").rename(work / "site" / "away")
    assert not gpu_parts.packages(work, work)["tensorrt"]


def test_a_page_has_every_kernel_beside_its_target() -> None:
    figures = json.loads((REPOSITORY / "benchmarks" / "results" / "2026-11-28-h200.json").read_text())
    about = {"gpu": "NVIDIA H200", "date": "2026-11-28", "python": "3.12.3", "steps": []}
    text = gpu_page.page({**about, "figures": {"kernels": figures["kernels"], "bench": {}}})
    assert "| region_boxes | 45.4 | 3.8 | 40, missed |" in text
    assert "| resize_normalize | 11.5 | 1.6 |  |" in text
    assert "| PyTorch's loop over the regions, which crop_regions replaces | 7731 | | |" in text
    assert "The report is bench.md" in text


def test_a_rehearsal_runs_tests_and_pipeline_over_the_fake_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        for name, value in environment(onnxruntime=False).items():
            monkeypatch.setenv(name, value)
    except MissingError as error:
        skip(error)
    given = options(tmp_path)
    done = script("--rehearse", "--parts", given.parts, "--work", given.work, "--results", given.results)
    states = {step["name"]: step for step in json.loads(next(given.results.glob("*.json")).read_text())["steps"]}
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("install", "doctor", "tests", "demo-torch"):
        assert states[name]["state"] == "passed", states[name]
    assert " passed" in states["tests"]["note"]
    assert "skipped" not in states["tests"]["note"]
    assert "| labels as onnxruntime on the CPU | 1 | of the pixels | at least 0.9999 |" in done.stdout
