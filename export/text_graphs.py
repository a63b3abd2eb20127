"""The text encoders that a model needs, and the token ids of its learned prompts."""

from dataclasses import dataclass, field

import msgspec
import torch
from torch import Tensor, nn

from vocabseg.export.checkpoint.load import LearnedPrompt, Model
from vocabseg.export.configuration import Configuration
from vocabseg.export.model.clip import ClipModel
from vocabseg.export.proposals.region_model import RegionModel
from vocabseg.runtime.bundle.folder import TOKENIZER
from vocabseg.runtime.bundle.manifest import Prompts, PromptSpec, TokenizerSpec
from vocabseg.runtime.errors import ConfigurationError
from vocabseg.runtime.text.prompts import PROMPTS

SHARED, REGION = "text_encoder", "region_text_encoder"
REGION_TOKENIZER = "region_tokenizer.json"


@dataclass
class TextGraph:
    """One text encoder, and the rows of learned prompts that follow its table, in order of their token ids.

    Without a `tokenizer` it is CLIP's own, in the bundle's tokenizer.json.
    """

    clip: ClipModel
    tokenizer: TokenizerSpec | None = None
    rows: list[Tensor] = field(default_factory=list)

    def add(self, rows: Tensor) -> list[int]:
        """Append rows (n, width); returns their token ids."""
        first = self.clip.vocab_size + sum(len(part) for part in self.rows)
        self.rows.append(rows)
        return list(range(first, first + len(rows)))

    def tower(self) -> nn.Module:
        """The module to export."""
        return self.clip.make_text_tower(torch.cat(self.rows) if self.rows else None)


@dataclass(frozen=True)
class TextGraphs:
    """The text encoders by name, and the prompt of each side."""

    graphs: dict[str, TextGraph]
    prompts: Prompts


def text_graphs(model: Model | RegionModel, configuration: Configuration) -> TextGraphs:
    """One text graph if both sides embed names with the same encoder, else two.

    Each has a tokenizer of its own if they read text differently. Raises ConfigurationError for a learned prompt that
    the checkpoint lacks.
    """
    query, region = model.query_clip, model.region_clip
    graphs = {SHARED: TextGraph(query, None if query.tokenizer is None else query.tokenizer.in_bundle(TOKENIZER))}
    query_prompt = _prompt(SHARED, graphs[SHARED], configuration.prompt.query, model.query_prompt)
    if not model.separate_region:
        return TextGraphs(graphs, Prompts(query=query_prompt, region=query_prompt))
    name = SHARED
    if not same_text(query, region):
        name = REGION
        graphs[REGION] = TextGraph(region, _region_tokenizer(query, region))
    region_prompt = _prompt(name, graphs[name], configuration.region_prompt, model.region_prompt)
    return TextGraphs(graphs, Prompts(query=query_prompt, region=region_prompt))


def _region_tokenizer(query: ClipModel, region: ClipModel) -> TokenizerSpec | None:
    if region.tokenizer is not None:
        return region.tokenizer.in_bundle(REGION_TOKENIZER)
    reads = [(clip.tokenizer, clip.vocab_size, clip.context_length) for clip in (query, region)]
    return None if reads[0] == reads[1] else TokenizerSpec(file=REGION_TOKENIZER)


def same_text(first: ClipModel, second: ClipModel) -> bool:
    """Whether two CLIP models embed every text alike: the same layers with the same weights."""
    towers = first.text_tower, second.text_tower
    if str(towers[0]) != str(towers[1]):
        return False
    weights, others = (tower.state_dict() for tower in towers)
    return weights.keys() == others.keys() and all(torch.equal(weights[key], others[key]) for key in weights)


def _prompt(name: str, graph: TextGraph, kind: str | list[str], learned: LearnedPrompt | None) -> PromptSpec:
    if isinstance(kind, list):
        return PromptSpec(graph=name, kind="custom", templates=list(kind), tokenizer=graph.tokenizer)
    if kind != "learned":
        spec = msgspec.convert({"graph": name, "kind": kind, "templates": PROMPTS[kind]}, PromptSpec)
        return msgspec.structs.replace(spec, tokenizer=graph.tokenizer)
    if learned is None:
        raise ConfigurationError("the configuration has a learned prompt but the checkpoint does not: set another")
    prefix_ids = graph.add(learned.prefix)
    suffix_ids = graph.add(learned.suffix)
    return PromptSpec(
        graph=name, kind="learned", prefix_ids=prefix_ids, suffix_ids=suffix_ids, tokenizer=graph.tokenizer
    )
