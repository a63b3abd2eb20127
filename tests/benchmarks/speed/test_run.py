"""A whole benchmark on small work: variants that take turns, the pipeline's own labels, parity, failures."""

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from tests.benchmarks.speed.cases import CASE, SETTINGS, LocalWorker
from tests.bundles import bundle_for_case, copy_bundle_with
from tests.reference_cases import case_state_dict
from vocabseg.benchmarks.speed import machine, selection
from vocabseg.benchmarks.speed import run as bench_run
from vocabseg.benchmarks.speed.engine import EngineSpec, EngineVariant
from vocabseg.benchmarks.speed.flops import graph_work
from vocabseg.benchmarks.speed.pytorch import Weights
from vocabseg.benchmarks.speed.results import STAGES, BenchmarkReport, ImageInfo
from vocabseg.benchmarks.speed.roofline import stage_work
from vocabseg.benchmarks.speed.selection import (
    Effort,
    default_images,
    default_vocabulary,
    find_weights,
    images_in,
    make_benchmark,
)
from vocabseg.benchmarks.speed.variants import lead
from vocabseg.benchmarks.speed.workers import STEPS, VariantProcess, cold_start, numerical_threads
from vocabseg.export.configuration import load_configuration
from vocabseg.runtime.bundle.folder import Bundle
from vocabseg.runtime.bundle.settings import open_adjusted
from vocabseg.runtime.engines.interface import Choice
from vocabseg.runtime.errors import BundleError, ConfigurationError, EngineError, ImageError
from vocabseg.runtime.segmenter.segmenter import Segmenter
from vocabseg.runtime.text.vocabulary import Vocabulary

NAME = "zsseg-r50-vitb16-vild"
VOCABULARY = Vocabulary(["cat", "grass", "sky"], templates=["{}"])


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_adjusted(bundle_for_case(CASE), SETTINGS)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return default_images(tmp_path_factory.mktemp("images"))[1:3]  # scenes, in which few masks are found


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"model": dict(case_state_dict(CASE))}, path)
    return path


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> type[LocalWorker]:
    """Workers in this process, and a machine that is measured at once."""
    monkeypatch.setattr(machine, "SIDE", 64)
    monkeypatch.setattr(machine, "COPIED", 2**20)
    monkeypatch.setattr(LocalWorker, "calls", [], raising=False)
    return LocalWorker


def run(benchmark: Any, worker: Any) -> bench_run.BenchmarkOutcome:
    said: list[tuple[str, int, int]] = []
    outcome = bench_run.run_benchmark(benchmark, lambda *step: said.append(step), worker)
    assert all(0 <= done <= total for _, done, total in said)
    return outcome


def test_two_engines_take_turns(bundle: Bundle, images: list[Path], local: type[LocalWorker]) -> None:
    effort = Effort(repeat=2, batches=(3,), cold=0, names=2)
    benchmark = make_benchmark(
        bundle, VOCABULARY, images, "nobody gave them", "openvino", ["onnxruntime", "tensorrt"],
        ["float32"], SETTINGS, effort,
    )  # fmt: skip
    report = run(benchmark, local).report
    assert [(one.name, one.reason is None) for one in report.variants] == [
        ("openvino", True), ("onnxruntime", True), ("tensorrt", False),
    ]  # fmt: skip
    runs = [name for name, method in local.calls if method == "run"]
    assert Counter(runs) == {"openvino": 6, "onnxruntime": 6}  # a round to warm up and two more, on two images
    assert all(set(pair) == {"openvino", "onnxruntime"} for pair in zip(runs[::2], runs[1::2], strict=True))
    assert runs[::2] != ["openvino"] * 6, "one is always the first"
    assert report.rounds == 2
    for variant in report.variants[:2]:
        assert variant.total is not None
        assert variant.total.images == [0, 1, 0, 1]
        assert list(variant.stages) == list(STAGES)
        for number in range(4):
            stages = sum(timing.seconds[number] for timing in variant.stages.values())
            assert 0 < stages <= variant.total.seconds[number]
        assert [batch.images for batch in variant.batches] == [3]
        regions = [info.regions for info in report.images]
        batch = variant.batches[0]
        assert batch.regions_per_second * batch.timing.p50 == pytest.approx(2 * regions[0] + regions[1])
        assert variant.peak_host_bytes == 2**30
        assert variant.text is not None
        assert variant.text.per_thousand == pytest.approx(1000 * variant.text.timing.p50 / variant.text.names)
        assert [line.stage for line in variant.roof] == list(STAGES)
        assert all(line.floor > 0 for line in variant.roof)
    assert report.oracle == "onnxruntime"
    assert "nobody gave them" in report.oracle_reason
    assert report.variants[1].parity is None, "it is compared with itself"
    parity = report.variants[0].parity
    assert parity is not None
    assert parity.broken is None, parity
    assert report.machine["commit"]


def test_every_stage_of_the_observed_pipeline_gives_the_pipelines_labels(bundle: Bundle, images: list[Path]) -> None:
    spec = EngineSpec(bundle.folder, "onnxruntime", "float32", VOCABULARY, SETTINGS)
    variant, plain = spec.open(), Segmenter(bundle, engine="onnxruntime")
    for image in images:
        expected = plain(image, VOCABULARY)
        whole = variant.capture(image)
        alone = variant.capture_from(image, whole)
        for found in (variant.labels(image), whole.labels, alone.labels):
            np.testing.assert_array_equal(found, expected.labels)
        scores = np.sort(expected.class_scores(), axis=0)
        np.testing.assert_allclose(whole.margin, scores[-1] - scores[-2], atol=1e-6)
        assert len(whole.boxes) == whole.valid.sum() > 3
        assert whole.crops is not None
        assert whole.crops.shape == (len(whole.boxes), 3, 224, 224)
        assert variant.run(image).regions == len(whole.boxes)


def _against_reference(
    folder: Path, images: list[Path], checkpoint: Path, worker: Any, budget: tuple[str, ...] = ()
) -> BenchmarkReport:
    settings = (*SETTINGS, *budget)
    bundle = open_adjusted(folder, settings)
    weights = find_weights(bundle, checkpoint, NAME, None, settings)
    effort = Effort(repeat=1, batches=(), cold=0, names=0)
    benchmark = make_benchmark(
        bundle, Vocabulary(["cat", "grass"]), images[:1], weights, None, (), ["float32"], settings, effort
    )
    return run(benchmark, worker).report


def test_parity_with_the_reference_and_a_planted_break(
    images: list[Path], checkpoint: Path, local: type[LocalWorker], tmp_path: Path
) -> None:
    whole = bundle_for_case(CASE)
    report = _against_reference(whole, images, checkpoint, local)
    assert report.oracle == "torch-eager"
    assert report.broken == []
    parity = report.variants[0].parity
    assert parity is not None
    assert {check.stage for check in parity.checks} >= {"crop_regions", "image_encoder", "classify", "labels"}
    ensemble = open_adjusted(whole, SETTINGS).manifest.ensemble
    changed = type(ensemble)(enabled=True, weight=ensemble.weight, temperature=0.9 * ensemble.temperature)
    broken = copy_bundle_with(whole, whole.parent / f"{whole.name}-cool", ensemble=changed)
    assert _against_reference(broken, images, checkpoint, local).broken == [("openvino", "classify")]


def test_parity_is_that_of_the_published_method_and_what_a_region_budget_changes_is_told_beside_it(
    images: list[Path], checkpoint: Path, local: type[LocalWorker]
) -> None:
    whole, budget = bundle_for_case(CASE), ("region.max_regions=1",)
    report = _against_reference(whole, images, checkpoint, local, budget)
    assert report.region_budget == "max_regions=1"
    assert report.oracle_reason.endswith("; without the region budget")
    assert report.broken == []
    assert [(info.regions, info.crops) for info in report.images] == [(1, 1)]
    with_it, without = (
        EngineSpec(whole, "openvino", "float32", Vocabulary(["cat", "grass"]), (*SETTINGS, *more)).open()
        for more in (budget, ())
    )
    changed = np.mean(with_it.labels(images[0]) != without.labels(images[0]))
    assert report.variants[0].relabelled == pytest.approx(changed)
    assert 0 < changed < 1
    plain = _against_reference(whole, images, checkpoint, local)
    assert plain.variants[0].relabelled is None
    assert "budget" not in plain.oracle_reason


def test_what_a_region_budget_changes_is_told_without_a_reference_and_a_failure_without_it_too(
    images: list[Path], local: type[LocalWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (*SETTINGS, "region.max_regions=1")
    bundle = open_adjusted(bundle_for_case(CASE), settings)
    effort = Effort(repeat=1, batches=(), cold=0, names=0)
    alone = make_benchmark(bundle, VOCABULARY, images, "", "onnxruntime", settings=settings, effort=effort)
    report = run(alone, local).report
    assert report.oracle == "none"
    assert report.variants[0].relabelled is not None
    usual = EngineVariant.labels

    def fails(self: EngineVariant, image: Path) -> Any:
        if self.spec.engine == "openvino" and not self.segmenter.bundle.manifest.region.budgeted:
            raise EngineError("too many crops")
        return usual(self, image)

    monkeypatch.setattr(EngineVariant, "labels", fails)
    both = make_benchmark(bundle, VOCABULARY, images, "", "openvino", ["onnxruntime"], ["float32"], settings, effort)
    first, second = run(both, local).report.variants
    assert first.reason == "without the region budget, it failed: too many crops"
    assert second.relabelled is not None


def test_a_variant_that_fails_is_told_and_the_others_go_on(
    bundle: Bundle, images: list[Path], local: type[LocalWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = EngineVariant.run

    def fails(self: EngineVariant, image: Path) -> Any:
        if self.spec.engine == "openvino":
            raise EngineError("it fell over")
        return usual(self, image)

    monkeypatch.setattr(EngineVariant, "run", fails)
    effort = Effort(repeat=1, batches=(1,), cold=0, names=0)
    plain = (["float32"], SETTINGS, effort)
    both = make_benchmark(bundle, VOCABULARY, images, "", "openvino", ["onnxruntime"], *plain)
    first, second = run(both, local).report.variants
    assert first.reason == "it failed: it fell over"
    assert first.total is None
    assert second.total is not None
    alone = make_benchmark(bundle, VOCABULARY, images, "", "openvino", (), *plain)
    with pytest.raises(EngineError, match="openvino: it failed: it fell over"):
        run(alone, local)


def test_time_ends_the_rounds_but_the_first(bundle: Bundle, images: list[Path], local: type[LocalWorker]) -> None:
    effort = Effort(repeat=50, seconds=0, batches=(), cold=0, names=0)
    benchmark = make_benchmark(bundle, VOCABULARY, images, "", "onnxruntime", settings=SETTINGS, effort=effort)
    report = run(benchmark, local).report
    assert report.rounds == 1
    assert report.variants[0].total is not None
    assert report.variants[0].total.images == [0, 1]
    assert report.oracle == "none"


def test_without_a_precision_it_is_what_a_user_gets_and_float32(
    bundle: Bundle, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = Choice(name="openvino", device="cpu", precision="bfloat16", reason="")
    monkeypatch.setattr(selection, "choose", lambda *_: choice)
    benchmark = make_benchmark(bundle, VOCABULARY, images, "", against=["onnxruntime"])
    assert [spec.name for spec in benchmark.variants] == ["openvino bfloat16", "openvino", "onnxruntime"]
    assert benchmark.oracle is not None
    assert benchmark.oracle.name == "onnxruntime"


def test_precisions_and_names_that_do_not_exist(bundle: Bundle, images: list[Path]) -> None:
    benchmark = make_benchmark(
        bundle, VOCABULARY, images, "no", "onnxruntime", ["torch-eager"], ["float32", "bfloat16"]
    )
    assert [spec.name for spec in benchmark.variants] == ["onnxruntime"]
    reasons = {one.name: one.reason for one in benchmark.missing}
    assert reasons["torch-eager"] == "no"
    assert "no precision 'bfloat16'" in str(reasons["onnxruntime bfloat16"])
    with pytest.raises(ConfigurationError, match="--against 'tensorflow'"):
        make_benchmark(bundle, VOCABULARY, images, "", against=["tensorflow"])
    with pytest.raises(ConfigurationError, match="--precision 'int3'"):
        make_benchmark(bundle, VOCABULARY, images, "", precisions=["int3"])
    with pytest.raises(EngineError, match="nothing can run here"):
        make_benchmark(bundle, VOCABULARY, images, "", "onnxruntime", precisions=["bfloat16"])


def test_weights_that_belong_to_a_bundle(bundle: Bundle, checkpoint: Path, tmp_path: Path) -> None:
    def with_provenance(**provenance: Any) -> Bundle:
        return bundle.with_manifest(msgspec.structs.replace(bundle.manifest, provenance=provenance))

    assert "--checkpoint" in str(find_weights(with_provenance(weights="model.pth"), None, None, None, ()))
    configuration = load_configuration(NAME)
    drawn = with_provenance(weights="random: they know nothing", configuration=msgspec.to_builtins(configuration))
    assert find_weights(drawn, None, None, None, ()) == Weights(configuration, None)
    found = find_weights(drawn, None, None, None, ("region.mask_threshold=0.9",))
    assert isinstance(found, Weights)
    assert found.configuration.region.mask_threshold == 0.9
    with pytest.raises(ConfigurationError, match="is not the checkpoint"):
        find_weights(with_provenance(weights_sha256="0" * 64), checkpoint, NAME, None, ())
    with pytest.raises(ConfigurationError, match="needs --config"):
        find_weights(with_provenance(weights="model.pth"), checkpoint, None, None, ())
    with pytest.raises(ConfigurationError, match="no checkpoint"):
        find_weights(bundle, tmp_path / "nothing.pth", NAME, None, ())


def test_a_process_of_its_own(bundle: Bundle, images: list[Path]) -> None:
    spec = EngineSpec(bundle.folder, "onnxruntime", "float32", VOCABULARY, SETTINGS)
    with numerical_threads(1):
        assert os.environ["OPENBLAS_NUM_THREADS"] == "1"
        worker = VariantProcess(spec)
    worker.ready()
    assert worker.call("run", images[0]).regions == spec.open().run(images[0]).regions
    assert worker.call("memory") > 50e6
    with pytest.raises(ImageError, match="no such image file"):
        worker.call("run", images[0].with_name("nothing.png"))
    with pytest.raises(EngineError, match="AttributeError"):
        worker.call("no_such_method")
    worker._process.kill()
    with pytest.raises(EngineError, match=r"has ended|died \(exit code -9\)"):
        worker.call("memory")
    worker.close()
    lost = VariantProcess(EngineSpec(bundle.folder / "nowhere", "onnxruntime", "float32", VOCABULARY))
    with pytest.raises(BundleError, match="no bundle at"):
        lost.ready()
    lost.close()


def test_a_cold_start_has_its_steps(bundle: Bundle, images: list[Path]) -> None:
    spec = EngineSpec(bundle.folder, "onnxruntime", "float32", Vocabulary(["cat"]), SETTINGS)
    found = cold_start(spec, images[0], 1)
    assert tuple(found.steps) == STEPS
    assert all(value > 0 for value in found.steps.values())
    assert sum(found.steps.values()) == pytest.approx(found.timing.p50)
    with pytest.raises(EngineError, match=r"a fresh process failed: .*no such folder"):
        cold_start(replace(spec, folder=bundle.folder / "nowhere"), images[0], 1)


def test_work_of_a_stage_is_what_cannot_be_avoided(bundle: Bundle) -> None:
    few, many = (
        stage_work(bundle, ImageInfo(name="", size=(60, 80), padded=(64, 96), regions=regions), 1000, classes)
        for regions, classes in ((10, 5), (20, 500))
    )
    proposal = graph_work(bundle.graph_path("proposal"), {"image": (1, 3, 64, 96)})
    encoder = graph_work(bundle.graph_path("image_encoder"), {"crops": (1, 3, 224, 224)})
    assert few["proposal"].operations == many["proposal"].operations == proposal.operations
    assert few["proposal"].bytes == proposal.weight_bytes + 4 * (3 * 64 * 96 + 100 * 16 * 24 + 100 * 64)
    assert [one["image_encoder"].operations for one in (few, many)] == [
        10 * encoder.operations,
        20 * encoder.operations,
    ]
    shared = ImageInfo(name="", size=(60, 80), padded=(64, 96), regions=20, crops=10)
    assert stage_work(bundle, shared, 1000, 5)["image_encoder"] == few["image_encoder"]
    assert few["decode"].bytes == 1000 + 3 * 60 * 80
    assert few["compose"].operations == many["compose"].operations, "a class that cannot win needs no score"
    assert many["crop_regions"].operations == 2 * few["crop_regions"].operations


def test_images_of_ones_own(images: list[Path], bundle: Bundle, tmp_path: Path) -> None:
    assert [path.name for path in images_in(images[0].parent, 2)] == ["photo.jpg", "scene-0.png"]
    assert images_in(images[0], 5) == [images[0]]
    with pytest.raises(ImageError, match="holds no image"):
        images_in(tmp_path, 5)
    with pytest.raises(ImageError, match="no such folder"):
        images_in(tmp_path / "nothing", 5)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"bad\.png"):
        images_in(tmp_path, 5)
    assert len(default_vocabulary(bundle)) == 20


def test_the_margin_is_that_of_the_best_over_the_second() -> None:
    scores = np.array([[[0.1, 0.7]], [[0.6, 0.2]], [[0.5, 0.1]]], np.float32)
    np.testing.assert_allclose(lead(scores), [[0.1, 0.5]], atol=1e-6)
    assert np.isinf(lead(scores[:1])).all()
