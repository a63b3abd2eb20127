"""A manifest with usual settings and no graphs, for tests that need a bundle's description and no bundle."""

from typing import Any

import msgspec

from vocabseg.runtime.bundle.manifest import FORMAT, Manifest, Prompts, PromptSpec
from vocabseg.runtime.bundle.sections import EnsembleSection, InputSection, RegionSpec


def small_manifest(**changes: Any) -> Manifest:
    """The manifest with entries replaced by `changes`."""
    prompt = PromptSpec(graph="text_encoder", kind="single", templates=["a {}."])
    region = RegionSpec(
        mask_threshold=0.5,
        mask_fill="mean",
        expand_ratio=1,
        matting=False,
        crop_size=224,
        mean=(0, 0, 0),
        std=(1, 1, 1),
    )
    manifest = Manifest(
        format=FORMAT,
        name="test",
        graphs={},
        files={},
        input=InputSection(min_size=64, max_size=128, divisor=32, mean=(0, 0, 0), std=(1, 1, 1)),
        region=region,
        ensemble=EnsembleSection(enabled=True, weight=0.8, temperature=100),
        prompts=Prompts(query=prompt, region=prompt),
    )
    return msgspec.structs.replace(manifest, **changes)
