"""Sizing from a bench report: plain arithmetic that must come out right."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.benchmarks.speed.cases import made_report, made_variant
from vocabseg.benchmarks.sizing import LOAD, best_rate, sizing_table
from vocabseg.benchmarks.speed.results import VariantResult, encode_report


def test_a_table_of_rates_machines_and_cost() -> None:
    table = sizing_table(made_report(made_variant("fast", 0.1), made_variant("slow", 2.0)), price=3.6)
    assert LOAD == 0.7
    # 10 images/s at 70 %: 7 x 86,400 a day; a million in 39.7 hours.
    assert table.rows[0] == ["fast", "10", "604,800", "2 machines", "39.7", "142.86"]
    assert table.rows[1] == ["slow", "0.5", "30,240", "34 machines", "793.7", "2,857.14"]
    assert "a <fast> one" in table.title


def test_the_best_batch_counts_and_what_was_not_measured_is_left_out() -> None:
    variant = made_variant("fast", 0.1)
    faster = msgspec.structs.replace(variant.batches[0], images_per_second=25.0)
    assert best_rate(msgspec.structs.replace(variant, batches=[faster, *variant.batches])) == 25
    assert best_rate(msgspec.structs.replace(variant, batches=[])) == pytest.approx(10)
    missing = VariantResult(name="tensorrt", precision="float16", reason="not installed")
    assert best_rate(missing) is None
    assert sizing_table(made_report(missing), 1.0).rows == []


def test_the_command_reads_what_bench_writes(tmp_path: Path) -> None:
    report = tmp_path / "bench.json"
    report.write_bytes(encode_report(made_report(made_variant("fast"))))
    command = [sys.executable, "-m", "vocabseg.benchmarks.sizing", "--price", "1", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "604,800" in done.stdout
    done = subprocess.run([*command, str(tmp_path / "none.json")], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("vocabseg: cannot read the report")
