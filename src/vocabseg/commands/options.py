"""Options that several commands share, and the target they describe."""

import inspect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass
from functools import cached_property, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vocabseg.runtime.errors import ConfigurationError
from vocabseg.runtime.precisions import LONG, precision_name

if TYPE_CHECKING:
    from vocabseg.runtime.bundle.folder import Bundle
    from vocabseg.runtime.segmenter.segmenter import Segmenter
    from vocabseg.runtime.text.vocabulary import Vocabulary


def precision_names(text: str) -> list[str]:
    """The precisions of a list separated by commas, by their long names."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return [LONG.get(part.lower(), part) for part in parts]


BundleArgument = Annotated[
    Path | None, typer.Argument(help="The bundle's folder; without it, the built-in demo model.", show_default=False)
]
BundleOption = Annotated[
    Path | None, typer.Option("--bundle", "-b", help="The bundle's folder; without it, the built-in demo model.")
]
Classes = Annotated[
    str | None,
    typer.Option(
        "--classes",
        "-c",
        help="Class names separated by commas, cat|kitten for two names of one; @FILE with one on each line, or a CSV "
        "or JSON file with ids and colours; or a data set's name (evaluate --list).",
    ),
]
Other = Annotated[
    bool,
    typer.Option("--other", help="Add a class 'other' for what fits none of the classes, in place of a wrong one."),
]
Contrast = Annotated[
    str | None,
    typer.Option("--contrast", help="The names of 'other', like --classes. Default: the bundle's and common words."),
]
Seen = Annotated[str | None, typer.Option("--seen", help="Which of the classes were seen in training, like --classes.")]
Templates = Annotated[
    list[str] | None, typer.Option("--template", help="Prompt template with one {}; may be repeated.")
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Override a setting, such as region.mask_threshold=0.4.")
]
Engine = Annotated[
    str | None, typer.Option(help="openvino, onnxruntime, tensorrt or tensorrt-rtx; default: the fastest here.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[
    str | None,
    typer.Option(
        callback=precision_name,
        help="float32, bfloat16, float16 (or fp32, bf16, fp16), int8 or fp8; default: the engine's own.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]


def vocabulary_of(text: str) -> "Vocabulary":
    """The names in an option: those of a data set, or as `Vocabulary.of` reads them; raises VocabularyError."""
    from vocabseg.runtime.text.vocabulary import Vocabulary

    if text.strip().rpartition("-")[2].isdecimal():
        from vocabseg.benchmarks.datasets.registry import class_names

        found = class_names(text.strip())
        if found is not None:
            return Vocabulary(found)
    return Vocabulary.of(text)


Examples = Annotated[
    list[str] | None,
    typer.Option("--example", help="NAME=IMAGE: a class that is shown instead of named; may be repeated."),
]


def list_files(*options: str | None) -> list[str]:
    """The files that options name as @FILE."""
    return [text[1:] for text in options if text is not None and text.startswith("@")]


def example_files(examples: Sequence[str] | None) -> dict[str, list[str]]:
    """The images that --example gives, by class name; raises ConfigurationError."""
    images: dict[str, list[str]] = {}
    for entry in examples or ():
        name, _, image = entry.partition("=")
        if not name.strip() or not image.strip():
            raise ConfigurationError(f"--example {entry!r}: write NAME=IMAGE, such as logo=logo.png")
        images.setdefault(name.strip(), []).append(image.strip())
    return images


def with_examples(vocabulary: "Vocabulary | None", examples: Sequence[str] | None) -> "Vocabulary | None":
    """The vocabulary with the classes that --example shows; raises ConfigurationError and VocabularyError."""
    from vocabseg.runtime.text.vocabulary import Vocabulary

    images = example_files(examples)
    if not images:
        return vocabulary
    if vocabulary is None:
        return Vocabulary.from_images(images)
    arguments = vocabulary.arguments()
    return Vocabulary(**(arguments | {"examples": (arguments["examples"] or {}) | images}))


def with_other(vocabulary: "Vocabulary", other: bool, contrast: str | None) -> "Vocabulary":
    """The vocabulary with the contrast class that --other and --contrast ask for; raises VocabularyError."""
    if contrast is not None:
        return vocabulary.replace(other=vocabulary_of(contrast).written)
    return vocabulary.replace(other=True) if other else vocabulary


def refined(vocabulary: "Vocabulary", seen: str | None, templates: list[str] | None) -> "Vocabulary":
    """The vocabulary with what the options --seen and --template say; raises VocabularyError."""
    if seen is None and not templates:
        return vocabulary
    flags = vocabulary.seen if seen is None else vocabulary_of(seen).names
    return vocabulary.replace(seen=flags, templates=templates or None)


FOREIGN = (
    "the built-in demo model knows coloured shapes on textures, such as 'red circle' or 'brick wall', and none of the "
    "names: what it finds means nothing; give --bundle a model of your own"
)


def foreign_to_demo(bundle: "Bundle", vocabulary: "Vocabulary") -> bool:
    """Whether the bundle is the demo model, and no name consists of words that it was trained on."""
    from vocabseg.runtime.bundle.folder import is_demo

    if not is_demo(bundle.folder):
        return False
    known = {word for name in bundle.manifest.vocabulary or () for word in name.split()}
    return not any(known.issuperset(name.lower().split()) for name in itertools.chain(*vocabulary.synonyms))


def two_stage(bundle: "Bundle", verb: str) -> "Bundle":
    """The bundle, for a verb that works on masks and regions; raises ConfigurationError for one that has none."""
    if bundle.manifest.per_pixel:
        raise ConfigurationError(
            f"{bundle.manifest.name} is a per-pixel model, and `vocabseg {verb}` works on masks and regions: give the "
            "bundle of a two-stage model"
        )
    return bundle


@dataclass(frozen=True)
class Target:
    """The bundle a command works on (None: the demo model) and how to run it, as the options say."""

    bundle: Path | None = None
    device: str = "auto"
    engine: str | None = None
    precision: str | None = None
    settings: Sequence[str] | None = None

    @cached_property
    def opened(self) -> "Bundle":
        """The bundle with the settings applied, opened and verified once; raises BundleError, ConfigurationError."""
        from vocabseg.runtime.bundle.settings import open_adjusted

        return open_adjusted(self.bundle, self.settings or ())

    def segmenter(self) -> "Segmenter":
        """The opened bundle, ready to run; raises EngineError where this machine cannot."""
        from vocabseg.runtime.segmenter.opening import open_segmenter

        return open_segmenter(self.opened, self.device, self.engine, self.precision)


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """The command for typer: a parameter that is a dataclass is replaced by the options that are its fields."""
    parameters: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        if is_dataclass(parameter.annotation):
            groups[name] = parameter.annotation
            parameters += inspect.signature(groups[name]).parameters.values()
        else:
            parameters.append(parameter)

    @wraps(command)
    def flat(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{option: given.pop(option) for option in inspect.signature(kind).parameters})
        command(**given)

    options = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    flat.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    return flat
