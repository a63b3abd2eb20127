"""Segment with every bundle below a folder, in an environment that holds the runtime alone."""

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np

for package in ("torch", "onnx", "open_clip"):
    if find_spec(package) is not None:
        sys.exit(f"{package} is installed here: this check needs an environment without it")

import vocabseg  # noqa: E402

bundles = sorted(path.parent for path in Path(sys.argv[1]).glob("c*_*/manifest.json"))
if not bundles:
    sys.exit(f"no bundle below {sys.argv[1]}: run the tests first, with VOCABSEG_TEST_CACHE set to this folder")
image = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
for bundle in bundles:
    for engine in ("openvino", "onnxruntime"):
        result = vocabseg.load(bundle, engine=engine)(image, ["cat", "grass", "sky"])
        assert result.labels.shape == image.shape[:2]
        print(f"{bundle.name} on {engine}: {result}")
