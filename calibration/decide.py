"""From trials to a decision: the Pareto front of accuracy against time, and the fastest inside a budget."""

from collections.abc import Sequence

import msgspec

from vocabseg.calibration.errors import CalibrationError
from vocabseg.calibration.trials import Trial

DEFAULT_BUDGET = {True: "miou=0.5", False: "disagreement=2"}


class Budget(msgspec.Struct, frozen=True):
    """How much a precision may lose against float32.

    Attributes:
        miou: points of mean IoU; needs labels.
        disagreement: percent of the pixels that get another label.
    """

    miou: float | None = None
    disagreement: float | None = None

    def holds(self, trial: Trial, baseline: Trial) -> bool:
        """Whether a trial stays inside."""
        return not self.broken(trial, baseline)

    def broken(self, trial: Trial, baseline: Trial) -> str:
        """What of the budget a trial exceeds, or nothing."""
        if self.miou is not None and trial.miou is not None and baseline.miou is not None:
            lost = baseline.miou - trial.miou
            if lost > self.miou:
                return f"loses {lost:.2f} points of mIoU, {self.miou:g} are allowed"
        if self.disagreement is not None and 100 - trial.agreement > self.disagreement:
            return f"labels {100 - trial.agreement:.2f} % of the pixels otherwise, {self.disagreement:g} are allowed"
        return ""


def parse_budget(text: str | None, labelled: bool) -> Budget:
    """ "miou=0.5" or "disagreement=2", or both separated by a comma; raises CalibrationError for anything else."""
    values: dict[str, float] = {}
    for part in (text or DEFAULT_BUDGET[labelled]).split(","):
        name, equals, number = part.strip().partition("=")
        if not equals or name not in ("miou", "disagreement"):
            raise CalibrationError(f"--budget {part.strip()!r}: write miou=POINTS or disagreement=PERCENT")
        try:
            values[name] = float(number)
        except ValueError:
            raise CalibrationError(f"--budget {part.strip()!r}: {number!r} is no number") from None
        if not 0 <= values[name] <= 100:
            raise CalibrationError(f"--budget {part.strip()!r}: give a number from 0 to 100")
    if "miou" in values and not labelled:
        raise CalibrationError(
            "--budget miou needs labels: give --dataset and --data-dir, or a budget such as disagreement=2"
        )
    return Budget(**values)


def quality(trial: Trial) -> float:
    """What is to be kept: mean IoU where it is known, else agreement."""
    return trial.agreement if trial.miou is None else trial.miou


def pareto(trials: Sequence[Trial]) -> list[Trial]:
    """The timed trials that no other one beats in both quality and time, fastest first."""
    timed = [trial for trial in trials if trial.seconds is not None]
    return sorted(
        (one for one in timed if not any(_beats(other, one) for other in timed)), key=lambda one: one.seconds or 0
    )


def choose(trials: Sequence[Trial], budget: Budget) -> Trial:
    """The fastest trial inside the budget; the first one, float32, always is."""
    baseline = trials[0]
    inside = [trial for trial in trials if trial.seconds is not None and budget.holds(trial, baseline)]
    return min(inside, key=lambda one: one.seconds or 0, default=baseline)


def _beats(one: Trial, other: Trial) -> bool:
    if one.seconds is None or other.seconds is None:
        return False
    better = quality(one) >= quality(other) and one.seconds <= other.seconds
    return better and (quality(one) > quality(other) or one.seconds < other.seconds)
