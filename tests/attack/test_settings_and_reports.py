"""Configurations, recipes and reports of strangers that nest without end."""

from pathlib import Path

import pytest

from vocabseg.benchmarks.accuracy.state import FILE, FOLDER, EvaluationState
from vocabseg.benchmarks.speed.results import read_report
from vocabseg.export.configuration import load_configuration
from vocabseg.export.half.recipe import read_recipe
from vocabseg.runtime.errors import ConfigurationError

DEEP = "[" * 100_000


def test_a_report_is_told(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"version": 1, "machine": ' + DEEP)
    with pytest.raises(ConfigurationError, match="report"):
        read_report(tmp_path / "report.json")


@pytest.mark.parametrize("read", [load_configuration, read_recipe])
def test_a_configuration_or_recipe_is_told(tmp_path: Path, read) -> None:
    (tmp_path / "deep.toml").write_text("a = " + DEEP)
    with pytest.raises(ConfigurationError):
        read(str(tmp_path / "deep.toml"))


def test_earlier_results_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / FILE).write_text('{"format": 1, "confusion": ' + DEEP)
    reason = EvaluationState({}, 2, tmp_path).load()
    assert reason is not None
    assert "cannot be read" in reason
