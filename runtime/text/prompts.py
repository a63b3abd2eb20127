"""Prompts: the published templates, and how a class name becomes token sequences for the text encoder."""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from vocabseg.runtime.bundle.manifest import PromptSpec
from vocabseg.runtime.errors import BundleError, VocabularyError
from vocabseg.runtime.text.tokenizer import Tokenizer

# Token ids from start to end of text, and the index at which the feature is read.
TokenSequence = tuple[list[int], int]


class AnyTokenizer(Protocol):
    """Turns a text into the token sequence of a text encoder that takes `context_length` of them."""

    context_length: int

    def sequence(self, text: str) -> TokenSequence: ...


SINGLE = ("a sculpture of a {}.",)

# Gu et al. 2021 (ViLD), as used by Xu et al. 2021 (zsseg): some end without a full stop.
VILD = (
    "a photo of a {}.",
    "This is a photo of a {}",
    "There is a {} in the scene",
    "There is the {} in the scene",
    "a photo of a {} in the scene",
    "a photo of a small {}.",
    "a photo of a medium {}.",
    "a photo of a large {}.",
    "This is a photo of a small {}.",
    "This is a photo of a medium {}.",
    "This is a photo of a large {}.",
    "There is a small {} in the scene.",
    "There is a medium {} in the scene.",
    "There is a large {} in the scene.",
)

# The 80 templates of Radford et al. 2021 (CLIP) for ImageNet, in the original order.
IMAGENET = (
    "a bad photo of a {}.",
    "a photo of many {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "a photo of a {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "a embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
    "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
    "a plushie {}.",
    "a photo of the nice {}.",
    "a photo of the small {}.",
    "a photo of the weird {}.",
    "the cartoon {}.",
    "art of the {}.",
    "a drawing of the {}.",
    "a photo of the large {}.",
    "a black and white photo of a {}.",
    "the plushie {}.",
    "a dark photo of a {}.",
    "itap of a {}.",
    "graffiti of the {}.",
    "a toy {}.",
    "itap of my {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "a tattoo of the {}.",
)

# `{}` stands for the class name.
PROMPTS: dict[str, tuple[str, ...]] = {"single": SINGLE, "vild": VILD, "imagenet": IMAGENET}


def with_templates(prompt: PromptSpec, templates: Sequence[str] | None) -> PromptSpec:
    """The prompt with a vocabulary's own templates, if it has any, in place of its own or of what it has learned."""
    if templates is None:
        return prompt
    custom = {"kind": "custom", "templates": list(templates), "prefix_ids": [], "suffix_ids": []}
    return msgspec.structs.replace(prompt, **custom)


def token_sequences(name: str, prompt: PromptSpec, tokenizer: AnyTokenizer) -> list[TokenSequence]:
    """The sequences of one name: one per template, or a single one if the prompt is learned.

    A learned prompt is start, prefix, name, suffix, full stop, end (Xu et al. 2021). Raises BundleError for a prompt
    that lacks its templates, and for a learned one with a tokenizer other than CLIP's.
    """
    if prompt.kind == "learned":
        if not isinstance(tokenizer, Tokenizer):
            raise BundleError("the bundle's learned prompt needs CLIP's tokenizer, but has another: export it again")
        middle = [*prompt.prefix_ids, *tokenizer.encode(name), *prompt.suffix_ids, *tokenizer.encode(".")]
        return [([tokenizer.start_id, *middle, tokenizer.end_id], len(middle) + 1)]
    if not prompt.templates:
        raise BundleError(f"the bundle's prompt of kind {prompt.kind!r} has no templates: export it again")
    return [tokenizer.sequence(template.replace("{}", name)) for template in prompt.templates]


def check_length(name: str, prompt: PromptSpec, tokenizer: AnyTokenizer) -> None:
    """Raise VocabularyError if one of the name's sequences is too long for the text encoder."""
    longest = max(len(ids) for ids, _ in token_sequences(name, prompt, tokenizer))
    if longest > tokenizer.context_length:
        raise VocabularyError(
            f"the class name {shorten(name)!r} makes a prompt of {longest} tokens, but the text encoder takes at most "
            f"{tokenizer.context_length}: shorten it"
        )


def shorten(text: str) -> str:
    """`text`, cut to fit into an error message."""
    return text if len(text) <= 60 else text[:57] + "..."
