"""`section.key=value` overrides, applied to nested settings with their types checked."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from vocabseg.runtime.bundle import Bundle, Manifest, open_bundle
from vocabseg.runtime.errors import ConfigurationError

Settings = TypeVar("Settings", bound=msgspec.Struct)

# Sections of a manifest that change how its graphs are used, not what they compute.
ADJUSTABLE = ("input", "region", "ensemble")


def apply_settings(settings: Settings, overrides: Iterable[str]) -> Settings:
    """A copy of `settings` with each "section.key=value" applied; values are TOML, and bare words are strings.

    Raises ConfigurationError for text of another form, an unknown section or key (the nearest are named) and a value
    of the wrong type.
    """
    for override in overrides:
        section, key, text = split_override(override)
        part = getattr(settings, _known(section, settings, override))
        if not isinstance(part, msgspec.Struct):
            raise ConfigurationError(f"--set {override!r}: {section!r} has no keys")
        changed = _replace(part, _known(key, part, override), text, override)
        settings = msgspec.structs.replace(settings, **{section: changed})
    return settings


def adjust_manifest(manifest: Manifest, overrides: Iterable[str]) -> Manifest:
    """A manifest with overrides in the sections that leave its graphs as they are; raises ConfigurationError."""
    overrides = list(overrides)
    for override in overrides:
        section = split_override(override)[0]
        if section not in ADJUSTABLE:
            raise ConfigurationError(
                f"--set {override!r}: a bundle's {section!r} is fixed when it is exported; "
                f"here the sections {', '.join(ADJUSTABLE)} can be set"
            )
    changed = apply_settings(manifest, overrides)
    if changed.input.min_size < 1 or changed.input.max_size < 1 or changed.input.divisor % 32:
        raise ConfigurationError("--set input: sizes must be at least 1 and the divisor a multiple of 32")
    if changed.region.crop_size != manifest.region.crop_size:
        raise ConfigurationError("--set region.crop_size: the image encoder's input size is fixed when it is exported")
    return changed


def open_adjusted(folder: str | Path | None, overrides: Iterable[str], verify: bool = True) -> Bundle:
    """`open_bundle`, with overrides applied to the manifest; raises BundleError and ConfigurationError."""
    bundle = open_bundle(folder, verify)
    return Bundle(bundle.folder, adjust_manifest(bundle.manifest, overrides), bundle.tensors)


def split_override(override: str) -> tuple[str, str, str]:
    """Section, key and value text of "section.key=value"; raises ConfigurationError for text of another form."""
    path, equals, text = override.partition("=")
    section, dot, key = path.strip().partition(".")
    if not equals or not dot or not key:
        raise ConfigurationError(f"cannot read {override!r}: write section.key=value, such as ensemble.weight=0.5")
    return section, key, text.strip()


def parse_value(text: str) -> Any:
    """A TOML value, or the text itself where it is no TOML (so that quotes around words are not needed)."""
    import tomllib

    try:
        document = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return document["value"] if list(document) == ["value"] else text


def nearest(word: str, known: Iterable[str], count: int = 3) -> str:
    """The end of an error line that names the known words nearest to `word`, or all of them where none is near."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=count, cutoff=0.4)
    return f"did you mean {' or '.join(near)}?" if near else f"use one of {', '.join(known)}"


def _known(name: str, settings: msgspec.Struct, override: str) -> str:
    names = [field.name for field in msgspec.structs.fields(settings)]
    if name not in names:
        raise ConfigurationError(f"--set {override!r}: there is no {name!r}; {nearest(name, names)}")
    return name


def _replace(part: msgspec.Struct, key: str, text: str, override: str) -> msgspec.Struct:
    values = msgspec.to_builtins(part) | {key: parse_value(text)}
    try:
        return msgspec.convert(values, type(part))
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"--set {override!r}: {error}") from None
