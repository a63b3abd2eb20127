"""Statistics, files, comparison, tables and the page, on reports made by hand."""

import io
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from rich.console import Console

from tests.benchmarks.speed.cases import made_parity, made_report, made_variant
from vocabseg.benchmarks.accuracy.metrics import ConfusionMatrix
from vocabseg.benchmarks.page.charts import tolerance_used
from vocabseg.benchmarks.page.compare import compare, compare_table, warnings
from vocabseg.benchmarks.page.html import to_page
from vocabseg.benchmarks.page.output import print_report, print_tables, to_markdown, write_report
from vocabseg.benchmarks.page.tables import amount, product_unit, seconds, verdict
from vocabseg.benchmarks.scenes.world import CLASSES
from vocabseg.benchmarks.speed import machine
from vocabseg.benchmarks.speed.parity import scene_accuracy
from vocabseg.benchmarks.speed.results import Check, ImageInfo, Peaks, VariantResult, encode_report, read_report, timing
from vocabseg.benchmarks.speed.roofline import StageWork, rooflines
from vocabseg.benchmarks.speed.run import BenchmarkOutcome, WorstImage
from vocabseg.runtime.errors import ConfigurationError, OutputError

WORDS = ("<none>", "cat & dog", "grass")


def outcome(folder: Path) -> BenchmarkOutcome:
    """Two variants that were measured, the second with broken parity, and one that was not there."""
    from PIL import Image

    missing = VariantResult(name="tensorrt", precision="float32", reason="the package <tensorrt> is not installed")
    report = made_report(made_variant("openvino"), made_variant("torch-compile", 0.2, parity=made_parity(0.9)), missing)
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (30, 40, 3)).astype(np.uint8)).save(folder / "photo.png")
    labels = random.integers(0, 3, (30, 40))
    worst = WorstImage("torch-compile", folder / "photo.png", 0.75, labels, (labels + (labels == 0)) % 3)
    return BenchmarkOutcome(report, [worst], WORDS)


def test_statistics_take_the_images_out_of_the_spread() -> None:
    found = timing([1.0, 10.0, 1.1, 10.1, 1.2, 10.2], [0, 1, 0, 1, 0, 1])
    assert found.p50 == pytest.approx(5.6)
    assert found.p99 == pytest.approx(np.percentile([1.0, 10.0, 1.1, 10.1, 1.2, 10.2], 99))
    assert found.spread == pytest.approx(0.15)
    assert timing([1.0, 10.0, 1.1, 10.1, 1.2, 10.2]).spread > 8
    with pytest.raises(ValueError, match="no run"):
        timing([])


def test_a_report_is_read_back_as_it_was(tmp_path: Path) -> None:
    report = outcome(tmp_path).report
    path = tmp_path / "bench.json"
    path.write_bytes(encode_report(report))
    assert read_report(path) == report
    assert report.broken == [("torch-compile", "image_encoder")]


def test_reports_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    with pytest.raises(ConfigurationError, match="no such file"):
        read_report(path)
    path.write_text("{}")
    with pytest.raises(ConfigurationError, match="no report of `vocabseg bench`"):
        read_report(path)
    path.write_bytes(encode_report(made_report(version=99)))
    with pytest.raises(ConfigurationError, match="version 99"):
        read_report(path)


def test_a_planted_slowdown_is_marked_and_noise_is_not() -> None:
    old = made_report(made_variant("openvino", 0.100), made_variant("onnxruntime", 0.100), made_variant("gone"))
    new = made_report(made_variant("openvino", 0.105), made_variant("onnxruntime", 0.130), made_variant("fresh"))
    found = {(one.variant, one.what): one for one in compare(old, new)}
    assert {variant for variant, _ in found} == {"openvino", "onnxruntime"}
    assert found["openvino", "end to end"].mark == ""
    slow = found["onnxruntime", "end to end"]
    assert (slow.mark, slow.ratio) == ("slower", pytest.approx(1.3))
    assert found["onnxruntime", "proposal"].mark == ""  # 30 ms to 39 ms: less than it varies
    assert found["onnxruntime", "batch of 4"].mark == "slower"
    back = {(one.variant, one.what): one.mark for one in compare(new, old)}
    assert back["onnxruntime", "end to end"] == "faster"
    table = compare_table(old, new)
    assert [table.rows[index][:2] for index in table.marked] == [
        ["onnxruntime", "end to end"], ["onnxruntime", "image_encoder"], ["onnxruntime", "batch of 4"],
    ]  # fmt: skip


def test_two_runs_are_too_few_to_judge() -> None:
    once = msgspec.structs.replace(made_variant("openvino", 9.0), total=timing([9.0, 9.0]))
    found = compare(made_report(made_variant("openvino")), made_report(once))
    assert found[0].mark == "?"


def test_what_makes_reports_hard_to_compare_is_told() -> None:
    old = made_report(made_variant("openvino"))
    assert warnings(old, old) == []
    slower = Peaks(products={"float32": 5e10}, copy=1e10, threads=2, how="")
    image = ImageInfo(name="other.jpg", size=(30, 40), padded=(64, 96), regions=7)
    new = made_report(
        bundle_digest="another", classes=4, images=[image], peaks=slower, machine={**old.machine, "cores": "1"}
    )
    assert [word in text for word, text in zip(
        ("cores: 2 physical and 1", "bundles", "images", "3 and 4 classes", "-50 %"), warnings(old, new), strict=True
    )] == [True] * 5  # fmt: skip


def test_a_machines_peaks_are_measured_in_every_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "COPIED", 2**24)
    peaks = machine.PeakMeter().measure()
    assert set(peaks.products) == {"float32", "bfloat16", "int8"}
    assert min(*peaks.products.values(), peaks.copy) > 1e8
    assert [product_unit(name) for name in peaks.products] == ["FLOP/s", "FLOP/s", "OP/s"]


def test_floors_and_shares() -> None:
    """Two images of 2 and 4 GFLOP, bound by the product, and of 10 GB each, bound by the copy."""
    work = [
        {"proposal": StageWork(2e9, 1e6), "decode": StageWork(0, 1e10)},
        {"proposal": StageWork(4e9, 1e6), "decode": StageWork(0, 1e10)},
    ]
    peaks = Peaks(products={"float32": 1e9, "bfloat16": 4e9}, copy=1e10, threads=1, how="")
    stages = {"proposal": timing([4.0, 8.0, 6.0, 8.0], [0, 1, 0, 1]), "decode": timing([2.0, 2.0], [0, 1])}
    proposal, decode = rooflines(work, stages, peaks, lambda stage: "float32")
    assert (proposal.floor, proposal.seconds, proposal.bound) == (3.0, 6.5, "compute")
    assert proposal.share == pytest.approx(6 / 13)
    assert (decode.floor, decode.share, decode.bound) == (1.0, 0.5, "memory")
    half = {"proposal": "bfloat16", "decode": "float32"}
    assert [line.floor for line in rooflines(work, stages, peaks, half.__getitem__)] == [0.75, 1.0]
    together = {"classify + compose": timing([4.0], [0])}
    parts = [{"classify": StageWork(1e9, 0), "compose": StageWork(0, 2e10)}]
    assert rooflines(parts, together, peaks, lambda stage: "float32")[0].floor == 3.0


def test_scene_accuracy_is_the_evaluators_and_its_interval_holds_the_difference() -> None:
    random = np.random.default_rng(0)
    truths = [random.integers(0, 12, (20, 20)) for _ in range(8)]
    good = [np.where(random.random(truth.shape) < 0.1, 0, truth) for truth in truths]
    bad = [np.where(random.random(truth.shape) < 0.4, 0, truth) for truth in truths]
    found = scene_accuracy(good, bad, truths)
    for labels, miou in ((good, found.miou), (bad, found.other)):
        matrix = ConfusionMatrix(len(CLASSES))
        for one, truth in zip(labels, truths, strict=True):
            matrix.update(one, truth, 255)
        assert miou == pytest.approx(matrix.metrics().miou)
    assert 10 < found.low < found.miou - found.other < found.high
    same = scene_accuracy(good, good, truths)
    assert (same.low, same.high) == (0, 0)


@pytest.mark.parametrize(
    ("check", "used"),
    [
        (Check(stage="", what="", value=5e-4, limit=1e-3), 0.5),
        (Check(stage="", what="", value=0.99998, limit=0.99999, least=True), 2.0),
        (Check(stage="", what="", value=1.0, limit=0.99999, least=True), 0.0),
        (Check(stage="", what="", value=0, limit=0), 0.0),
        (Check(stage="", what="", value=1, limit=0), 1e4),
    ],
)
def test_how_much_of_a_tolerance_is_used_up(check: Check, used: float) -> None:
    assert tolerance_used(check) == pytest.approx(used)
    assert check.passed == (used <= 1)


def test_units() -> None:
    assert [seconds(value) for value in (3.2e-5, 0.0123, 0.5, 12.34)] == ["32.0 us", "12.3 ms", "500 ms", "12.3 s"]
    assert [amount(value, "B") for value in (12, 1500, 2.5e9)] == ["12.0 B", "1.50 kB", "2.50 GB"]


def test_the_verdict_comes_in_one_line() -> None:
    one, two = made_variant("own", 0.1), made_variant("other", 0.25)
    assert verdict(made_report(one, two)) == "own: 2.5 times as fast as other, parity was not measured"
    held = made_report(made_variant("own", 0.1, parity=made_parity()), made_variant("other", 0.05))
    assert verdict(held) == "own: 0.5 times as fast as other, parity holds"
    broken = made_report(one, made_variant("other", 0.1, parity=made_parity(0.9)))
    assert verdict(broken) == "own: 1 times as fast as other, parity is BROKEN by other"
    missing = VariantResult(name="tensorrt", precision="float32", reason="not installed")
    assert verdict(made_report(one, missing)) == "own: parity was not measured"


def test_files_of_a_report(tmp_path: Path) -> None:
    files = write_report(outcome(tmp_path), tmp_path / "new" / "report")
    assert [path.name for path in files] == ["bench.html", "bench.md", "bench.json"]
    assert sorted(path.name for path in files[0].parent.iterdir()) == ["bench.html", "bench.json", "bench.md"]
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot make the folder"):
        write_report(outcome(tmp_path), tmp_path / "file" / "report")


def test_markdown_has_every_variant_and_the_verdict(tmp_path: Path) -> None:
    text = to_markdown(outcome(tmp_path).report)
    assert "| torch-compile | 200 ms |" in text
    assert "2.00 (" in text  # the ratio of paired runs
    assert "BROKEN: image_encoder is the first stage beyond it" in text
    assert "| image_encoder | region embeddings, worst cosine | 0.9000000 | >= 0.99999 | BROKEN |" in text
    assert "| tensorrt | the package <tensorrt> is not installed |" in text
    assert "| proposal | 1.00 GFLOP | 1.00 MB | 20.0 ms | 40.0 ms | 50.0 % | compute |" in text


def test_a_region_budget_is_shown_with_its_crops(tmp_path: Path) -> None:
    image = ImageInfo(name="photo.jpg", size=(30, 40), padded=(64, 96), regions=7, crops=4)
    made = outcome(tmp_path)
    variant = msgspec.structs.replace(made_variant("onnxruntime"), relabelled=0.0123)
    changed = msgspec.structs.replace(
        made.report, images=[image], region_budget="share_iou=0.9", variants=[variant, made_variant("torch-eager")]
    )
    text = to_markdown(changed)
    assert "| photo.jpg | 40 x 30 | 96 x 64 | 7 | 4 |" in text
    assert "region budget share_iou=0.9" in text
    assert "## Region budget\n\nshare_iou=0.9. Times are with it" in text
    assert "| onnxruntime | 1.23 % |\n\n" in text
    plain = to_markdown(made.report)
    assert "| photo.jpg | 40 x 30 | 96 x 64 | 7 | 7 |" in plain
    assert "region budget" not in plain.lower()


def test_the_page_loads_nothing_and_escapes_what_it_shows(tmp_path: Path) -> None:
    page = to_page(outcome(tmp_path))
    addresses = set(re.findall(r"https?://[^\s\"'<>]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names, not to be loaded
    assert not re.search(r"(src|href)=[\"'](?!data:|#)", page)
    assert not re.search(r"<script|<link|@import|url\((?!#|data:)", page)
    assert page.count("<svg") == page.count("</svg>") == 4
    assert page.count("data:image/png;base64,") >= 4
    assert "parity broken" in page
    assert "&lt;none&gt;" in page
    assert "cat &amp; dog" in page
    assert "a &lt;fast&gt; one" in page
    assert "25.000 % of the pixels" in page


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit_the_terminal(tmp_path: Path, width: int) -> None:
    text = io.StringIO()
    console = Console(file=text, width=width)
    print_report(outcome(tmp_path).report, console)
    print_tables([compare_table(outcome(tmp_path).report, outcome(tmp_path).report)], console)
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert any("resize" in line or "image_encoder" in line for line in lines)
    assert not any("\u2026" in line for line in lines), "something was cut off"
