"""Instructions of the CUDA kernels: what follows from a listing, and executions equal to the emulated kernels'."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.cuda_emulation.devices import opened
from tests.cuda_emulation.library import emulation
from tests.runtime.kernels.device_module import CudaModule
from vocabseg.benchmarks import kernel_bench
from vocabseg.benchmarks.kernels import class_executions, executions, sass
from vocabseg.benchmarks.kernels.estimate import MEASURED, SIZES, Estimate
from vocabseg.benchmarks.kernels.inputs import class_probabilities
from vocabseg.runtime.bundle.sections import EnsembleSection
from vocabseg.runtime.errors import EngineError
from vocabseg.runtime.kernels import reference
from vocabseg.runtime.kernels.device.arguments import Side
from vocabseg.runtime.kernels.device.fatbin import kernels_fatbin
from vocabseg.runtime.masks import Masks

LISTING = """
        Function : loop
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/              @P0 EXIT ;
        /*0020*/                   LDG.E R1, desc[UR4][R2.64] ;  /* 0x1 */
        /*0030*/              @!P1 BRA 0x60 ;
        /*0040*/               @P2 FMUL R3, R1, R1 ;
        /*0050*/                   FADD R3, R3, 1 ;
        /*0060*/              @P3 BRA 0x20 ;
        /*0070*/                   BRA.DIV UR4, 0xa0 ;
        /*0080*/                   STG.E desc[UR4][R2.64], R3 ;
        /*0090*/                   EXIT ;
        /*00a0*/                   BRA 0xa0 ;
"""


def count(**landmarks: float) -> tuple[float, float]:
    return sass.instructions(sass.parse(LISTING)["loop"], 10, landmarks)


def test_instructions_follow_from_landmarks() -> None:
    # Ten warps start, six stay, and go round 30 times, 12 of them through the product.
    assert count(LDG=30, STG=6, FADD=12) == pytest.approx((10 * 2 + 30 * 3 + 12 * 2 + 6 * 3,) * 2)
    low, high = count(LDG=30, STG=6)
    assert (low, high) == pytest.approx((20 + 90 + 18, 20 + 90 + 30 * 2 + 18))
    issued = sass.instructions(sass.parse(LISTING)["loop"], 10, {"LDG": 30, "STG": 6, "(@P. )?FMUL": 12})
    assert issued == pytest.approx((20 + 90 + 24 + 18, high))  # a predicate may have turned products off
    exact = sass.instructions(sass.parse(LISTING)["loop"], 10, {"LDG": 30, "STG": 6, "@P. FMUL": 12})
    assert exact == pytest.approx((152, 152))


@pytest.mark.parametrize(
    ("landmarks", "message"),
    [
        ({"STG": 6}, "unbounded"),
        ({"LDG": 3, "STG": 6}, "infeasible"),
        ({"LDG": 3, "HMMA": 1}, "no instruction.*'HMMA'"),
    ],
)
def test_a_kernel_that_is_described_wrongly(landmarks: dict[str, float], message: str) -> None:
    with pytest.raises(EngineError, match=f"(?i){message}.*describe it anew"):
        count(**landmarks)


def test_a_listing_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sass, "disassembler", lambda: "true")
    with pytest.raises(EngineError, match="no instructions for sm_90: the kernels were built without it"):
        sass.listing(b"")


def test_no_disassembler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sass.shutil, "which", lambda *_, **__: None)
    monkeypatch.setattr(sass.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(EngineError, match=r"cuobjdump.* was not found: put .* on PATH, or install triton"):
        sass.disassembler()


@pytest.mark.parametrize("ratio", [4, 1])
def test_executions_are_those_of_a_run(ratio: int) -> None:
    generator = np.random.default_rng(ratio)
    coarse = generator.normal(-2, 4, (100, 4, 5)).astype(np.float32)
    size = 24, 28
    logits = np.stack([reference.upsample(mask, size, size) for mask in coarse]).astype(np.float16).astype(np.float32)
    masks = Masks(logits, (24 * ratio, 28 * ratio), (24 * ratio - 1, 28 * ratio - 3), (41, 52))
    probabilities = class_probabilities(50, True)
    with opened("emulated") as bench:
        module, kernels = CudaModule(bench, logits=np.float16), emulation()
        before = kernels.completed()
        module.boxes_and_bits(masks, 0.5)
        between = kernels.completed()
        module.compose(masks, probabilities)
        after = kernels.completed()
        order, count = bench.up(np.array([4, 0, 2, 1], np.int32)), bench.up(np.array([3], np.int32))
        sides = [Side(*(bench.up(generator.random((k, 8), np.float32)) for k in shape)) for shape in ((5, 41), (4, 40))]
        voted, ensemble = bench.new((5, 40), np.float32), EnsembleSection(enabled=True, weight=0.5, temperature=100)
        bench.kernels.classify(*sides, None, order, count, ensemble, voted, None, bench.stream)
        bench.down(voted)
        end = kernels.completed()
        boxes, areas = reference.region_boxes(masks, 0.5)
        near = bench.new((100, 100), np.uint8)
        bits = bench.up(reference.region_bits(masks, 0.5))
        compared = kernels.completed()
        bench.kernels.near_masks(bits, bench.up(boxes), bench.up(areas), 0.5, near, bench.stream)
        bench.down(near)
        last = kernels.completed()
    close = executions.near_masks(boxes, areas, 0.5).landmarks[r"SHFL\.BFLY PT"]
    assert last["shuffles"] - compared["shuffles"] == close > 0
    assert end["shuffles"] - after["shuffles"] == class_executions.classify(5, 3, 40).landmarks[r"SHFL\.BFLY"]
    warps, runs = executions.region_boxes(masks)
    assert between["ballots"] - before["ballots"] == runs[r"VOTE\.ANY P"] + runs[r"VOTE\.ANY R"]
    assert between["shuffles"] - before["shuffles"] == runs[r"SHFL\.DOWN"] + runs[r"SHFL\.IDX"] + 25 * warps
    warps, runs = executions.compose(masks, probabilities)
    assert after["ballots"] - between["ballots"] == runs[r"VOTE\.ANY"]
    assert after["shuffles"] - between["shuffles"] == runs[r"SHFL\.IDX"] + runs[r"SHFL\.BFLY"]
    assert after["products"] - between["products"] == runs[executions.MAYBE + "HMMA"]
    assert runs[r"SHFL\.BFLY"] < 8 * runs[r"VOTE\.ANY"] + 16 * warps  # some groups were ruled out


def test_rows_and_columns_of_crops() -> None:
    mask = np.zeros((50, 70), bool)
    mask[20:30, 33] = True
    box = np.array([10, 5, 60, 45])
    read = executions._columns_read(mask, box)
    index, _ = reference.cubic_taps(50, 224)
    np.testing.assert_array_equal(read, mask[:, 10 + index].any(axis=2))
    rows = executions._rows_read(box, 16)
    index, _ = reference.cubic_taps(40, 224)
    wanted = {int(row) for row in 5 + index[16:32].reshape(-1)}
    assert {row for own in rows for row in own} == wanted
    assert sum(map(len, rows)) == len(wanted)


def test_looks_of_patch_masks() -> None:
    mask = np.random.default_rng(1).random((60, 75)) < 0.02
    box = np.array([3, 5, 70, 59])
    rows, columns = reference.nearest_indices(54, 224), reference.nearest_indices(67, 224)
    looks = found = 0
    for y in range(0, 224, 32):  # rows of 7 x 7 patches
        for x in range(0, 224, 32):  # warps
            own = [[mask[5 + rows[y + r], 3 + columns[x + k]] for r in range(32)] for k in range(32)]
            looks += max(column.index(True) + 1 if any(column) else 32 for column in own)
            found += any(map(any, own))
    assert 0 < found < 49
    runs = executions.patch_masks([mask], box[None], 7, 2)
    assert (runs.landmarks["F2I\\.TRUNC"], runs.landmarks["ATOMS"]) == (looks + 49, found)


def test_the_estimate_of_the_built_kernels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        sass.listing(kernels_fatbin())
    except EngineError as error:
        pytest.skip(str(error))
    path = tmp_path / "estimate.json"
    kernel_bench.main(json_file=path, estimate=True)
    rows = [Estimate(**row) for row in json.loads(path.read_text())]
    assert len(rows) == 16 * len(SIZES)
    code = sass.listing(kernels_fatbin())
    for classes, names, depth in [(1, 1, 8), (31, 2, 64), (847, 40, 1024)]:  # the descriptions fit other sizes, too
        for kernel, runs in (
            ("similarity", class_executions.similarity((3, 100), (classes + 1, classes), depth)),
            ("best_names", class_executions.best_names(9, classes, names)),
            ("classify", class_executions.classify(100, 1, classes)),
            ("compose_classes", class_executions.compose_classes(20, classes)),
            ("find_unusable_f16", class_executions.find_unusable(classes)),
        ):
            fewest, most = sass.instructions(code[kernel], *runs)
            assert 0 < fewest <= most < 2.5 * fewest, (kernel, classes)
    measured = {row["name"]: row for row in json.loads(MEASURED.read_text())["kernels"]["kernels"]}
    assert {row.name for row in rows if row.measured is not None} == set(measured)
    for row in rows:
        assert 0 < row.fewest <= row.most < 2 * row.fewest, row
        if row.measured is not None:
            assert row.measured > max(row.issue[0], row.transfer), f"{row.name} was measured below its floor"
            assert row.bytes == pytest.approx(measured[row.name]["bandwidth"] * row.measured * 1e3), row
    assert "crop_regions, 100 whole images" in capsys.readouterr().out
