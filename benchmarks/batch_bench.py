"""`python -m vocabseg.benchmarks.batch_bench`: what vocabseg batch does with 2,000 images, undisturbed and disturbed.

Four runs over the same rendered images with the demo model: one worker; two workers; two workers of which one is
killed, and whose driver is killed later; the last one started again. A table, a JSON file and a picture show images per
second, the memory of each worker, and whether all runs left the same bytes.
"""

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from vocabseg.benchmarks.scale.batch_runs import SHARD, SIZE, measure, plot, table
from vocabseg.benchmarks.speed.machine import describe_machine
from vocabseg.runtime.files import make_folder


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--output", type=Path, default=Path("batch-bench"), help="the report's folder")
    options = parser.parse_args()
    make_folder(options.output)
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as folder:
        runs, wrong = measure(options.images, Path(folder))
    text = table(runs, -(-options.images // SHARD), wrong)
    print(text)
    described = [{**asdict(run), "rate": run.rate, "growth": run.growth, "peak": run.peak} for run in runs]
    report = {"machine": machine, "images": options.images, "size": SIZE, "differing": wrong, "runs": described}
    (options.output / "batch.json").write_text(json.dumps(report, indent=1) + "\n")
    plot(runs, options.output / "batch.png")
    print(options.output / "batch.json", options.output / "batch.png", sep="\n")
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
