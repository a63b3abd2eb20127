"""A bundle with FP16 graphs, and its plans built by the double of TensorRT on the emulated GPU."""

import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np

from tests.bundles import cache_folder
from vocabseg.export.half.convert import add_half_graphs
from vocabseg.export.tensorrt.builder import BuildOptions
from vocabseg.export.tensorrt.installer import build_engine
from vocabseg.export.tensorrt.profiles import choose_profiles
from vocabseg.export.tensorrt.target import PlanTarget
from vocabseg.runtime.bundle.folder import Bundle, demo_folder, open_bundle
from vocabseg.runtime.bundle.plans import Plan
from vocabseg.runtime.cuda.device import Device
from vocabseg.runtime.engines.tensorrt.package import require_builder


@lru_cache(maxsize=1)
def _half_bundle() -> Path:
    folder = Path(tempfile.mkdtemp(dir=cache_folder(), prefix="tensorrt-")) / "demo"
    shutil.copytree(demo_folder(), folder)
    add_half_graphs(open_bundle(folder, verify=False))
    return folder


def half_bundle(folder: Path) -> Bundle:
    """The demo bundle with its FP16 graphs, as a copy in `folder`."""
    shutil.copytree(_half_bundle(), folder)
    return open_bundle(folder, verify=False)


def build(
    bundle: Bundle, graph: str, device: Device, *options: str, precision: str = "float16", **flags: object
) -> Plan:
    """The plan of a graph, with the profiles that `options` of --profile name or the default ones."""
    profiles = choose_profiles(bundle.manifest, bundle.manifest.graphs, options)[graph]
    target = PlanTarget(require_builder(), device)
    return build_engine(bundle, graph, precision, profiles, BuildOptions(**flags), target)[0]


def run_on_host(bundle: Bundle, graph: str, precision: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the ONNX graph gives in ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # as the double, so that sums are added in the same order
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(
        str(bundle.graph_path(graph, precision)), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))
