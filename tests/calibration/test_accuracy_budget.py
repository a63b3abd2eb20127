"""The Pareto front, budgets, and results that are kept."""

from pathlib import Path
from typing import Any

import pytest

from vocabseg.calibration.failures import CalibrationError
from vocabseg.calibration.search.journal import Journal
from vocabseg.calibration.trials.accuracy_budget import fastest_within, pareto, parse_budget
from vocabseg.calibration.trials.precision_trials import Trial


def trial(precision: str, miou: float | None, seconds: float | None, agreement: float = 100.0) -> Trial:
    return Trial(precision, "openvino", 10, miou, miou, miou, 1.0, 1.0, agreement, seconds, 1000)


TRIALS = [
    trial("float32", 70.0, 1.0),
    trial("bfloat16", 69.9, 0.5),
    trial("int8", 69.0, 0.25),
    trial("slow", 69.5, 0.9),
    trial("fp8", 70.1, None),
]


def test_the_front() -> None:
    assert [one.precision for one in pareto(TRIALS)] == ["int8", "bfloat16", "float32"]


@pytest.mark.parametrize(("text", "precision"), [("miou=0.5", "bfloat16"), ("miou=1", "int8"), ("miou=0", "float32")])
def test_the_fastest_inside_the_budget(text: str, precision: str) -> None:
    assert fastest_within(TRIALS, parse_budget(text, True)).precision == precision


def test_without_labels_agreement_counts() -> None:
    trials = [trial("float32", None, 1.0), trial("int8", None, 0.3, 97.0), trial("bfloat16", None, 0.5, 99.0)]
    assert fastest_within(trials, parse_budget(None, False)).precision == "bfloat16"
    assert fastest_within(trials, parse_budget("disagreement=4", False)).precision == "int8"
    assert [one.precision for one in pareto(trials)] == ["int8", "bfloat16", "float32"]


@pytest.mark.parametrize(
    ("text", "labelled", "said"),
    [
        ("miou", True, "write miou=POINTS"),
        ("speed=3", True, "write miou=POINTS"),
        ("miou=much", True, "is not a number"),
        ("miou=-1", True, "from 0 to 100"),
        ("miou=0.5", False, "needs labels"),
    ],
)
def test_budgets_that_are_none(text: str, labelled: bool, said: str) -> None:
    with pytest.raises(CalibrationError, match=said):
        parse_budget(text, labelled)


def test_a_notebook_remembers_for_one_identity(tmp_path: Path) -> None:
    path = tmp_path / "notes.json"
    asked: list[str] = []

    def note(identity: dict[str, Any]) -> list[Trial]:
        return Journal(path, identity).recall("a", list[Trial], lambda: asked.append("a") or TRIALS)

    assert note({"seed": 0}) == TRIALS
    assert note({"seed": 0}) == TRIALS
    assert asked == ["a"]
    note({"seed": 1})
    assert asked == ["a", "a"]
    path.write_text("{")
    assert note({"seed": 1}) == TRIALS
