"""A request's tensors and parameters -> a request per image, checked before anything is computed."""

import binascii
import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from vocabseg.runtime.bundle.manifest import PromptSpec
from vocabseg.runtime.errors import ImageError, VocabsegError, VocabularyError
from vocabseg.runtime.text.contrast import candidates
from vocabseg.runtime.text.prompts import shorten
from vocabseg.runtime.text.vocabulary import Vocabulary
from vocabseg.serving.protocol import (
    CLASSES,
    IMAGE,
    LABELS,
    OUTPUTS,
    PIXELS,
    NamedVocabulary,
    RequestLimits,
    RequestOptions,
)

# Parameters that hold a list, as JSON.
LISTS = ("seen", "templates", "other", "things")
BASE64 = re.compile(rb"[A-Za-z0-9+/\s]+={0,2}\s*")


class RequestError(VocabsegError):
    """A request that cannot be used, for reasons other than its image or its names."""


class ImageRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One image of a request: the bytes of its file or its pixels (H, W, 3) uint8, the classes, the outputs wanted."""

    image: bytes | np.ndarray
    vocabulary: Vocabulary
    wanted: frozenset[str]
    options: RequestOptions


class RequestReader:
    """Reads requests for a server with these named vocabularies; the one named "" is the default."""

    def __init__(self, limits: RequestLimits, named: Mapping[str, NamedVocabulary], prompts: Sequence[PromptSpec] = ()):
        """`prompts` are the bundle's, of which those that differ are encoded for every name."""
        self.limits = limits
        self._prompts = prompts
        self._named = {name: Vocabulary(**msgspec.structs.asdict(one)) for name, one in named.items()}

    def read(
        self, inputs: Mapping[str, np.ndarray], parameters: Mapping[str, Any], wanted: Collection[str]
    ) -> list[ImageRequest]:
        """One `ImageRequest` for each image of a request.

        `inputs` are the request's tensors, by the names and shapes of `protocol`, BYTES as object arrays. Raises
        RequestError, ImageError or VocabularyError, each with one clear line.
        """
        options = read_options(parameters)
        images = self._images(inputs)
        if not images:
            raise ImageError(f"the request has no image: give {IMAGE} or {PIXELS} at least one")
        unknown = sorted(set(wanted).difference(OUTPUTS))
        if unknown:
            raise RequestError(f"there is no output {unknown[0]!r}: ask for some of {', '.join(OUTPUTS)}")
        names = inputs.get(CLASSES)
        if names is None:
            vocabularies = [self._by_name(options)] * len(images)
        elif options.vocabulary is not None:
            raise VocabularyError(f"the request has {CLASSES} and names a vocabulary: give one of the two")
        elif names.ndim != 2 or len(names) != len(images):
            raise VocabularyError(f"{CLASSES} has shape {names.shape}: give one row of names per image")
        else:
            vocabularies = [self._from_names(row, options) for row in names]
        outputs = frozenset(wanted) or frozenset([LABELS])
        return [
            ImageRequest(image=image, vocabulary=vocabulary, wanted=outputs, options=options)
            for image, vocabulary in zip(images, vocabularies, strict=True)
        ]

    def _images(self, inputs: Mapping[str, np.ndarray]) -> list[bytes | np.ndarray]:
        files, pixels = inputs.get(IMAGE), inputs.get(PIXELS)
        if (files is None) == (pixels is None):
            what = "neither" if files is None else "both"
            raise ImageError(f"the request has {what} of {IMAGE} (an image file) and {PIXELS} (an array): give one")
        if pixels is not None:
            if pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.dtype != np.uint8:
                raise ImageError(f"{PIXELS} is {pixels.dtype} of shape {pixels.shape}: give (B, H, W, 3) uint8 RGB")
            height, width = pixels.shape[1:3]
            if not (0 < height * width <= self.limits.max_pixels):
                limit = f"{self.limits.max_pixels / 10**6:g} megapixels"
                raise ImageError(f"{PIXELS} has {width} x {height} pixels: give at least 1 x 1 and at most {limit}")
            return list(pixels)
        assert files is not None
        contents = [
            _from_base64(content if isinstance(content, bytes) else bytes(content)) for content in files.ravel()
        ]
        for content in contents:
            if len(content) > self.limits.max_image_bytes:
                limit = f"{self.limits.max_image_bytes / 10**6:g} MB"
                raise ImageError(
                    f"the image file has {len(content) / 10**6:.1f} MB, more than {limit}: make it smaller"
                )
        return list(contents)

    def _by_name(self, options: RequestOptions) -> Vocabulary:
        name = options.vocabulary or ""
        if name in self._named:
            vocabulary = adjust(self._named[name], options)
            # Those that the operator has named, with the operator's templates, may be of any size.
            own = options.templates is None and not isinstance(options.other, list)
            return vocabulary if own else self._affordable(vocabulary)
        known = ", ".join(shorten(key) for key in self._named if key) or "none"
        if not name:
            raise VocabularyError(f"the bundle has no vocabulary of its own: give {CLASSES}, or name one of {known}")
        raise VocabularyError(f"this server has no vocabulary {shorten(name)!r}: it knows {known}; or give {CLASSES}")

    def _from_names(self, row: Sequence[Any], options: RequestOptions) -> Vocabulary:
        limits = self.limits
        if len(row) > limits.max_names:
            raise VocabularyError(
                f"{len(row)} class names are more than this server takes: give at most {limits.max_names}"
            )
        names = []
        for position, value in enumerate(row, start=1):
            content = value if isinstance(value, bytes) else str(value).encode()
            if len(content) > 4 * limits.max_name_length:
                raise VocabularyError(f"class name {position} has {len(content)} bytes: shorten it")
            try:
                name = content.decode("utf-8")
            except UnicodeDecodeError:
                shown = shorten(repr(content))
                raise VocabularyError(f"class name {position} is not UTF-8 text: {shown}; encode it as UTF-8") from None
            if len(name) > limits.max_name_length:
                raise VocabularyError(
                    f"class name {position} has {len(name)} characters, more than {limits.max_name_length}: shorten it"
                )
            names.append(name)
        return self._affordable(adjust(Vocabulary(names), options))

    def _affordable(self, vocabulary: Vocabulary) -> Vocabulary:
        limits, own = self.limits, vocabulary.templates
        longest = max(map(len, own or ("",)))
        if longest > limits.max_name_length:
            raise VocabularyError(f"a template of names has {longest} characters, more than {limits.max_name_length}")
        longest = max(map(len, vocabulary.contrast or ("",)))
        if longest > limits.max_name_length:
            raise VocabularyError(f"a name of other has {longest} characters, more than {limits.max_name_length}")
        kinds = {
            (prompt.graph, prompt.kind == "learned" and own is None, own or tuple(prompt.templates))
            for prompt in self._prompts
        }
        each = sum(1 if learned else len(templates) for _, learned, templates in kinds) or len(own or ("",))
        count = len(vocabulary.spoken)
        if count > limits.max_names:
            raise VocabularyError(
                f"{count} class names, with synonyms, are more than this server takes: give at most {limits.max_names}"
            )
        if vocabulary.contrast == ():
            own_names = self._named[""].written if "" in self._named else ()
            count += len(candidates(own_names, vocabulary.spoken))
        if count * each > limits.max_prompts:
            raise VocabularyError(
                f"{count} class names with {each} prompts each are more than {limits.max_prompts} prompts, "
                "which this server takes: give fewer names or templates"
            )
        return vocabulary


def _from_base64(content: bytes) -> bytes:
    """The file in base64 text, which is how JSON carries one, with or without "data:...;base64,"; else `content`."""
    text = content.partition(b";base64,")[2] if content.startswith(b"data:") else content
    if not BASE64.fullmatch(text):  # as for every image file, whose header holds other bytes
        return content
    try:
        return binascii.a2b_base64(text)
    except binascii.Error:
        return content


def adjust(vocabulary: Vocabulary, options: RequestOptions) -> Vocabulary:
    """The vocabulary with the request's own seen classes, templates and contrast class."""
    given = {name: getattr(options, name) for name in ("seen", "templates", "other")}
    changes = {name: value for name, value in given.items() if value is not None}
    return vocabulary.replace(**changes) if changes else vocabulary


def read_options(parameters: Mapping[str, Any]) -> RequestOptions:
    """The options among a request's parameters; raises RequestError for unknown ones and values that do not fit."""
    values: dict[str, Any] = {}
    for name, value in parameters.items():
        if name not in RequestOptions.__struct_fields__:
            # Triton adds some of its own, such as those of its trace and sequence extensions.
            if name.startswith(("triton_", "sequence_")) or name in ("priority", "timeout", "binary_data_output"):
                continue
            known = ", ".join(RequestOptions.__struct_fields__)
            raise RequestError(f"unknown parameter {shorten(str(name))!r}: use one of {known}")
        if name in LISTS and isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                raise RequestError(f"parameter {name} is {shorten(value)!r}: give a list as JSON") from None
        values[name] = value
    try:
        return msgspec.convert(values, RequestOptions)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:  # the latter of halves of surrogate pairs
        raise RequestError(f"a parameter does not fit: {error}") from None
