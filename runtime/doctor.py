"""What is installed on this machine, which engine would run here and why, and what the others lack."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from vocabseg.runtime import engines
from vocabseg.runtime.doctor_gpu import Finding, gpu_findings
from vocabseg.runtime.errors import EngineError
from vocabseg.runtime.threads import thread_count

# Package -> what it is for and how it is had.
PACKAGES = {
    "numpy": "arrays",
    "opencv-python-headless": "pictures",
    "openvino": "CPU engine: pip install 'vocabseg[cpu]'",
    "onnxruntime": "CPU engine: pip install 'vocabseg[cpu]'",
    "torch": "export: pip install 'vocabseg[export]'",
    "open_clip_torch": "export: pip install 'vocabseg[export]'",
    "onnx": "export: pip install 'vocabseg[export]'",
    "onnxscript": "export: pip install 'vocabseg[export]'",
    "supervision": "optional: Result.to_detections(): pip install supervision",
}


def examine() -> list[Finding]:
    """Look at this machine; nothing heavy is imported and nothing is written."""
    import sys

    python = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    findings = [
        Finding("python", sys.version_info >= (3, 11), python),
        Finding("processor", True, processor()),
        _kernels(),
    ]
    for package, purpose in PACKAGES.items():
        try:
            findings.append(Finding(package, True, version(package)))
        except PackageNotFoundError:
            findings.append(Finding(package, False, f"not installed ({purpose})"))
    findings += [_engine(name) for name in engines.CPU_ENGINES]
    findings += gpu_findings()
    try:
        choice = engines.choose()
        text = f"{choice.name} on {choice.device} in {choice.precision}, because {choice.reason}"
        findings.append(Finding("engine used here", True, text))
    except EngineError as error:
        findings.append(Finding("engine used here", False, str(error)))
    return findings


def _engine(name: str) -> Finding:
    module, precisions = engines.CPU_ENGINES[name]
    if find_spec(module) is None:
        return Finding(f"engine {name}", False, f"package {module} is missing: pip install 'vocabseg[cpu]'")
    return Finding(f"engine {name}", True, f"can run here in {' or '.join(precisions)}")


def _kernels() -> Finding:
    from vocabseg.runtime.kernels import load_kernels

    try:
        host = load_kernels("host")
    except EngineError as error:
        return Finding("host kernels", False, str(error))
    return Finding("host kernels", True, f"built, {thread_count()} threads, instruction set {host.variant()}")


def processor() -> str:
    """This machine's processor, in words."""
    name = platform.processor() or platform.machine()
    features: list[str] = []
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = {
            key.strip(): value.strip()
            for key, _, value in (line.partition(":") for line in info.read_text().splitlines())
        }
        name = lines.get("model name", name)
        flags = set(lines.get("flags", "").split())
        features = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "amx_bf16", "amx_int8") if flag in flags]
    return f"{name}, {os.cpu_count()} logical CPUs" + (f" ({', '.join(features)})" if features else "")
