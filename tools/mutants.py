"""Put faults into the CUDA kernels and the code that launches them, one at a time, and see the tests fail.

    python tools/mutants.py [NAME ...] [--every N] [--jobs N]

tools/mutants.toml lists the faults, each by a name such as boxes/no-slack. Every mutant is a copy of the package and
the tests with one fault; the emulation of CUDA (tests/cuda_emulation) is built from it with g++, and the tests of the
kernels run until one fails. A mutant that none notices survives: it is printed, and the exit status is 1. A NAME picks
the mutants that it is a part of, --every N each N-th of those. A mutant takes 3 to 20 seconds of a core.

On 2026-11-28 all 283 were noticed, thirteen of them by tests that were written for them.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[1]
LIST = Path(__file__).with_suffix(".toml")
KERNELS = "tests/runtime/kernels"
# In the order in which they run: first those that are quick and find most.
TESTS = (
    "test_launch",
    "test_arguments",
    "test_device_limits",
    "test_device",
    "test_device_edges",
    "test_chain",
    "test_device_budget",
)
# The tests that see most of a file's faults run before all others.
FIRST = {
    "boxes": "boxes or looked_at or selected or limit_that or than_threads",
    "classify": "test_classes or embedding_of_zeros",
    "compose": "labels or class or numbers or small_and or beyond", "masks": "labels or numbers or small_and or beyond",
    "mma": "class or numbers or small_and", "crops": "crops or beyond", "patches": "test_crops",
    "resize": "resize", "usable": "unusable", "pixel_math": "resize or boxes or selected or crops",
    "launch": "test_launch", "sharing": "near or leaders or confidences or rows or limit or more_masks",
    "arguments": "bad_arguments or launched", "face": "launched or are_empty or test_chain", "tables": "test_chain",
}  # fmt: skip
# What mutants differ in, and what is only linked to.
COPIED, LINKED = (
    ("runtime", "tests"),
    ("src", "benchmarks", "export", "calibration", "serving", "batch", "video", "web", "examples"),
)
# Of one mutant's tests; a kernel that never ends is noticed by it.
SECONDS = 300


class Mutant(NamedTuple):
    """A fault: `old`, which stands in `file` (relative to the repository) exactly once, becomes `new`."""

    name: str
    file: str
    old: str
    new: str


class MutantError(Exception):
    """The list does not fit the sources, or the tests fail without a fault."""


def mutants() -> list[Mutant]:
    """All of the list, in its order; raises MutantError if one does not fit the sources."""
    found = []
    for file, faults in tomllib.loads(LIST.read_text()).items():
        text = (REPOSITORY / file).read_text()
        for name, (old, new) in faults.items():
            if text.count(old) != 1:
                raise MutantError(
                    f"{LIST.name}: {name}: {old!r} stands {text.count(old)} times in {file}: adapt the list to the file"
                )
            found.append(Mutant(f"{Path(file).stem}/{name}", file, old, new))
    return found


class Copy:
    """A copy of what mutants differ in, below `folder`, in which one fault at a time is made and tested."""

    def __init__(self, folder: Path):
        self.folder = folder
        ignored = shutil.ignore_patterns("__pycache__", "golden")
        for name in COPIED:
            shutil.copytree(REPOSITORY / name, folder / name, symlinks=True, ignore=ignored)
        for name in LINKED:
            (folder / name).symlink_to(REPOSITORY / name)
        shutil.copy2(REPOSITORY / "pyproject.toml", folder)
        packages = tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["scikit-build"]["wheel"]["packages"]
        (folder / "vocabseg").mkdir()
        for part in (folder / packages.pop("vocabseg")).iterdir():
            if part.name not in {Path(target).name for target in packages}:
                (folder / "vocabseg" / part.name).symlink_to(part)
        for target, source in packages.items():
            (folder / target).symlink_to(folder / source)
        (folder / "tmp").mkdir()
        driver = Path(tempfile.gettempdir()) / f"vocabseg-fake-driver-{os.getuid()}"  # no mutant changes it
        driver.mkdir(mode=0o700, exist_ok=True)
        (folder / "tmp" / driver.name).symlink_to(driver)

    def first_failure(self, mutant: Mutant | None) -> str | None:
        """What the tests say first of a mutant, None if all pass; without a mutant, of the sources as they are."""
        path = self.folder / mutant.file if mutant else LIST
        text = path.read_text()
        if mutant:
            path.write_text(text.replace(mutant.old, mutant.new))
        try:
            first = FIRST.get(Path(mutant.file).stem) if mutant else None
            return (self._run("-k", first) if first else None) or self._run()
        finally:
            if mutant:
                path.write_text(text)

    def _run(self, *options: str) -> str | None:
        tests = [f"{KERNELS}/{name}.py" for name in TESTS]
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--tb=line", *options]
        environment = {
            **os.environ, "PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1", "CI": "1",
            "TMPDIR": str(self.folder / "tmp"), "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip
        try:
            run = subprocess.run(
                [*command, *tests], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=SECONDS
            )
        except subprocess.TimeoutExpired:
            return f"the tests took more than {SECONDS} s"
        if run.returncode in (0, 5):  # passed, or none chosen
            return None
        if run.returncode not in (1, -6, -8, -11):  # failed tests; or ended by a signal within a kernel
            raise MutantError(f"the tests did not run (code {run.returncode}): {(run.stdout + run.stderr)[-2000:]}")
        failed = [line for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return failed[0].partition(" ")[2] if failed else f"ended by signal {-run.returncode}"


def survivors(chosen: Sequence[Mutant], jobs: int = 1) -> list[Mutant]:
    """Those that no test notices; prints what became of each. Raises MutantError."""
    with tempfile.TemporaryDirectory(prefix="vocabseg-mutants-") as scratch:
        local = threading.local()

        def killer(mutant: Mutant) -> str | None:
            if not hasattr(local, "copy"):
                local.copy = Copy(Path(scratch) / str(threading.get_ident()))
                failure = local.copy.first_failure(None)
                if failure:
                    raise MutantError(f"the tests fail without a fault: {failure}")
            return local.copy.first_failure(mutant)

        left = []
        with ThreadPoolExecutor(jobs) as pool:
            for mutant, failure in zip(chosen, pool.map(killer, chosen), strict=True):
                left += [] if failure else [mutant]
                print(f"{mutant.name}: {failure.removeprefix(KERNELS + '/') if failure else 'SURVIVES'}", flush=True)
    return left


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if every chosen mutant is noticed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="part of a mutant's name; default: all")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only each N-th")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="mutants at a time")
    options = parser.parse_args(arguments)
    try:
        chosen = [m for m in mutants() if not options.names or any(name in m.name for name in options.names)]
        chosen = chosen[:: max(options.every, 1)]
        if not chosen:
            raise MutantError(f"no mutant's name contains {' or '.join(options.names)}")
        left = survivors(chosen, max(options.jobs, 1))
    except MutantError as error:
        print(f"mutants: {error}", file=sys.stderr)
        return 2
    print(
        f"{len(chosen) - len(left)} of {len(chosen)} mutants noticed" + "".join(f"\nsurvives: {m.name}" for m in left)
    )
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
