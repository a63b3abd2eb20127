"""Run all checks that need a GPU, in one go, on a bare offline GPU host.

    python tools/gpu_host.py --wheels FOLDER [--results FOLDER] [--bundle FOLDER] [--quick] [--only STEP,...]

Run it in a checkout of the repository. The host needs Python 3.11 or newer with torch for CUDA, and nvcc; FOLDER holds
what tools/gpu_wheels.sh downloaded on a machine with a network. Standard library only: nothing to install first.

The script creates a virtual environment with access to the host's packages in the results folder, installs the wheels
and this repository there, and builds PyCUDA from source. Then it runs the tests marked gpu, compute-sanitizer over
those of the kernels, the kernel benchmark, `vocabseg build`, `vocabseg bench` on the device, and a loop of 10,000
images that watches memory. Every step has its own time limit and log; a failing step does not stop the others. The
final table is also in the results folder, as summary.json and summary.md, next to the benchmark reports.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
BUILD_PYCUDA = REPOSITORY / "tools" / "build_pycuda.py"
KERNEL_TESTS = "tests/runtime/kernels"
# Options for the tools of compute-sanitizer; a finding ends the step with code 9.
SANITIZER = ["--error-exitcode", "9", "--target-processes", "all", "--launch-timeout", "120"]

MEMORY_LOOP = """
import json, resource, sys, vocabseg
from itertools import cycle, islice
from vocabseg.runtime.images import load_image
bundle, engine, count, output = sys.argv[1] or None, sys.argv[2] or None, int(sys.argv[3]), sys.argv[4]
segmenter = vocabseg.load(bundle, device="cuda", engine=engine)
scene = load_image("examples/scene.png")
images = [scene, scene[:, ::-1], scene[:-40], scene[:, :-64]]
names = ["dog", "grass", "house", "water"]
readings = []
for number, _ in enumerate(segmenter.segment_many(islice(cycle(images), count), names), 1):
    if number == 100 or number % max(count // 10, 1) == 0:
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        readings.append({"images": number, "host_MB": host, **segmenter.device.memory()})
        print(readings[-1], flush=True)
json.dump(readings, open(output, "w"), indent=1)
first, last = readings[0], readings[-1]
device = (first["free"] - last["free"]) / 2**20
host = last["host_MB"] - first["host_MB"]
print(f"device memory grew by {device:.1f} MB, host memory by {host} MB, after the first {first['images']} images")
sys.exit(0 if device < 32 and host < 64 and last["managed"] <= first["managed"] else 9)
"""


@dataclass
class Step:
    """One step: a command with its time limit in seconds, or `skip`, the reason why it is not run."""

    name: str
    command: list[str]
    limit: int
    environment: dict[str, str] = field(default_factory=dict)
    skip: str = ""


@dataclass
class Outcome:
    """How a step ended: "passed", "failed", "timed out" or "skipped"; and the last line it printed."""

    name: str
    state: str
    seconds: float
    note: str


def main() -> int:
    """Run all steps; 0 if none failed."""
    options = _options()
    results = options.results.resolve()
    steps = plan(options, results)
    if options.only:
        wanted = set(options.only.split(","))
        unknown = wanted - {step.name for step in steps}
        if unknown:
            print(f"--only: no step {', '.join(sorted(unknown))}; there are {', '.join(s.name for s in steps)}")
            return 2
        steps = [step for step in steps if step.name in wanted]
    if options.dry_run:
        for step in steps:
            print(f"{step.name} (at most {step.limit} s){': skipped, ' + step.skip if step.skip else ''}")
            print("    " + " ".join(_quoted(part) for part in step.command))
        return 0
    results.mkdir(parents=True, exist_ok=True)
    outcomes = []
    for number, step in enumerate(steps, 1):
        print(f"[{number}/{len(steps)}] {step.name} ...", flush=True)
        outcomes.append(run(step, results))
        print(f"    {outcomes[-1].state} after {outcomes[-1].seconds:.0f} s: {outcomes[-1].note}", flush=True)
        write_summary(outcomes, results)
    print((results / "summary.md").read_text())
    return 1 if any(outcome.state in ("failed", "timed out") for outcome in outcomes) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, required=True, help="the folder of wheels and sources")
    parser.add_argument("--results", type=Path, default=Path("gpu-results"), help="where everything goes")
    parser.add_argument("--bundle", type=Path, help="a bundle of published size; default: one with random weights")
    parser.add_argument("--quick", action="store_true", help="shorter loops, no sanitizer over all tests")
    parser.add_argument("--only", default="", help="only these steps, separated by commas")
    parser.add_argument("--dry-run", action="store_true", help="print the steps and stop")
    return parser.parse_args()


def plan(options: argparse.Namespace, results: Path) -> list[Step]:
    """All steps in order."""
    venv, wheels = results / "venv", options.wheels.resolve()
    python, vocabseg = str(venv / "bin" / "python"), str(venv / "bin" / "vocabseg")
    bundle = str(options.bundle.resolve() if options.bundle else results / "bundle")
    install = [python, "-m", "pip", "install", "--no-index", "--find-links", str(wheels), "--no-build-isolation"]
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu"]
    sanitizer = shutil.which("compute-sanitizer") or _beside_nvcc("compute-sanitizer")
    has_tensorrt = find_spec("tensorrt") is not None
    has_rtx = find_spec("tensorrt_rtx_bindings") is not None
    lacking = [name for name, there in (("tensorrt", has_tensorrt), ("tensorrt-rtx", has_rtx)) if not there]
    wanted = " and ".join(f"not [{name}]" for name in lacking)
    bench = [vocabseg, "bench", bundle, "--device", "cuda", "--against", "torch-eager,torch-compile"]
    count = "500" if options.quick else "10000"
    steps = [
        Step("machine", ["nvidia-smi"], 60),
        Step("join-wheels", [sys.executable, "-c", _JOIN, str(wheels)], 300),
        Step("venv", [sys.executable, "-c", VENV, str(venv)], 120),
        Step("wheels", [python, "-c", _INSTALL, str(wheels)], 900),
        Step("pycuda", [python, str(BUILD_PYCUDA), str(wheels), str(results / "pycuda")], 900),
        Step("vocabseg", [*install, "--no-deps", str(REPOSITORY)], 900),
        Step("doctor", [vocabseg, "doctor"], 120),
        # A GPU test that is skipped has failed here; those of engines that the host lacks are left out.
        Step(
            "tests", [*pytest, "-k", wanted, f"--junitxml={results}/tests.xml", "tests"], 1800,
            {"VOCABSEG_REQUIRE_GPU": "1"},
        ),
    ]  # fmt: skip
    for tool in ("memcheck", "racecheck", "initcheck"):
        chosen = ["-k", "not thousands and not golden"] if options.quick else []
        command = [sanitizer or "compute-sanitizer", "--tool", tool, *SANITIZER, *pytest, *chosen, KERNEL_TESTS]
        steps.append(Step(tool, command, 1800, skip="" if sanitizer else "compute-sanitizer is not installed"))
    missing = {
        "tensorrt": "" if has_tensorrt else "TensorRT is not installed",
        "tensorrt-rtx": "" if has_rtx else "TensorRT for RTX is not installed",
        "onnxruntime": "",
    }
    kernels = [python, "-m", "vocabseg.benchmarks.kernel_bench_cuda", "--json", str(results / "kernels.json")]
    random = [vocabseg, "export", "--config", "zsseg-r101c-vitb16-single", "--random", "--output", bundle]
    steps += [
        Step("kernel-times", kernels, 900),
        Step("bundle", random, 1800, skip=f"{bundle} is given" if options.bundle else ""),
        # Without TensorRT it only writes the FP16 graphs, which ONNX Runtime runs.
        Step("build", [vocabseg, "build", bundle, "--precision", "fp16"], 3600),
        Step("build-rtx", [vocabseg, "build", bundle, "--engine", "tensorrt-rtx"], 3600, skip=missing["tensorrt-rtx"]),
        *(
            Step(
                f"bench-{engine}", [*bench, "--engine", engine, "--output", f"{results}/bench-{engine}"], 3600, skip=why
            )
            for engine, why in missing.items()
        ),
        Step("memory", [python, "-c", MEMORY_LOOP, bundle, "", count, str(results / "memory.json")], 3600),
        Step("memory-demo", [python, "-c", MEMORY_LOOP, "", "", count, str(results / "memory-demo.json")], 3600),
    ]
    return steps


# Joins NAME.part00, NAME.part01, ... to NAME.
_JOIN = """
import pathlib, re, shutil, sys
names = sorted({re.sub(r"\\.part\\d+$", "", str(p)) for p in pathlib.Path(sys.argv[1]).glob("*.part[0-9]*")})
for name in names:
    with open(name + ".whole", "wb") as target:
        for part in sorted(pathlib.Path(name).parent.glob(pathlib.Path(name).name + ".part*")):
            with part.open("rb") as source:
                shutil.copyfileobj(source, target)
    pathlib.Path(name + ".whole").replace(name)
print(f"{len(names)} wheels joined")
"""

# Makes an environment that sees this one's packages, also where this one is itself a virtual environment.
VENV = """
import pathlib, subprocess, sys, sysconfig
venv = pathlib.Path(sys.argv[1])
subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", "--clear", venv], check=True)
inner, paths = venv / "bin" / "python", sysconfig.get_paths()
command = [inner, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
own = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
(pathlib.Path(own) / "host.pth").write_text("\\n".join(dict.fromkeys([paths["purelib"], paths["platlib"]])) + "\\n")
"""

# Installs every wheel whose package the host lacks: the host's torch and CUDA are left alone.
_INSTALL = """
import importlib.metadata, pathlib, re, subprocess, sys
def there(name):
    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False
wheels = sorted(pathlib.Path(sys.argv[1]).glob("*.whl"))
wanted = [w for w in wheels if not there(w.name.split("-")[0]) or "gpu" in w.name]
failed = []
for wheel in wanted:
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "-q", str(wheel)]
    if subprocess.run(command).returncode:
        failed.append(wheel.name)
print(f"{len(wanted) - len(failed)} of {len(wheels)} wheels installed" + (f"; failed: {failed}" if failed else ""))
sys.exit(1 if failed else 0)
"""


def _beside_nvcc(tool: str) -> str | None:
    nvcc = shutil.which("nvcc")
    roots = [Path("/usr/local/cuda")] + ([Path(os.path.realpath(nvcc)).parents[1]] if nvcc else [])
    return next((str(root / "bin" / tool) for root in roots if (root / "bin" / tool).is_file()), None)


def run(step: Step, results: Path) -> Outcome:
    """Run a step; its output goes to logs/NAME.txt."""
    if step.skip:
        return Outcome(step.name, "skipped", 0.0, step.skip)
    log = results / "logs" / f"{step.name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "VOCABSEG_CACHE_DIR": str(results / "cache"), **step.environment}
    begin = time.monotonic()
    with log.open("w") as file:
        file.write("$ " + " ".join(_quoted(part) for part in step.command) + "\n")
        file.flush()
        try:
            process = subprocess.Popen(
                step.command, cwd=REPOSITORY, env=environment, stdout=file, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            return Outcome(step.name, "failed", time.monotonic() - begin, str(error))
        try:
            code = process.wait(step.limit)
            state = "passed" if code == 0 else "failed"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            state = "timed out"
    lines = [line for line in log.read_text(errors="replace").splitlines()[1:] if line.strip()]
    return Outcome(step.name, state, time.monotonic() - begin, lines[-1].strip()[:160] if lines else "")


def write_summary(outcomes: list[Outcome], results: Path) -> None:
    """Write summary.json and summary.md."""
    about = {
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "steps": [asdict(outcome) for outcome in outcomes],
    }
    (results / "summary.json").write_text(json.dumps(about, indent=1) + "\n")
    machine = results / "logs" / "machine.txt"
    lines = [f"# On a GPU host, {about['date']}", "", "| step | state | seconds | last line |", "|---|---|---|---|"]
    for outcome in outcomes:
        note = outcome.note.replace("|", "\\|")
        lines.append(f"| {outcome.name} | {outcome.state} | {outcome.seconds:.0f} | {note} |")
    if machine.is_file():
        lines += ["", "```", machine.read_text(errors="replace").strip(), "```"]
    for report in sorted(results.glob("bench-*/*.md")):
        lines += ["", report.read_text()]
    (results / "summary.md").write_text("\n".join(lines) + "\n")


def _quoted(part: str) -> str:
    if "\n" in part:
        return "'<a script>'"
    return part if part and part.replace("/", "").replace("-", "").replace(".", "").isalnum() else repr(part)


if __name__ == "__main__":
    sys.exit(main())
