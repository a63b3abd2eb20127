"""`section.key=value`: what is taken, and what is told of the rest."""

import msgspec
import pytest

from tests.manifests import small_manifest
from vocabseg.export.configuration import ClipSection, PromptSection, ProposalSection
from vocabseg.runtime.bundle.sections import EnsembleSection, InputSection, RegionSpec
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


def test_a_region_budget_is_written_only_where_there_is_one():
    assert not {"share_iou", "min_objectness", "max_regions"} & set(msgspec.to_builtins(MANIFEST.region))
    assert not MANIFEST.region.budgeted
    assert MANIFEST.region.budget == "none"
    changed = apply_settings(MANIFEST, ["region.share_iou=0.9", "region.max_regions=40"])
    assert changed.region.budgeted
    assert changed.region.budget == "share_iou=0.9 max_regions=40"
    assert msgspec.json.decode(msgspec.json.encode(changed.region), type=RegionSpec) == changed.region
    assert apply_settings(changed, ["region.share_iou=none", "region.max_regions=none"]) == MANIFEST


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("region.mask_treshold=0.4", "mask_threshold"),
        ("regoin.matting=true", "region"),
        ("region.mask_threshold=4", "<= 1"),
        ("region.expand_ratio=-3", ">= 0.01"),
        ("region.expand_ratio=inf", "<= 100"),
        ("region.mask_threshold=nan", "mask_threshold cannot be nan"),
        ("region.mean=[2, 0, 0]", "<= 1"),
        ("region.std=[0.2, 0, 0.2]", ">= 1e-05"),
        ("ensemble.temperature=0", ">= 0.001"),
        ("ensemble.temperature=inf", "<= 1"),
        ("ensemble.weight=7", "<= 1"),
        ("ensemble.weight=-inf", ">= -1"),
        ("input.min_size=1000000000", "<= 32768"),
        ("input.max_size=0", ">= 1"),
        ("input.divisor=1048576", "<= 1024"),
        ("input.mean=[nan, 1, 1]", "mean cannot be"),
        ("input.std=[1e-300, 1, 1]", ">= 0.001"),
        ("region.matting=maybe", "matting"),
        ("region.share_iou=1.5", "<= 1"),
        ("region.share_iou=0", "> 0"),
        ("region.min_objectness=nan", "min_objectness cannot be nan"),
        ("region.max_regions=0", ">= 1"),
        ("region.max_regions=2.5", "max_regions cannot be 2.5"),
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
    "override",
    [
        "prompts.query=x",
        "graphs.proposal=x",
        "region.crop_size=336",
        "region.patch_grid=14",
        "input.divisor=16",
        "input.min_size=0",
    ],
)
def test_what_the_graphs_fix_stays_fixed(override):
    with pytest.raises(ConfigurationError):
        adjust_manifest(MANIFEST, [override])


def numbers(kind) -> list[str]:
    """The fields of a section, and of what it holds, whose numbers have no lower or no upper bound."""
    found = []
    for field in msgspec.inspect.type_info(kind).fields:
        inner = getattr(field.type, "item_types", (field.type,))
        for part in inner:
            if isinstance(part, (msgspec.inspect.FloatType, msgspec.inspect.IntType)) and None in (
                part.ge if part.ge is not None else part.gt,
                part.le if part.le is not None else part.lt,
            ):
                found.append(f"{kind.__name__}.{field.name}")
    return found


def test_every_number_has_its_range():
    for section in (InputSection, RegionSpec, EnsembleSection, ProposalSection, ClipSection, PromptSection):
        assert numbers(section) == []


def test_nothing_else_changes():
    changed = adjust_manifest(MANIFEST, ["region.mask_threshold=0.25"])
    same = msgspec.structs.replace(changed, region=MANIFEST.region)
    assert same == MANIFEST
