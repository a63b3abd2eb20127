"""`section.key=value`: what is taken, and what is told of the rest."""

import msgspec
import pytest

from tests.manifests import small_manifest
from vocabseg.runtime.bundle.settings import adjust_manifest, apply_settings
from vocabseg.runtime.errors import ConfigurationError

MANIFEST = small_manifest()


def test_values_take_the_type_of_the_key():
    changed = apply_settings(
        MANIFEST,
        [
            "region.mask_threshold=0.4",
            "region.mask_fill=zero",
            "region.matting=true",
            "input.min_size = 512",
            "ensemble.weight=0",
        ],
    )
    assert changed.region.mask_threshold == 0.4
    assert changed.region.mask_fill == "zero"
    assert changed.region.matting is True
    assert changed.input.min_size == 512
    assert changed.ensemble.weight == 0.0
    assert MANIFEST.region.mask_threshold == 0.5


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("region.mask_treshold=0.4", "mask_threshold"),
        ("regoin.matting=true", "region"),
        ("region.mask_threshold=4", "<= 1"),
        ("region.expand_ratio=-3", "> 0"),
        ("ensemble.temperature=0", "> 0"),
        ("region.matting=maybe", "matting"),
        ("region.mask_fill=median", "median"),
        ("input.min_size=large", "min_size"),
        ("input.min_size", "section.key=value"),
        ("min_size=3", "section.key=value"),
        ("name.x=3", "no section 'name'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(override, told):
    with pytest.raises(ConfigurationError, match=told) as caught:
        apply_settings(MANIFEST, [override])
    assert "\n" not in str(caught.value)
    assert override.partition("=")[0] in str(caught.value)


@pytest.mark.parametrize(
    "override", ["prompts.query=x", "graphs.proposal=x", "region.crop_size=336", "input.divisor=16", "input.min_size=0"]
)
def test_what_the_graphs_fix_stays_fixed(override):
    with pytest.raises(ConfigurationError):
        adjust_manifest(MANIFEST, [override])


def test_nothing_else_changes():
    changed = adjust_manifest(MANIFEST, ["region.mask_threshold=0.25"])
    same = msgspec.structs.replace(changed, region=MANIFEST.region)
    assert same == MANIFEST
