"""Tokenizers other than CLIP's own, as their authors publish them, for text encoders of open_clip's own making."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from vocabseg.runtime.bundle.manifest import TokenizerSpec
from vocabseg.runtime.errors import ConfigurationError, VocabsegError
from vocabseg.runtime.text.huggingface_tokenizer import HuggingFaceTokenizer

FILE = "tokenizer.json"


@dataclass(frozen=True)
class OtherTokenizer:
    """A tokenizer.json, and what a bundle says of it (`spec.file` is a placeholder)."""

    path: Path
    spec: TokenizerSpec
    context_length: int

    def in_bundle(self, file: str) -> TokenizerSpec:
        """What a manifest says of it under the name `file`."""
        return msgspec.structs.replace(self.spec, file=file)

    @cached_property
    def sequences(self) -> HuggingFaceTokenizer:
        """The tokenizer itself."""
        return HuggingFaceTokenizer(self.path, self.spec, self.context_length)


def read_tokenizer(source: str | Path, name: str, text: Any) -> OtherTokenizer:
    """The tokenizer of open_clip's model `name`, whose text encoder is `text`.

    `source` is a tokenizer.json, or the folder that holds one; its padding token is told by it or by the
    tokenizer_config.json or special_tokens_map.json beside it. How text is cleaned, and where the feature is read, is
    what open_clip says of the model. Raises ConfigurationError for files that are missing, or belong to another model.
    """
    import open_clip

    path = Path(source) / FILE if Path(source).is_dir() else Path(source)
    if not path.is_file():
        raise ConfigurationError(f"no tokenizer at {path}: give a tokenizer.json, or the folder that holds one")
    options = open_clip.get_model_config(name)["text_cfg"].get("tokenizer_kwargs") or {}
    spec = TokenizerSpec(
        file=FILE,
        kind="huggingface",
        clean=options.get("clean", "whitespace"),
        end_id=text.eos_id if text.pool_type == "eos" else None,
    )
    found = OtherTokenizer(path, spec, text.context_length)
    try:
        inner = found.sequences.inner
    except VocabsegError as error:
        raise ConfigurationError(str(error).replace("export the bundle again", "give another")) from None
    if inner.get_vocab_size() > text.vocab_size:
        raise ConfigurationError(
            f"{path} has {inner.get_vocab_size()} tokens, but {name} embeds {text.vocab_size}: give the tokenizer that "
            "belongs to the model"
        )
    padding = json.loads(inner.to_str()).get("padding") or json.loads(path.read_bytes()).get("padding")
    zeroed: tuple[int, ...] = ()
    if options.get("strip_sep_token"):
        zeroed = (_special(inner, path, "sep_token"),)
    pad = padding["pad_id"] if padding else _special(inner, path, "pad_token")
    return OtherTokenizer(path, msgspec.structs.replace(spec, pad_id=pad, zeroed_ids=zeroed), text.context_length)


def _special(inner: Any, path: Path, kind: str) -> int:
    """The id of a special token by its role, which only the files beside tokenizer.json tell."""
    for beside in ("tokenizer_config.json", "special_tokens_map.json"):
        try:
            named = json.loads((path.parent / beside).read_bytes()).get(kind)
        except (OSError, ValueError, AttributeError):
            continue
        token = inner.token_to_id(named["content"] if isinstance(named, dict) else str(named)) if named else None
        if token is not None:
            return token
    raise ConfigurationError(
        f"{path} does not tell its {kind}: give the folder with the tokenizer_config.json that belongs to it"
    )
