"""Configurations: one TOML file per published setting, overrides as "section.key=value", and users' own files."""

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import msgspec

from vocabseg.runtime.bundle.manifest import Shown
from vocabseg.runtime.bundle.sections import EnsembleSection, InputSection, RegionSection
from vocabseg.runtime.bundle.settings import check_key, convert_section, nearest, override
from vocabseg.runtime.errors import ConfigurationError

FOLDER = Path(__file__).parent / "configs"
# The configuration of this package's own, beside the published ones: CLIP alone.
REGIONS = "regions"
PROMPT_KINDS = ("single", "vild", "imagenet", "learned")

Prompt = str | list[str]


class ProposalSection(msgspec.Struct, frozen=True, kw_only=True):
    """The proposal network's backbone; with `res5_dilation` 2 (detectron2's RES5_DILATION) res5 keeps stride 16.

    "none": there is no published proposal network, and CLIP alone classifies the regions of other masks. With the head
    "pixels" there are no proposals: the one-stage baseline embeds every pixel.
    """

    backbone: Literal["r50", "r101c", "swin", "none"]
    res5_dilation: Literal[1, 2] = 1
    head: Literal["maskformer", "pixels"] = "maskformer"

    @property
    def per_pixel(self) -> bool:
        return self.head == "pixels"


class ClipSection(msgspec.Struct, frozen=True, kw_only=True):
    """open_clip names of the CLIP models; `region_model` only with a separate region adapter of another model.

    `activation` is that of another CLIP for the regions, whose weights do not tell it. `mask_prompts`: whether the
    image encoder is told which patches a region covers; by default it is where the weights have mask prompts.
    """

    model: str
    region_model: str | None = None
    activation: Literal["quick_gelu", "gelu"] | None = None
    mask_prompts: bool | None = None


class PromptSection(msgspec.Struct, frozen=True, kw_only=True):
    """Prompt of each side: a kind, or templates with one {} each; `region` only with a separate region adapter."""

    query: Prompt
    region: Prompt | None = None


class WeightsSection(msgspec.Struct, frozen=True, kw_only=True):
    """The licence that the published weights are under, where it limits what may be done with them."""

    license: Shown | None = None


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a model but its weights and the sizes that are read off them."""

    name: str
    input: InputSection
    proposal: ProposalSection
    clip: ClipSection
    prompt: PromptSection
    region: RegionSection
    ensemble: EnsembleSection
    weights: WeightsSection = WeightsSection()

    @property
    def separate_region(self) -> bool:
        """Whether regions have a CLIP and a prompt of their own."""
        return self.prompt.region is not None or self.clip.region_model is not None

    @property
    def region_prompt(self) -> Prompt:
        """The prompt that regions are compared with."""
        return self.prompt.query if self.prompt.region is None else self.prompt.region

    @property
    def region_model(self) -> str:
        """The open_clip name of the CLIP that embeds regions."""
        return self.clip.model if self.clip.region_model is None else self.clip.region_model


def list_configurations() -> list[str]:
    """Names of the published configurations, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_configuration(name_or_path: str | Path, overrides: Iterable[str] = ()) -> Configuration:
    """A configuration, published or "regions", by name, or a TOML file by its path, with overrides.

    An override is such as "ensemble.weight=0.5". Its value is read as TOML, or as plain text if it is not TOML
    ("prompt.query=vild"); "none" removes an optional key. Raises ConfigurationError for an unknown name, key or value.
    """
    path = _find(str(name_or_path))
    data = _read(path)
    override(data, Configuration, overrides)
    return _convert(data, path)


def _find(name: str) -> Path:
    if name.endswith(".toml") or "/" in name or "\\" in name:
        path = Path(name)
        if not path.is_file():
            raise ConfigurationError(f"no configuration at {name}: no such file")
        return path
    names = list_configurations()
    if name not in (*names, REGIONS):
        raise ConfigurationError(f"unknown configuration {name!r}: {nearest(name, [*names, REGIONS])}")
    return (FOLDER if name in names else FOLDER.parent) / f"{name}.toml"


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigurationError(f"{path} cannot be read as TOML: {error}") from None


def _convert(data: dict[str, Any], path: Path) -> Configuration:
    values: dict[str, Any] = {"name": path.stem}
    for section, table in data.items():
        check_key(Configuration, section, None, str(path))
        if not isinstance(table, dict):
            raise ConfigurationError(f"{path}: [{section}] is not a table of keys but {table!r}")
        for key in table:
            check_key(Configuration, section, key, str(path))
    for field in msgspec.structs.fields(Configuration):
        if field.name == "name":
            continue
        table = data.get(field.name, {})
        for key in msgspec.structs.fields(field.type):
            if key.required and key.name not in table:
                missing = f"{field.name}.{key.name}"
                raise ConfigurationError(f"{path} lacks {missing}: add it, or set it with --set {missing}=...")
        values[field.name] = convert_section(field.name, table, field.type)
    configuration = Configuration(**values)
    if configuration.proposal.backbone == "swin" and configuration.proposal.res5_dilation > 1:
        raise ConfigurationError("proposal.res5_dilation=2 is for ResNets: leave it out for the backbone swin")
    if configuration.proposal.per_pixel and configuration.proposal.backbone in ("swin", "none"):
        raise ConfigurationError(
            f"proposal.head is 'pixels' and proposal.backbone {configuration.proposal.backbone!r}: the one-stage "
            "baseline has a ResNet, r50 or r101c"
        )
    _check_prompts(configuration)
    if configuration.proposal.backbone == "none":
        _check_regions(configuration)
    return configuration


def _check_regions(configuration: Configuration) -> None:
    """Without queries there is one CLIP and one prompt, and nothing to learn it with."""
    clip, prompt = configuration.clip, configuration.prompt
    for key, value in (("clip.region_model", clip.region_model), ("prompt.region", prompt.region)):
        if value is not None:
            raise ConfigurationError(f"{key} is {value!r}, but without a proposal network regions are all there is")
    if prompt.query == "learned":
        raise ConfigurationError("prompt.query cannot be 'learned' without a proposal network: use vild or imagenet")


def _check_prompts(configuration: Configuration) -> None:
    for side, prompt in (("query", configuration.prompt.query), ("region", configuration.prompt.region)):
        if isinstance(prompt, str) and prompt not in PROMPT_KINDS:
            raise ConfigurationError(
                f"prompt.{side} cannot be {prompt!r}: {nearest(prompt, PROMPT_KINDS)} (or a list of templates)"
            )
        if isinstance(prompt, list):
            if not prompt:
                raise ConfigurationError(f"prompt.{side} is an empty list: give at least one template with {{}}")
            for template in prompt:
                if template.count("{}") != 1 or set(template.replace("{}", "")) & set("{}"):
                    raise ConfigurationError(
                        f"prompt.{side} has the template {template!r}: write {{}} exactly once, for the class name"
                    )
