"""From trials to a choice: the Pareto front of accuracy against time, and the fastest precision within a budget."""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from vocabseg.calibration.failures import CalibrationError
from vocabseg.calibration.trials.precision_trials import Trial


class Tried(Protocol):
    """What was measured of anything that may cost accuracy."""

    @property
    def miou(self) -> float | None: ...
    @property
    def agreement(self) -> float: ...


class AccuracyBudget(msgspec.Struct, frozen=True):
    """How much may be lost, by a precision against float32 or by a region budget against none.

    Attributes:
        miou: points of mean IoU; needs labels.
        disagreement: percent of the pixels that get another label.
    """

    miou: float | None = None
    disagreement: float | None = None

    def broken(self, trial: Tried, baseline: Tried) -> str:
        """How a trial exceeds the budget, or ""."""
        if self.miou is not None and trial.miou is not None and baseline.miou is not None:
            lost = baseline.miou - trial.miou
            if lost > self.miou:
                return f"loses {lost:.2f} points of mIoU, {self.miou:g} are allowed"
        if self.disagreement is not None and 100 - trial.agreement > self.disagreement:
            return f"labels {100 - trial.agreement:.2f} % of the pixels otherwise, {self.disagreement:g} are allowed"
        return ""

    def limits(self) -> str:
        """As on the command line: "miou=0.5"."""
        return ", ".join(
            f"{name}={value:g}" for name, value in msgspec.structs.asdict(self).items() if value is not None
        )


def parse_budget(text: str | None, labelled: bool) -> AccuracyBudget:
    """ "miou=0.5" or "disagreement=2", or both separated by a comma; raises CalibrationError for anything else."""
    values: dict[str, float] = {}
    for part in (text or ("miou=0.5" if labelled else "disagreement=2")).split(","):
        name, equals, number = part.strip().partition("=")
        if not equals or name not in ("miou", "disagreement"):
            raise CalibrationError(f"--budget {part.strip()!r}: write miou=POINTS or disagreement=PERCENT")
        try:
            values[name] = float(number)
        except ValueError:
            raise CalibrationError(f"--budget {part.strip()!r}: {number!r} is not a number") from None
        if not 0 <= values[name] <= 100:
            raise CalibrationError(f"--budget {part.strip()!r}: give a number from 0 to 100")
    if "miou" in values and not labelled:
        raise CalibrationError(
            "--budget miou needs labels: give --dataset and --data-dir, or a budget such as disagreement=2"
        )
    return AccuracyBudget(**values)


def quality(trial: Tried) -> float:
    """What is to be kept: mean IoU where it is known, else agreement."""
    return trial.agreement if trial.miou is None else trial.miou


def pareto(trials: Sequence[Trial]) -> list[Trial]:
    """The timed trials that no other one beats in both quality and time, fastest first."""
    timed = [(one.seconds, quality(one), one) for one in trials if one.seconds is not None]
    front = [
        (seconds, one)
        for seconds, good, one in timed
        if not any(s <= seconds and q >= good and (s, q) != (seconds, good) for s, q, _ in timed)
    ]
    return [one for _, one in sorted(front, key=lambda pair: pair[0])]


def fastest_within(trials: Sequence[Trial], budget: AccuracyBudget) -> Trial:
    """The fastest trial within the budget; the first one, float32, always is."""
    baseline = trials[0]
    inside = [trial for trial in trials if trial.seconds is not None and not budget.broken(trial, baseline)]
    return min(inside, key=lambda one: one.seconds or 0, default=baseline)
