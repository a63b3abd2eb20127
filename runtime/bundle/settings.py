"""`section.key=value` overrides, applied to nested settings with type checks."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from vocabseg.runtime.bundle.contract import input_problem
from vocabseg.runtime.bundle.folder import Bundle, open_bundle
from vocabseg.runtime.bundle.manifest import Manifest
from vocabseg.runtime.errors import ConfigurationError

Settings = TypeVar("Settings", bound=msgspec.Struct)

# Sections of a manifest that change how its graphs are used, not what they compute.
ADJUSTABLE = ("input", "region", "ensemble")


def apply_settings(settings: Settings, overrides: Iterable[str]) -> Settings:
    """A copy of `settings` with each "section.key=value" applied; values are TOML, and bare words are strings.

    Raises ConfigurationError for malformed text, an unknown section or key (the nearest ones are suggested) and a value
    of the wrong type or out of range.
    """
    overrides = list(overrides)
    if not overrides:
        return settings
    data = msgspec.to_builtins(settings)
    override(data, type(settings), overrides)
    changed = {split_override(text)[0] for text in overrides}
    sections = {name: convert_section(name, data[name], _fields(type(settings))[name].type) for name in changed}
    return msgspec.structs.replace(settings, **sections)


def override(data: dict[str, Any], kind: type[msgspec.Struct], overrides: Iterable[str]) -> None:
    """Apply "section.key=value" to nested dictionaries that will become a `kind`; "none" removes an optional key.

    Raises ConfigurationError for malformed text and an unknown section or key.
    """
    for text in overrides:
        section, key, value = split_override(text)
        check_key(kind, section, key, f"cannot set {section}.{key}")
        table = data.setdefault(section, {})
        if not isinstance(table, dict):
            raise ConfigurationError(
                f"[{section}] is not a table of keys but {table!r}: write [{section}] on a line of its own"
            )
        field = _fields(_fields(kind)[section].type)[key]
        if value.lower() == "none" and not field.required:
            table.pop(key, None)
        else:
            table[key] = parse_value(value)


def check_key(kind: type[msgspec.Struct], section: str, key: str | None, where: str) -> None:
    """Raise ConfigurationError if `kind` has no such section, or the section no such key."""
    sections = {name for name, field in _fields(kind).items() if _is_section(field.type)}
    if section not in sections:
        raise ConfigurationError(f"{where}: there is no section {section!r}; {nearest(section, sorted(sections))}")
    known = _fields(_fields(kind)[section].type)
    if key is not None and key not in known:
        raise ConfigurationError(f"{where}: [{section}] has no key {key!r}; {nearest(key, known)}")


def convert_section(section: str, table: dict[str, Any], kind: type[Settings]) -> Settings:
    """The settings of one section; raises ConfigurationError, in one line, for an invalid value."""
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at `$")
        key = place.rstrip("`").lstrip(".").split("[")[0]
        choices = _choices(kind, key)
        allowed = f" (one of {', '.join(choices)})" if choices else ""
        raise ConfigurationError(
            f"{section}.{key} cannot be {table.get(key)!r}: {problem[:1].lower()}{problem[1:]}{allowed}"
        ) from None


def adjust_manifest(manifest: Manifest, overrides: Iterable[str]) -> Manifest:
    """A manifest with overrides in the sections that do not affect its graphs; raises ConfigurationError."""
    overrides = list(overrides)
    for text in overrides:
        section = split_override(text)[0]
        if section not in ADJUSTABLE:
            raise ConfigurationError(
                f"--set {text!r}: a bundle's {section!r} is fixed at export; "
                f"here the sections {', '.join(ADJUSTABLE)} can be set"
            )
    changed = apply_settings(manifest, overrides)
    for key in ("crop_size", "patch_grid"):
        if getattr(changed.region, key) != getattr(manifest.region, key):
            raise ConfigurationError(f"--set region.{key}: the image encoder's input size is fixed at export")
    problem = input_problem(changed)
    if problem:
        raise ConfigurationError(f"--set: {problem}")
    return changed


def adjusted(bundle: Bundle, overrides: Iterable[str]) -> Bundle:
    """The bundle with overrides applied to its manifest; raises ConfigurationError."""
    return bundle.with_manifest(adjust_manifest(bundle.manifest, overrides))


def open_adjusted(folder: str | Path | None, overrides: Iterable[str], verify: bool = True) -> Bundle:
    """`open_bundle`, with overrides applied to the manifest; raises BundleError and ConfigurationError."""
    return adjusted(open_bundle(folder, verify), overrides)


def split_override(text: str) -> tuple[str, str, str]:
    """Section, key and value text of "section.key=value"; raises ConfigurationError for malformed text."""
    path, equals, value = text.partition("=")
    section, dot, key = path.strip().partition(".")
    if not equals or not dot or not key:
        raise ConfigurationError(f"cannot read {text!r}: write section.key=value, such as ensemble.weight=0.5")
    return section, key, value.strip()


def parse_value(text: str) -> Any:
    """A TOML value, or the text itself if it is not TOML (so that words need no quotes)."""
    import tomllib

    try:
        document = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return document["value"] if list(document) == ["value"] else text


def nearest(word: str, known: Iterable[str], count: int = 3) -> str:
    """The end of an error line: the known words nearest to `word`, or all of them if none is near."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=count, cutoff=0.4)
    return f"did you mean {' or '.join(near)}?" if near else f"use one of {', '.join(known)}"


def _fields(kind: Any) -> dict[str, msgspec.structs.FieldInfo]:
    return {field.name: field for field in msgspec.structs.fields(kind)}


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _choices(kind: type[msgspec.Struct], key: str) -> tuple[str, ...]:
    field = _fields(kind).get(key)
    return getattr(field.type, "__args__", ()) if field and getattr(field.type, "__origin__", None) is Literal else ()
