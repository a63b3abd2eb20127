"""`vocabseg bench` as a user meets it: what it plans, says and writes, and how it ends."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.speed.cases import CASE, made_parity, made_report, made_variant
from tests.bundles import bundle_for_case
from vocabseg.benchmarks.speed import run as bench_run
from vocabseg.benchmarks.speed.results import VariantResult, encode_report, read_report
from vocabseg.benchmarks.speed.run import BenchmarkOutcome
from vocabseg.benchmarks.speed.selection import Benchmark
from vocabseg.cli import main

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command line: exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(["bench", *(str(argument) for argument in arguments)])
        output = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return stop.value.code, output.out, output.err

    return run


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[Benchmark]:
    """What would be measured; instead, the figures of a report by hand come back."""
    found: list[Benchmark] = []

    def measured(benchmark: Benchmark, progress: Any) -> BenchmarkOutcome:
        found.append(benchmark)
        assert all(image.is_file() for image in benchmark.images)
        progress("timing", 1, 2)
        variants = [made_variant(spec.name, parity=made_parity()) for spec in benchmark.variants]
        return BenchmarkOutcome(made_report(*variants, *benchmark.missing), [], benchmark.vocabulary.names)

    monkeypatch.setattr(bench_run, "run_benchmark", measured)
    return found


def test_defaults_and_what_is_written(run: Command, planned: list[Benchmark], tmp_path: Path) -> None:
    output = tmp_path / "report"
    code, out, err = run(
        bundle_for_case(CASE),
        "--engine",
        "openvino",
        "--precision",
        "float32",
        "--against",
        "onnxruntime, tensorrt",
        "--output",
        output,
    )
    assert code == 4, err
    assert err.splitlines()[-1].startswith("vocabseg: asked for and not measured: tensorrt: the package tensorrt")
    assert out.split() == [str(output / name) for name in ("bench.html", "bench.md", "bench.json")]
    assert err.startswith("Measuring c_r50_tiny16_vild on 4 images, 20 classes, with openvino, onnxruntime; the report")
    assert "Parity is measured against ONNX Runtime in float32, not the PyTorch reference: the weights were not" in err
    assert "Not measured: tensorrt: the package tensorrt is not installed" in err
    assert "  timing ..." in err
    assert "Latency, end to end" in err
    assert err.splitlines()[-2].startswith("openvino: ")
    assert "times as fast as onnxruntime" in err.splitlines()[-2]
    assert [image.name for image in planned[0].images] == ["photo.jpg", "scene-0.png", "scene-1.png", "scene-2.png"]
    assert not any(image.exists() for image in planned[0].images), "the scratch folder is left behind"
    report = read_report(output / "bench.json")
    assert [variant.name for variant in report.variants] == ["openvino", "onnxruntime", "tensorrt"]


def test_options_reach_the_benchmark(run: Command, planned: list[Benchmark], tmp_path: Path) -> None:
    options = ["--classes", "cat, sky", "--engine", "onnxruntime", "--repeat", 3, "--seconds", 9, "--batches", "2,8"]
    more = ["--precision", "float32,bfloat16", "--cold", 0, "--scenes", 7, "--set", "region.mask_threshold=0.7"]
    code, _, err = run(bundle_for_case(CASE), *options, *more, "--quiet", "-o", tmp_path / "report")
    assert code == 4
    assert err.startswith("vocabseg: asked for and not measured: onnxruntime bfloat16: the engine onnxruntime has no")
    benchmark = planned[0]
    assert benchmark.vocabulary.names == ("cat", "sky")
    assert [spec.name for spec in benchmark.variants] == ["onnxruntime"]
    assert [missing.name for missing in benchmark.missing] == ["onnxruntime bfloat16"]
    effort = benchmark.effort
    assert (effort.repeat, effort.seconds, effort.batches, effort.cold, effort.scenes) == (3, 9, (2, 8), 0, 7)
    assert benchmark.bundle.manifest.region.mask_threshold == 0.7
    assert benchmark.settings == ("region.mask_threshold=0.7",)


def test_a_precision_that_one_of_several_lacks_is_no_failure(
    run: Command, planned: list[Benchmark], tmp_path: Path
) -> None:
    options = ["--engine", "openvino", "--against", "onnxruntime", "--precision", "float32,bfloat16", "--limit", 2]
    code, _, err = run(bundle_for_case(CASE), *options, "-o", tmp_path / "report")
    assert code == 0, err
    assert "Not measured: onnxruntime bfloat16" in err
    assert len(planned[0].images) == 2, "--limit counts the images that come with the package, too"


def test_a_variant_that_failed_is_told_at_the_end(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = VariantResult(name="openvino", precision="float32", reason="it failed: it fell over")
    report = made_report(made_variant("onnxruntime"), failed)
    monkeypatch.setattr(bench_run, "run_benchmark", lambda *_: BenchmarkOutcome(report, [], ("a", "b", "c")))
    code, out, err = run(bundle_for_case(CASE), "--quiet", "-o", tmp_path / "report")
    assert (code, err) == (4, "vocabseg: asked for and not measured: openvino: it failed: it fell over\n")
    assert len(out.split()) == 3


@pytest.mark.parametrize(
    ("limit", "expected"), [("99%", 3), ("10", 3), ("150%", 0), ("10 percent", 2), ("-1%", 2), ("nan", 2)]
)
def test_a_slower_report_fails_where_that_was_asked(run: Command, tmp_path: Path, limit: str, expected: int) -> None:
    for name, seconds in (("old", 0.1), ("new", 0.2)):
        (tmp_path / f"{name}.json").write_bytes(encode_report(made_report(made_variant("onnxruntime", seconds))))
    code, _, err = run("--compare", tmp_path / "old.json", tmp_path / "new.json", "--fail-above", limit)
    assert code == expected
    if expected == 3:
        assert f"vocabseg: onnxruntime, end to end: 100.0 % slower, {limit.removesuffix('%')} % are allowed" in err
    assert run("--compare", tmp_path / "new.json", tmp_path / "old.json", "--fail-above", "0")[0] == 0
    assert run(bundle_for_case(CASE), "--fail-above", "10%")[0] == 2


def test_a_broken_contract_has_an_exit_code_of_its_own(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = made_report(made_variant("openvino", parity=made_parity(0.9)))
    monkeypatch.setattr(bench_run, "run_benchmark", lambda *_: BenchmarkOutcome(report, [], ("a", "b", "c")))
    code, out, err = run(bundle_for_case(CASE), "--quiet", "-o", tmp_path / "report")
    assert code == 3
    assert err == "vocabseg: parity is broken: openvino leaves its tolerance first in image_encoder\n"
    assert len(out.split()) == 3, "the report of a broken contract is the one that is needed"


def test_ctrl_c_leaves_nothing_half_written(run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any) -> BenchmarkOutcome:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench_run, "run_benchmark", stopped)
    code, out, err = run(bundle_for_case(CASE), "--quiet", "-o", tmp_path / "report")
    assert (code, out) == (130, "")
    assert "Traceback" not in err
    assert list((tmp_path / "report").iterdir()) == []


def test_two_reports_side_by_side(run: Command, tmp_path: Path) -> None:
    missing = VariantResult(name="openvino", precision="float32", reason="not here")
    for name, variant in (
        ("old", made_variant("onnxruntime")),
        ("new", made_variant("onnxruntime", 0.2)),
        ("no", missing),
    ):
        (tmp_path / f"{name}.json").write_bytes(encode_report(made_report(variant)))
    code, out, _ = run("--compare", tmp_path / "old.json", tmp_path / "new.json")
    assert code == 0
    row = next(line for line in out.splitlines() if "end to end" in line)
    assert row.split() == ["onnxruntime", "end", "to", "end", "100", "ms", "200", "ms", "2.000", "slower"]
    code, _, err = run("--compare", tmp_path / "old.json", tmp_path / "no.json")
    assert code == 2
    assert "no variant in common" in err
    code, _, err = run("--compare", tmp_path / "old.json", tmp_path / "nothing.json")
    assert code == 2
    assert "cannot read the report" in err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--against", "tensorflow"], "--against 'tensorflow': give some of torch-eager"),
        (["--classes", "cat|kitten, sky"], "class 'cat' has more than one name: bench compares with PyTorch"),
        (["--precision", "int3"], "--precision 'int3'"),
        (["--batches", "1,none"], "--batches '1,none': give whole numbers"),
        (["--config", "zsseg-r50-vitb16-vild"], "go with --checkpoint"),
        (["--checkpoint", "nothing.pth"], "there is no checkpoint nothing.pth"),
        (["--images", "nothing"], "there is no such folder"),
        (["--set", "input.nothing=1"], "no key 'nothing'"),
        (["--engine", "tensorflow"], "unknown engine"),
        (["--repeat", "0"], "--repeat"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_line(
    run: Command, planned: list[Benchmark], tmp_path: Path, options: list[str], told: str
) -> None:
    code, out, err = run(bundle_for_case(CASE), *options, "-o", tmp_path / "report")
    assert (code, out) == (2, "")
    assert told in err
    assert len(err.splitlines()) == 1
    assert not planned
    assert not (tmp_path / "report").exists()


def test_a_report_needs_a_folder(run: Command, planned: list[Benchmark], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = run(bundle_for_case(CASE), "-o", tmp_path / "file" / "report")
    assert code == 2
    assert "cannot make the folder" in err
    assert not planned
