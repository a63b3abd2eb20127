"""Run all checks that need a GPU, in order of worth, within a budget, on a bare offline GPU host.

    python tools/gpu_host.py --parts FOLDER [--budget 590] [--work FOLDER] [--results FOLDER] [--only STEP,...]

Run it in a checkout of the repository. The host needs Python 3.11 or newer with torch for CUDA, and nvcc; --parts holds
what tools/pack_gpu.sh made. Standard library only. There is no virtual environment: the parts are unpacked in the work
folder, wheels that the host lacks and this repository are installed in WORK/site with `pip install --target`.

Every step has its share of the budget, to which comes what earlier ones left; a step for which too little is left, or
whose packages are missing, is skipped with its reason, and one that fails stops no other. After each step the results
are written anew: <date>-<gpu>.json with every figure, and <date>-<gpu>.md, a page for benchmarks/results/ with figures
beside their targets. Exit code 1: a step failed, such as one that missed a target; of the kernels, the page tells.

--rehearse runs the same on a machine without a GPU, over a driver that stands for one (LD_LIBRARY_PATH), in the
shortest forms: nothing is installed but the parts, and what would take minutes on an emulated GPU is left out.
"""

import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tools import gpu_page, gpu_parts

REPOSITORY = Path(__file__).resolve().parents[1]
# The shares of the steps are of this many seconds.
USUAL = 590
# With less than this, no step is begun.
LEAST = 5
NAMES = "benchmarks/datasets/class_names/coco_stuff_171.txt"


@dataclass(frozen=True)
class Step:
    """One step: a command with its share in seconds of the usual budget.

    `skip`: why it is not run. `beside`: it runs beside the steps that follow, until one `needs` it. `figures`: the file
    that the command writes them to.
    """

    name: str
    command: list[str]
    share: float
    skip: str = ""
    needs: str = ""
    beside: bool = False
    figures: Path | None = None


@dataclass
class Outcome:
    """How a step ended: "passed", "failed", "out of time" or "skipped"; the last line it printed, more if it failed."""

    name: str
    state: str
    seconds: float
    note: str
    tail: str = ""


def main(arguments: list[str] | None = None) -> int:
    """0 if no step failed."""
    options = _options(arguments)
    begin, host = time.monotonic(), None
    for folder in (options.work, options.results):
        folder.mkdir(parents=True, exist_ok=True)
    steps = plan(options)
    unknown = options.only - {step.name for step in steps}
    if unknown:
        print(f"--only: no step {', '.join(sorted(unknown))}; there are {', '.join(s.name for s in steps)}")
        return 2
    steps = [step for step in steps if not options.only or step.name in options.only]
    if options.dry_run:
        for step in steps:
            print(f"{step.name} ({step.share:.0f} s){': skipped, ' + step.skip if step.skip else ''}")
            print("    " + " ".join(step.command))
        return 0
    host = Host(options, begin)
    for number, step in enumerate(steps, 1):
        print(f"[{number}/{len(steps)}, {time.monotonic() - begin:.0f} s] {step.name} ...", flush=True)
        host.run(step)
        print(f"    {host.outcomes[-1].state}: {host.outcomes[-1].note}", flush=True)
    host.join()
    print(host.page.read_text())
    return 1 if any(one.state in ("failed", "out of time") for one in host.outcomes) else 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=Path, required=True, help="what tools/pack_gpu.sh made")
    parser.add_argument("--budget", type=float, default=USUAL, metavar="SECONDS", help="for all steps together")
    parser.add_argument("--work", type=Path, default=Path("/tmp/vocabseg-gpu"), help="scratch; kept for a next call")
    parser.add_argument("--results", type=Path, default=Path(os.environ.get("OUT") or "gpu-results"))
    parser.add_argument("--bundle", type=Path, help="a bundle of published size; default: one with random weights")
    parser.add_argument("--only", type=lambda names: set(names.split(",")), default=set(), help="only these steps")
    parser.add_argument("--dry-run", action="store_true", help="print the steps and stop")
    parser.add_argument("--rehearse", action="store_true", help="over a driver that stands for a GPU")
    options = parser.parse_args(arguments)
    for name in ("parts", "work", "results", "bundle"):
        if getattr(options, name) is not None:
            setattr(options, name, getattr(options, name).resolve())
    if not options.parts.is_dir():
        parser.error(f"--parts: {options.parts} is not a folder: make it with tools/pack_gpu.sh")
    return options


def plan(options: argparse.Namespace) -> list[Step]:
    """All steps, those first whose results are worth most."""
    work, python = options.work, sys.executable
    module, pytest = [python, "-m"], [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu"]
    bundle = str(options.bundle or work / "bundle")
    has = gpu_parts.packages(options.parts, work)
    short = "the rehearsal leaves it out: it takes minutes on an emulated GPU" if options.rehearse else ""
    lacks = {name: "" if there else f"{name} is neither here nor among the parts" for name, there in has.items()}
    tool = gpu_parts.cuda_tool("compute-sanitizer")
    sanitizer = [tool or "compute-sanitizer", "--error-exitcode", "9", "--target-processes", "all", "--tool"]
    chain = [*pytest, "tests/runtime/kernels/test_chain.py", "-k", "regions or labels or classes"]
    unsafe = short or ("" if tool else "compute-sanitizer is not installed")
    small = ["--images", "4", "--repeats", "1", "--size", "96", "64", "--on-host"] if options.rehearse else []
    given = f"{bundle} is given" if options.bundle else ""
    bench = [*module, "vocabseg", "bench", bundle, "--device", "cuda", "-n", "2", "--repeat", "3", "--batches", "4"]
    bench += ["--cold", "1"]
    kernels = [*module, "vocabseg.benchmarks.kernel_bench_cuda", "--json", str(work / "kernels.json")]
    build = [*module, "vocabseg", "build", bundle, "--precision", "fp16", "--engine"]
    big = ["--bundle", bundle, "--classes", NAMES, "--no-compare"]

    def pipeline(name: str, engine: str, precision: str, *more: str) -> list[str]:
        file = ["--json", str(work / f"{name}.json"), "--engine", engine, "--precision", precision]
        return [*module, "vocabseg.benchmarks.gpu.pipeline", *file, *more]

    def figures(name: str, command: list[str], share: float, skip: str = "", needs: str = "") -> Step:
        return Step(name, command, share, skip, needs, figures=work / f"{name}.json")

    export = (
        'set -e; "$0" -m vocabseg export --config zsseg-r101c-vitb16-single --random --output "$1"; '
        '"$0" -m vocabseg build "$1" --precision fp16 --engine onnxruntime'
    )
    return [
        Step("machine", ["nvidia-smi"], 5, short and "the rehearsal has no nvidia-smi"),
        Step("install", [python, str(REPOSITORY / "tools" / "gpu_parts.py"), str(options.parts), str(work),
                         *([] if options.rehearse else [str(REPOSITORY)])], 60),
        Step("bundle", ["bash", "-c", export, python, bundle], 150, short or given, beside=True),
        Step("doctor", [*module, "vocabseg", "doctor"], 10),
        Step("tests", [*pytest, "-k", "one_pixel" if options.rehearse else "", "tests/runtime/kernels"], 40),
        figures("kernels", kernels, 40, short),
        figures("demo-torch", pipeline("demo-torch", "torch", "float32", *small), 40),
        Step("memcheck", [*sanitizer, "memcheck", *chain], 60, unsafe),
        Step("racecheck", [*sanitizer, "racecheck", *chain], 60, unsafe),
        Step("tests-pipeline", [*pytest, "tests/runtime/segmenter/test_on_gpu.py", "-k", _engines(has)], 60,
             short or lacks["onnxruntime-gpu"]),
        figures("torch", pipeline("torch", "torch", "float16", *big), 60, short, "bundle"),
        figures("onnxruntime", pipeline("onnxruntime", "onnxruntime", "float16", *big), 60,
                short or lacks["onnxruntime-gpu"], "bundle"),
        *(step for engine in ("tensorrt", "tensorrt-rtx") for step in (
            Step(f"build-{engine}", [*build, engine], 120, short or lacks[engine], "bundle"),
            figures(engine, pipeline(engine, engine, "float16", *big), 60, short or lacks[engine], f"build-{engine}"),
        )),
        Step("bench", [*bench, "--against", "torch-eager", "--output", str(work / "bench")], 90,
             short or lacks["onnxruntime-gpu"], "bundle"),
        Step("bench-compiled", [*bench, "--against", "torch-compile", "--output", str(work / "bench-compiled")], 90,
             short or lacks["onnxruntime-gpu"], "bundle"),
    ]  # fmt: skip


def _engines(has: dict[str, bool]) -> str:
    """The expression that leaves out tests of engines that are not there."""
    return " and ".join(f"not [{name}]" for name in ("tensorrt", "tensorrt-rtx") if not has[name])


class Host:
    """Runs steps and keeps the results."""

    def __init__(self, options: argparse.Namespace, begin: float):
        self.options, self.begin = options, begin
        self.outcomes: list[Outcome] = []
        self.figures: dict[str, object] = {}
        self._beside: dict[str, tuple[Step, subprocess.Popen[bytes], float]] = {}
        self._due = 0.0  # seconds that the steps so far may have taken
        self._scale = options.budget / USUAL
        gpu = "rehearsal" if options.rehearse else _gpu_name()
        short = re.sub(r"[^a-z0-9]+", "-", gpu.lower().replace("nvidia", "")).strip("-")
        self.about = {"gpu": gpu, "date": time.strftime("%Y-%m-%d"), "python": platform.python_version()}
        self.page = options.results / f"{self.about['date']}-{short}.md"

    def run(self, step: Step) -> None:
        """Run a step, or begin one that runs beside others; the results are written."""
        self._due += 0 if step.skip or step.beside else step.share * self._scale
        left = self.options.budget - (time.monotonic() - self.begin)
        if step.skip:
            self._keep(step, Outcome(step.name, "skipped", 0, step.skip))
            return
        missing = self._missing(step.needs, left)
        if missing or left < LEAST:
            self._keep(
                step, Outcome(step.name, "skipped", 0, missing or f"{max(left, 0):.0f} s of the budget are left")
            )
            return
        begin, process = time.monotonic(), self._start(step)
        if step.beside and process is not None:
            self._beside[step.name] = step, process, begin
            self._keep(step, Outcome(step.name, "begun", 0, "beside the steps that follow"))
            return
        self._end(step, process, begin, min(left, max(step.share * self._scale, self._due - (begin - self.begin))))

    def join(self) -> None:
        """Wait for what still runs beside, and end it with the budget."""
        for name in list(self._beside):
            self._missing(name, self.options.budget - (time.monotonic() - self.begin))

    def _missing(self, name: str, left: float) -> str:
        """Waits for a step that is needed; why it is of no use, if it is not."""
        if name in self._beside:
            step, process, begin = self._beside.pop(name)
            self._end(step, process, begin, max(left, 0))
        states = {one.name: one.state for one in self.outcomes}
        note = next((one.note for one in self.outcomes if one.name == name), "")
        if states.get(name, "passed") == "passed" or note.endswith("is given"):
            return ""
        return f"{name} {states[name]}"

    def _start(self, step: Step) -> "subprocess.Popen[bytes] | None":
        work = self.options.work
        (work / "logs").mkdir(exist_ok=True)
        path = [str(work / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1", "VOCABSEG_REQUIRE_GPU": "1",
            "VOCABSEG_CACHE_DIR": str(work / "cache"),
        }  # fmt: skip
        with (work / "logs" / f"{step.name}.txt").open("w") as log:
            try:
                return subprocess.Popen(
                    step.command, cwd=REPOSITORY, env=environment, stdout=log, stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL, start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                log.write(f"{error}\n")
                return None

    def _end(self, step: Step, process: "subprocess.Popen[bytes] | None", begin: float, limit: float) -> None:
        state = "failed"
        if process is not None:
            try:
                state = "passed" if process.wait(limit) == 0 else "failed"
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                state = "out of time"
        log = (self.options.work / "logs" / f"{step.name}.txt").read_text(errors="replace")
        lines = [line.strip() for line in log.splitlines() if line.strip()]
        outcome = Outcome(step.name, state, time.monotonic() - begin, lines[-1][:160] if lines else "")
        outcome.tail = log[-20_000:] if state != "passed" or step.name in ("machine", "doctor") else ""
        self._keep(step, outcome)

    def _keep(self, step: Step, outcome: Outcome) -> None:
        self.outcomes = [one for one in self.outcomes if one.name != step.name] + [outcome]
        if outcome.state != "skipped" and step.figures is not None and step.figures.is_file():
            self.figures[step.name] = json.loads(step.figures.read_text())
        report = next(iter(sorted((self.options.work / step.name).glob("*.json"))), None)
        if step.name.startswith("bench") and report is not None:
            self.figures[step.name] = json.loads(report.read_text())
            for table in report.parent.glob("*.md"):
                shutil.copy(table, self.options.results / f"{step.name}.md")
        everything = {**self.about, "steps": [asdict(one) for one in self.outcomes], "figures": self.figures}
        for path, text in (
            (self.page.with_suffix(".json"), json.dumps(everything, indent=1) + "\n"),
            (self.page, gpu_page.page(everything)),
        ):
            temporary = path.with_name(f".{path.name}")
            temporary.write_text(text)
            temporary.replace(path)


def _gpu_name() -> str:
    try:
        run = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True
        )
    except OSError:
        return "gpu"
    return run.stdout.splitlines()[0].strip() if run.returncode == 0 and run.stdout else "gpu"


if __name__ == "__main__":
    sys.exit(main())
