"""A loaded model -> a bundle: graphs, tokenizer, tensors, and a manifest with the measured parity."""

import contextlib
import os
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import nn

from vocabseg.export import graph_checks
from vocabseg.export.checkpoint.load import Model
from vocabseg.export.configuration import Configuration
from vocabseg.export.graph.trace import OPSET, check_opset, export_graph
from vocabseg.export.graph_checks import COSINE_LIMIT, RELATIVE_LIMIT, Photo, check_graph
from vocabseg.export.model.maskformer import ProposalNetwork
from vocabseg.export.model.towers import prune_last_block
from vocabseg.export.proposals.onnx_proposals import NEEDED, OnnxProposals
from vocabseg.export.proposals.region_model import RegionModel
from vocabseg.export.text_graphs import TextGraph, TextGraphs, text_graphs
from vocabseg.export.tokenizer_file import vocabulary_merges, write_tokenizer
from vocabseg.runtime.bundle.folder import TENSORS, TOKENIZER
from vocabseg.runtime.bundle.manifest import FORMAT, MANIFEST, GraphRecord, Manifest, file_record, write_manifest
from vocabseg.runtime.bundle.sections import InputSection, RegionSpec
from vocabseg.runtime.errors import ConfigurationError, OutputError
from vocabseg.runtime.files import whole_folder
from vocabseg.runtime.progress import Progress, silent
from vocabseg.runtime.text.huggingface_tokenizer import open_tokenizer
from vocabseg.runtime.text.prompts import AnyTokenizer
from vocabseg.runtime.text.vocabulary import Vocabulary

_PACKAGES = ("vocabseg", "torch", "open_clip_torch", "onnx", "onnxscript", "openvino", "onnxruntime")


def export_bundle(
    model: Model | RegionModel,
    configuration: Configuration,
    output: str | Path,
    name: str,
    provenance: Mapping[str, Any] | None = None,
    opset: int = OPSET,
    fused_attention: bool = False,
    sample_image: str | Path | None = None,
    vocabulary: Vocabulary | None = None,
    weights_license: str | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Path:
    """Write `model` as a bundle at `output` and return its folder.

    A RegionModel becomes one whose image encoder alone decides, with its ONNX proposal network or without any.

    Every graph is compared with its module on every installed engine, on noise, on a photo (`sample_image`, or the
    package's own) and on class names; the figures go into the manifest. The bundle appears under its name when it is
    complete; with `overwrite` it replaces an existing bundle. `weights_license` is the licence of the weights where it
    limits their use.

    Raises OutputError if it cannot be written, ImageError for the photo, ConfigurationError for a crop size, an input
    size or CLIP models that do not fit, and ExportError if a graph differs from its module or no engine is installed.
    """
    check_opset(opset)
    target = check_target(Path(output), overwrite)
    pixels = graph_checks.sample_pixels(sample_image)
    texts = text_graphs(model, configuration)
    clip = model.region_clip
    region = RegionSpec(
        **msgspec.structs.asdict(configuration.region), mean=clip.mean, std=clip.std, patch_grid=clip.patch_grid
    )
    found = model.proposals if isinstance(model, RegionModel) else model.proposal
    if isinstance(found, ProposalNetwork) or (isinstance(found, OnnxProposals) and found.dynamic):
        _check_size(configuration.input)
    photo = Photo(pixels, configuration, region, found)
    tower = clip.make_image_tower(region.crop_size)
    with whole_folder(target, "the bundle", lambda: check_target(target, overwrite)) as folder:
        writer = _Writer(folder, opset, fused_attention, progress, graphs=1 + (found is not None) + len(texts.graphs))
        if isinstance(found, OnnxProposals):
            writer.given_proposals(found, photo, configuration.input)
        elif isinstance(model, Model) and configuration.proposal.per_pixel:
            writer.pixel_encoder(model, photo)
        elif isinstance(model, Model):
            writer.proposal(model, photo)
        writer.image_encoder(model, tower, photo, region)
        writer.text_encoders(model, texts)
        _write_tensors(folder, model)
        manifest = Manifest(
            format=FORMAT,
            name=name,
            graphs=writer.records,
            files={file: file_record(folder, file) for file in (*writer.files, TENSORS)},
            input=configuration.input,
            region=region,
            ensemble=configuration.ensemble,
            prompts=texts.prompts,
            vocabulary=None if vocabulary is None else list(vocabulary.written),
            masks="given" if found is None else msgspec.UNSET,
            seen=None if vocabulary is None or vocabulary.seen is None else vocabulary.seen.tolist(),
            weights_license=weights_license,
            provenance=_provenance(configuration, model, provenance or {}),
            parity={
                "compared_with": "PyTorch, float32",
                "limits": {"cosine": COSINE_LIMIT, "relative": RELATIVE_LIMIT},
                "graphs": writer.parity,
            },
        )
        write_manifest(manifest, folder)
        writer.tick("done")
    return target


class _Writer:
    """Exports and checks one graph after the other, so that only one tower and one engine are in memory at a time."""

    def __init__(self, folder: Path, opset: int, fused: bool, progress: Progress, graphs: int):
        self.folder, self.opset, self.fused, self.progress = folder, opset, fused, progress
        self.done, self.total = 0, 2 * graphs
        self.records: dict[str, GraphRecord] = {}
        self.parity: dict[str, Any] = {}
        self.files: list[str] = []

    def tick(self, what: str) -> None:
        self.progress(what, self.done, self.total)
        self.done += 1

    def graph(
        self,
        name: str,
        module: nn.Module,
        sample: Mapping[str, torch.Tensor],
        dimensions: Mapping[str, Sequence[int | str]],
        inputs: Sequence[Mapping[str, np.ndarray]],
    ) -> None:
        path = self.folder / f"{name}.onnx"
        self.tick(f"exporting {name}")
        shortened = prune_last_block(module)
        self.records[name] = export_graph(shortened, sample, dimensions, path, self.opset, self.fused)
        self.tick(f"checking {name}")
        self._note(name, check_graph(path, module, inputs))

    def _note(self, name: str, report: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
        self.parity[name] = {
            engine: {output: _shorten(figures) for output, figures in outputs.items()}
            for engine, outputs in report.items()
        }

    def proposal(self, model: Model, photo: Photo) -> None:
        assert isinstance(model.proposal, ProposalNetwork)
        queries = model.proposal.sizes.queries
        dimensions: dict[str, Sequence[int | str]] = {
            "image": ("batch", 3, "height", "width"),
            "mask_logits": ("batch", queries, "height/4", "width/4"),
            "query_embeddings": ("batch", queries, model.query_clip.embed_dim),
        }
        sample = {"image": torch.randn(2, 3, *model.proposal.sample_size)}
        self.graph("proposal", model.proposal, sample, dimensions, graph_checks.proposal_inputs(photo))

    def pixel_encoder(self, model: Model, photo: Photo) -> None:
        dimensions: dict[str, Sequence[int | str]] = {
            "image": ("batch", 3, "rows", "columns"),
            "pixel_embeddings": ("batch", model.query_clip.embed_dim, "ceil(rows/4)", "ceil(columns/4)"),
        }
        sample = {"image": torch.randn(2, 3, 75, 101)}
        self.graph("pixel_encoder", model.proposal, sample, dimensions, graph_checks.pixel_inputs(photo))

    def given_proposals(self, proposals: OnnxProposals, photo: Photo, spec: InputSection) -> None:
        path = self.folder / "proposal.onnx"
        self.tick("writing proposal")
        record = proposals.save(path, proposals.dimensions(spec))
        self.records["proposal"] = msgspec.structs.replace(record, provenance=proposals.provenance())
        self.tick("checking proposal")
        report = check_graph(path, proposals, graph_checks.given_inputs(photo), proposals.path.name, NEEDED)
        self._note("proposal", report)

    def image_encoder(self, model: Model | RegionModel, tower: nn.Module, photo: Photo, spec: RegionSpec) -> None:
        size = (3, spec.crop_size, spec.crop_size)
        dimensions: dict[str, Sequence[int | str]] = {
            "crops": ("batch", *size),
            "image_features": ("batch", model.region_clip.embed_dim),
        }
        sample = {"crops": torch.randn(2, *size)}
        if spec.patch_grid:
            masks = (spec.patch_grid, spec.patch_grid)
            dimensions = {"patch_mask": ("batch", *masks), **dimensions}
            sample["patch_mask"] = torch.ones(2, *masks)
        self.graph("image_encoder", tower, sample, dimensions, graph_checks.image_inputs(photo))

    def text_encoders(self, model: Model | RegionModel, texts: TextGraphs) -> None:
        for name, graph in texts.graphs.items():
            tokenizer, context = self.tokenizer(graph), graph.clip.context_length
            tower = graph.tower()
            dimensions: dict[str, Sequence[int | str]] = {
                "token_ids": ("batch", context),
                "eot_index": ("batch",),
                "text_features": ("batch", graph.clip.embed_dim),
            }
            sample = {"token_ids": torch.ones(2, context, dtype=torch.int64), "eot_index": torch.tensor([3, 4])}
            sides = (texts.prompts.query, texts.prompts.region)
            prompts = [prompt for prompt in sides if prompt.graph == name]
            ids = graph.clip.vocab_size + sum(map(len, graph.rows))
            inputs = graph_checks.text_inputs(tokenizer, prompts, ids)
            self.graph(name, tower, sample, dimensions, inputs)

    def tokenizer(self, graph: TextGraph) -> AnyTokenizer:
        """Write the graph's tokenizer, unless another graph has the same, and return it."""
        file, context = graph.tokenizer.file if graph.tokenizer else TOKENIZER, graph.clip.context_length
        path = self.folder / file
        if file not in self.files:
            self.files.append(file)
            if graph.clip.tokenizer is not None:
                shutil.copyfile(graph.clip.tokenizer.path, path)
            else:
                write_tokenizer(path, vocabulary_merges(graph.clip.vocab_size), context_length=context)
        return open_tokenizer(path, graph.tokenizer, context)


def _check_size(spec: InputSection) -> None:
    """Of a network that takes many sizes: no bundle with another one could be opened."""
    if any(side % spec.divisor for side in spec.size or ()):
        raise ConfigurationError(
            f"input.size {list(spec.size or ())} must be multiples of input.divisor {spec.divisor}: set others"
        )


def check_target(target: Path, overwrite: bool) -> Path:
    """The folder to write, links resolved; fails before the long work does."""
    target = Path(os.path.realpath(target))
    parent = target.parent
    if not parent.is_dir():
        raise OutputError(f"cannot write the bundle {target}: the folder {parent} does not exist; create it first")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write the bundle {target}: no permission to write in {parent}; choose another place")
    if not target.exists():
        return target
    if not target.is_dir():
        raise OutputError(f"cannot write the bundle {target}: a file has that name; choose another")
    if any(target.iterdir()):
        if not (target / MANIFEST).is_file():
            raise OutputError(f"cannot write the bundle {target}: that folder holds other files; choose another name")
        if not overwrite:
            raise OutputError(
                f"there is a bundle at {target} already: choose another name, or replace it (--overwrite)"
            )
    return target


def _write_tensors(folder: Path, model: Model | RegionModel) -> None:
    from safetensors.numpy import save

    tensors = {}
    if isinstance(model, Model):
        embedding = model.non_object_embedding.detach().float().numpy()
        tensors["query.non_object_embedding"] = np.ascontiguousarray(embedding)
    # Not its save_file, which makes the file readable by its owner alone.
    (folder / TENSORS).write_bytes(save(tensors))


def _provenance(configuration: Configuration, model: Model | RegionModel, given: Mapping[str, Any]) -> dict[str, Any]:
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        **given,
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "versions": versions,
        "activation": {"query": model.query_clip.activation, "region": model.region_clip.activation},
        "configuration": msgspec.to_builtins(configuration),
    }


def _shorten(figures: Mapping[str, float]) -> dict[str, float]:
    """Digits that mean something: errors to three, a cosine to nine places."""
    return {key: round(value, 9) if key == "cosine" else float(f"{value:.3g}") for key, value in figures.items()}
