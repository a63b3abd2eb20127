"""How long a user waits who starts from nothing: a fresh process, up to the labels of its first image.

Run as a program it is that process; it prints the steps as JSON. Nothing is remembered of earlier runs: class names are
encoded anew. The files, though, may lie in the system's file cache.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vocabseg.benchmarks.speed.results import ColdStart, timing
from vocabseg.runtime.errors import EngineError

STEPS = ("start Python, import", "open the bundle", "encode the names", "first image")


def cold_start(
    folder: Path,
    engine: str,
    precision: str,
    settings: Sequence[str],
    names: Sequence[str],
    image: Path,
    repeat: int,
    device: str = "cpu",
) -> ColdStart:
    """Start `repeat` processes one after the other; raises EngineError where one fails."""
    seconds: list[float] = []
    steps: list[list[float]] = []
    request = {
        "folder": str(folder),
        "engine": engine,
        "precision": precision,
        "settings": list(settings),
        "names": list(names),
        "image": str(image),
        "device": device,
    }
    for _ in range(repeat):
        begin = time.monotonic()
        run = subprocess.run(
            [sys.executable, "-m", "vocabseg.benchmarks.speed.cold"],
            input=json.dumps(request), capture_output=True, text=True, check=False,
            env={**os.environ, "VOCABSEG_CACHE_DIR": ""},
        )  # fmt: skip
        if run.returncode:
            reason = (run.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise EngineError(f"a fresh process failed: {reason}")
        times = json.loads(run.stdout.splitlines()[-1])  # of the clock that all processes share
        seconds.append(times[-1] - begin)
        steps.append(np.diff([begin, *times]).tolist())
    medians = np.median(np.asarray(steps), axis=0).tolist()
    return ColdStart(timing=timing(seconds), steps=dict(zip(STEPS, medians, strict=True)))


def _main() -> None:
    from vocabseg.benchmarks.accuracy.sources import BundleSource
    from vocabseg.runtime.segmenter.segmenter import Segmenter
    from vocabseg.runtime.text.vocabulary import Vocabulary

    request = json.loads(sys.stdin.read())
    times = [time.monotonic()]
    source = BundleSource(
        Path(request["folder"]), request["settings"], request["engine"], request["device"], request["precision"]
    )
    segmenter = source.open()
    if not isinstance(segmenter, Segmenter):
        raise TypeError("a bundle opens as a Segmenter")
    times.append(time.monotonic())
    vocabulary = Vocabulary(request["names"])
    segmenter.embed_names(vocabulary)
    times.append(time.monotonic())
    segmenter(request["image"], vocabulary)
    times.append(time.monotonic())
    print(json.dumps(times))


if __name__ == "__main__":
    _main()
