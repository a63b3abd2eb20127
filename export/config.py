"""Configurations: one TOML file per published setting, overrides as "section.key=value", and files of one's own."""

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from vocabseg.runtime.errors import ConfigurationError
from vocabseg.runtime.settings import nearest, parse_value, split_override

FOLDER = Path(__file__).parent / "configs"
PROMPT_KINDS = ("single", "vild", "imagenet", "learned")

Positive = Annotated[float, msgspec.Meta(gt=0)]
Prompt = str | list[str]


class InputSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an image becomes the proposal network's input; sizes in pixels, mean and std in 0..255, RGB."""

    min_size: Annotated[int, msgspec.Meta(ge=1)]
    max_size: Annotated[int, msgspec.Meta(ge=1)]
    divisor: Annotated[int, msgspec.Meta(ge=32, multiple_of=32)]
    mean: tuple[float, float, float]
    std: tuple[Positive, Positive, Positive]


class ProposalSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The proposal network's backbone; with `res5_dilation` 2 (detectron2's RES5_DILATION) res5 keeps stride 16."""

    backbone: Literal["r50", "r101c"]
    res5_dilation: Literal[1, 2] = 1


class ClipSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """open_clip names of the CLIP models; `region_model` only with a separate region adapter of another model."""

    model: str
    region_model: str | None = None


class PromptSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Prompt of each side: a kind, or templates with one {} each; `region` only with a separate region adapter."""

    query: Prompt
    region: Prompt | None = None


class RegionSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a region becomes a crop of `crop_size` pixels."""

    mask_threshold: Annotated[float, msgspec.Meta(ge=0, le=1)]
    mask_fill: Literal["mean", "zero"]
    expand_ratio: Positive
    matting: bool
    crop_size: Annotated[int, msgspec.Meta(ge=1)]


class EnsembleSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How query and region evidence are combined; a weight of 0 or less means regions only."""

    enabled: bool
    weight: Annotated[float, msgspec.Meta(le=1)]
    temperature: Positive


class Configuration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything about a model but its weights and the sizes that are read off them."""

    name: str
    input: InputSection
    proposal: ProposalSection
    clip: ClipSection
    prompt: PromptSection
    region: RegionSection
    ensemble: EnsembleSection

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


_SECTIONS: dict[str, type[msgspec.Struct]] = {
    "input": InputSection,
    "proposal": ProposalSection,
    "clip": ClipSection,
    "prompt": PromptSection,
    "region": RegionSection,
    "ensemble": EnsembleSection,
}


def list_configurations() -> list[str]:
    """Names of the published configurations, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_configuration(name_or_path: str | Path, overrides: Iterable[str] = ()) -> Configuration:
    """A published configuration by name, or a TOML file by its path, with overrides such as "ensemble.weight=0.5".

    An override's value is read as TOML, and as plain text where it is none ("prompt.query=vild"); "none" removes an
    optional key. Raises ConfigurationError for an unknown name, key or value.
    """
    path = _find(str(name_or_path))
    data = _read(path)
    for override in overrides:
        _apply(data, override)
    return _convert(data, path)


def _find(name: str) -> Path:
    if name.endswith(".toml") or "/" in name or "\\" in name:
        path = Path(name)
        if not path.is_file():
            raise ConfigurationError(f"no configuration at {name}: no such file")
        return path
    names = list_configurations()
    if name not in names:
        raise ConfigurationError(f"unknown configuration {name!r}: {nearest(name, names)}")
    return FOLDER / f"{name}.toml"


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read as TOML: {error}") from None


def _fields(section: str) -> dict[str, msgspec.structs.FieldInfo]:
    return {field.name: field for field in msgspec.structs.fields(_SECTIONS[section])}


def _check_key(section: str, key: str | None, where: str) -> None:
    if section not in _SECTIONS:
        raise ConfigurationError(f"{where}: there is no section {section!r}; {nearest(section, _SECTIONS)}")
    if key is not None and key not in _fields(section):
        raise ConfigurationError(f"{where}: [{section}] has no key {key!r}; {nearest(key, _fields(section))}")


def _apply(data: dict[str, Any], override: str) -> None:
    section, key, text = split_override(override)
    _check_key(section, key, f"cannot set {section}.{key}")
    table = data.setdefault(section, {})
    if not isinstance(table, dict):
        raise ConfigurationError(
            f"[{section}] is not a table of keys but {table!r}: write [{section}] on a line of its own"
        )
    if text.lower() == "none" and not _fields(section)[key].required:
        table.pop(key, None)
    else:
        table[key] = parse_value(text)


def _convert(data: dict[str, Any], path: Path) -> Configuration:
    values: dict[str, Any] = {"name": path.stem}
    for section, table in data.items():
        _check_key(section, None, str(path))
        if not isinstance(table, dict):
            raise ConfigurationError(f"{path}: [{section}] is not a table of keys but {table!r}")
        for key in table:
            _check_key(section, key, str(path))
    for section, kind in _SECTIONS.items():
        table = data.get(section, {})
        for key, field in _fields(section).items():
            if field.required and key not in table:
                raise ConfigurationError(
                    f"{path} lacks {section}.{key}: add it, or set it with --set {section}.{key}=..."
                )
        try:
            values[section] = msgspec.convert(table, kind)
        except msgspec.ValidationError as error:
            raise ConfigurationError(_describe(section, table, str(error))) from None
    configuration = Configuration(**values)
    _check_prompts(configuration)
    return configuration


def _describe(section: str, table: dict[str, Any], message: str) -> str:
    problem, _, place = message.partition(" - at `$")
    key = place.rstrip("`").lstrip(".").split("[")[0]
    allowed = f" (one of {', '.join(_choices(section, key))})" if _choices(section, key) else ""
    return f"{section}.{key} cannot be {table.get(key)!r}: {problem[:1].lower()}{problem[1:]}{allowed}"


def _choices(section: str, key: str) -> tuple[str, ...]:
    field = _fields(section).get(key)
    return getattr(field.type, "__args__", ()) if field and getattr(field.type, "__origin__", None) is Literal else ()


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
                if template.count("{}") != 1 or template.replace("{}", "").count("{") + template.replace(
                    "{}", ""
                ).count("}"):
                    raise ConfigurationError(
                        f"prompt.{side} has the template {template!r}: write {{}} exactly once, for the class name"
                    )
