"""Configurations: the published values, overrides, and what is said about mistakes."""

import json
from pathlib import Path

import pytest

from tests.golden import load_golden
from tests.reference_cases import case_configuration, reference_file
from vocabseg.export.configuration import FOLDER, list_configurations, load_configuration
from vocabseg.runtime.errors import ConfigurationError

PROMPTS = {"learnable": "learned", "predefined": "single", "vild": "vild", "imagenet": "imagenet"}


def test_there_is_one_for_each_published_setting() -> None:
    names = list_configurations()
    assert len(names) == 24
    for name in ("zsseg-r101c-vitb16-learned", "zsseg-r50-vitb16-learned-voc15", "zsseg-r101c-rn50x16-single"):
        assert name in names
    for name in names:
        assert load_configuration(name).name == name


def test_values_of_every_published_setting() -> None:
    published = json.loads(reference_file("configs.json").read_text())
    heads = {"ZeroShotMaskFormer": "maskformer", "ZeroShotPerPixelModel": "pixels"}
    wanted = {yaml: values for yaml, values in published.items() if values["arch"] in heads}
    found = set()
    for name in filter(lambda name: name.startswith("zsseg-"), list_configurations()):
        yaml = (FOLDER / f"{name}.toml").read_text().splitlines()[0].removeprefix("# ")
        found.add(yaml)
        configuration, values = load_configuration(name), wanted[yaml]
        assert (configuration.input.min_size, configuration.input.max_size) == (values["min"], values["max"])
        assert list(configuration.input.mean) == values["mean"]
        assert list(configuration.input.std) == values["std"]
        assert configuration.input.divisor == values["div"]
        assert configuration.proposal.head == heads[values["arch"]]
        assert configuration.proposal.backbone == {50: "r50", 101: "r101c"}[values["depth"]]
        assert configuration.clip.model == values["clip"].replace("/", "-")
        assert configuration.prompt.query == PROMPTS[values["prompt"]]
        assert configuration.separate_region == values["sep"]
        assert configuration.prompt.region == ("learned" if values["sep"] else None)
        region = configuration.region
        assert (region.mask_threshold, region.mask_fill, region.expand_ratio, region.matting, region.crop_size) == (
            values["thr"],
            values["fill"],
            values["ratio"],
            values["mat"],
            224,
        )
        assert (configuration.ensemble.enabled, configuration.ensemble.weight) == (values["ens"], values["w"])
        assert configuration.ensemble.temperature == 100.0
    assert found == set(wanted)


def test_values_of_ovseg() -> None:
    """Against the `meta` of its goldens, which overrode the sizes alone."""
    for case, name in (("t_r101c_tiny16_mpt", "ovseg-r101c-vitb16"), ("t_swin_tiny14_mpt", "ovseg-swinb-vitl14")):
        published = case_configuration(load_golden(case)[1])
        found = load_configuration(name)
        for section in ("clip", "prompt", "region", "ensemble", "proposal"):
            assert getattr(found, section) == getattr(published, section)
        assert not found.ensemble.seen_rule
        assert found.weights.license == "CC BY-NC 4.0"
    meta = load_golden("a_r101c_vitb16_mpt")[1]
    sizes = load_configuration("ovseg-r101c-vitb16").input
    assert (sizes.min_size, sizes.max_size) == (meta["model"]["min_size_test"], meta["model"]["max_size_test"])


def test_overrides() -> None:
    configuration = load_configuration(
        "zsseg-r50-vitb16-vild",
        [
            "ensemble.weight=0.25",
            "region.matting = true",
            "input.min_size=320",
            "prompt.query=learned",
            "prompt.region=['a {}.', 'one {}']",
            "clip.region_model=RN50",
            "region.expand_ratio=2",
        ],
    )
    assert configuration.ensemble.weight == 0.25
    assert configuration.region.matting is True
    assert configuration.input.min_size == 320
    assert configuration.prompt.query == "learned"
    assert configuration.region_prompt == ["a {}.", "one {}"]
    assert configuration.region_model == "RN50"
    assert configuration.region.expand_ratio == 2.0
    assert configuration.separate_region


def test_a_swin_is_not_dilated() -> None:
    with pytest.raises(ConfigurationError, match=r"res5_dilation=2 is for ResNets"):
        load_configuration("ovseg-swinb-vitl14", ["proposal.res5_dilation=2"])


@pytest.mark.parametrize("name", ["ovseg-swinb-vitl14", "regions"])
def test_only_resnets_embed_pixels(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"'pixels'.*has a ResNet"):
        load_configuration(name, ["proposal.head=pixels"])


def test_none_removes_an_optional_key() -> None:
    configuration = load_configuration("zsseg-r50-vitb16-learned-voc15", ["prompt.region=none"])
    assert not configuration.separate_region
    assert configuration.region_prompt == "single"


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text((FOLDER / "zsseg-r50-vitb16-vild.toml").read_text().replace("0.8", "0.1"))
    configuration = load_configuration(path)
    assert configuration.name == "mine"
    assert configuration.ensemble.weight == 0.1


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("ensembl.weight=1", ["'ensembl'", "ensemble"]),
        ("ensemble.weigth=1", ["'weigth'", "weight"]),
        ("ensemble.weight=much", ["ensemble.weight", "'much'", "float"]),
        ("ensemble.enabled=1", ["ensemble.enabled", "bool"]),
        ("region.mask_threshold=1.5", ["region.mask_threshold", "1.5", "<= 1"]),
        ("region.mask_fill=grey", ["region.mask_fill", "'grey'", "mean", "zero"]),
        ("proposal.backbone=r18", ["proposal.backbone", "'r18'", "r50", "r101c"]),
        ("input.min_size=12.5", ["input.min_size", "12.5", "int"]),
        ("input.divisor=48", ["input.divisor", "48"]),
        ("input.mean=[1, 2]", ["input.mean", "[1, 2]"]),
        ("prompt.query=vlid", ["prompt.query", "'vlid'", "vild"]),
        ("prompt.query=[]", ["prompt.query", "empty"]),
        ("prompt.query=['no place']", ["prompt.query", "'no place'", "{}"]),
        ("prompt.query=['{} and {}']", ["prompt.query", "exactly once"]),
        ("prompt.query=['{0} {}']", ["prompt.query", "exactly once"]),
        ("weight=1", ["'weight=1'", "section.key=value"]),
        ("ensemble.weight", ["section.key=value"]),
    ],
)
def test_wrong_overrides(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_configuration("zsseg-r50-vitb16-vild", [override])
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match=r"zsseg-r50-vitb16-vlid.*zsseg-r50-vitb16-vild"):
        load_configuration("zsseg-r50-vitb16-vlid")


def test_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such file"):
        load_configuration(tmp_path / "none.toml")
    path = tmp_path / "mine.toml"
    path.write_text("[input\n")
    with pytest.raises(ConfigurationError, match="cannot be read as TOML"):
        load_configuration(path)
    text = (FOLDER / "zsseg-r50-vitb16-vild.toml").read_text()
    path.write_text(text.replace("matting = false\n", ""))
    with pytest.raises(ConfigurationError, match=r"lacks region\.matting"):
        load_configuration(path)
    path.write_text(text + "colour = 3\n")
    with pytest.raises(ConfigurationError, match="no key 'colour'"):
        load_configuration(path)
    path.write_text("speed = 3\n" + text)
    with pytest.raises(ConfigurationError, match="no section 'speed'"):
        load_configuration(path)
