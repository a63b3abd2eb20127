"""Models of open_clip by name: each family exported and compared with open_clip's own encoders."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import vocabseg
from tests.export.model.small_models import small_configuration, small_model
from tests.golden import REPOSITORY
from tests.runtime.text.tokenizer_files import write_tokenizer
from vocabseg.export.bundle import export_bundle
from vocabseg.export.checkpoint.load import load_clip_source
from vocabseg.export.graph.trace import export_graph
from vocabseg.export.graph_checks import check_graph
from vocabseg.export.model.open_clip_models import known_models, open_clip_model
from vocabseg.export.model.towers import prune_last_block
from vocabseg.export.reference import ReferenceSegmenter
from vocabseg.runtime.bundle.folder import open_bundle
from vocabseg.runtime.engines.host_engines import open_engine
from vocabseg.runtime.errors import ConfigurationError
from vocabseg.runtime.images import load_image
from vocabseg.runtime.text.embedder import TextEmbedder
from vocabseg.runtime.text.vocabulary import Vocabulary

open_clip = pytest.importorskip("open_clip", reason="open_clip holds the CLIP modules")

# A model of each family, and what makes the timm module behind it shallow; the kinds of its layers stay.
FAMILIES: dict[str, dict[str, Any]] = {
    "MobileCLIP2-S0": {"layers": (1, 1, 1, 1)},
    "PE-Core-T-16-384": {"depth": 1},
    "ViTamin-S": {"depth": 1},
    "convnext_tiny": {"depths": (1, 1, 1, 1)},
    "EVA02-B-16": {"depth": 1},
    "ViT-B-16-SigLIP2": {"depth": 1},
}
# Those whose text encoder is not as that of OpenAI's CLIP: its graph is exported as well.
OTHER_TEXT = ("MobileCLIP2-S0", "PE-Core-T-16-384", "ViT-B-16-SigLIP2")


def shallow(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a model like open_clip's `name`, with few layers and CLIP's own tokenizer."""
    import timm

    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *args, **options: create(*args, **FAMILIES[name], **options))
    config = open_clip.get_model_config(name)
    text = {**config["text_cfg"], "width": 64, "heads": 1, "layers": 1, "vocab_size": 600}
    if text.pop("hf_tokenizer_name", None):
        del text["tokenizer_kwargs"]
        text["pool_type"] = "argmax"
    (tmp_path / f"shallow-{name}.json").write_text(json.dumps({**config, "text_cfg": text}))
    open_clip.add_model_config(tmp_path / f"shallow-{name}.json")
    return f"shallow-{name}"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_computes_what_open_clip_computes(name, tmp_path, monkeypatch):
    torch.manual_seed(0)
    clip = open_clip_model(shallow(name, tmp_path, monkeypatch))
    generator = np.random.default_rng(0)
    size, context, width = clip.image_size, clip.context_length, clip.embed_dim
    crops = generator.standard_normal((2, 3, size, size), np.float32)
    ids = generator.integers(1, 590, (3, context))
    ends = np.array([2, 5, context - 1])
    ids[np.arange(3), ends] = 599  # open_clip reads the feature at the largest id
    with torch.no_grad():
        expected = {
            "image_features": clip.module.encode_image(torch.from_numpy(crops)),
            "text_features": clip.module.encode_text(torch.from_numpy(ids)),
        }
        found = {
            "image_features": clip.image_tower(torch.from_numpy(crops)),
            "text_features": clip.text_tower(torch.from_numpy(ids), torch.from_numpy(ends)),
        }
    for output, features in expected.items():
        assert features.shape[1] == width
        assert (found[output] - features).abs().max() <= 1e-5 * features.abs().max()
    graphs: list[Any] = [(clip.image_tower, {"crops": crops}, "image_features")]
    if name in OTHER_TEXT:
        graphs.append((clip.text_tower, {"token_ids": ids, "eot_index": ends}, "text_features"))
    # The graphs are held to the towers, in a batch of another size than the traced one; it raises if they differ.
    for tower, inputs, output in graphs:
        dimensions: dict[str, Any] = {key: ("batch", *array.shape[1:]) for key, array in inputs.items()}
        dimensions[output] = ("batch", width)
        sample = {key: torch.from_numpy(array[:2]) for key, array in inputs.items()}
        path = tmp_path / f"{output}.onnx"
        export_graph(prune_last_block(tower), sample, dimensions, path)
        check_graph(path, tower, [{key: array[:1] for key, array in inputs.items()}, inputs])


def test_every_model_of_open_clip_is_listed_with_what_it_needs():
    answers = known_models()
    assert set(answers) == set(open_clip.list_models())
    for name in ("ViT-B-16", "MobileCLIP2-S2", "PE-Core-B-16", "PE-Core-bigG-14-448", "EVA02-L-14", "ViTamin-B"):
        assert answers[name] == "yes"
    assert answers["ViT-B-16-SigLIP2"] == "with its tokenizer timm/ViT-B-16-SigLIP2"
    assert answers["coca_ViT-B-32"].startswith("no: its features are pooled")
    assert answers["roberta-ViT-B-32"] == "no: its text encoder is roberta-base of the package transformers"
    assert sum(answer.startswith("no") for answer in answers.values()) <= 13


@pytest.mark.parametrize(
    ("name", "tokenizer", "problem"),
    [
        ("roberta-ViT-B-32", None, "roberta-base of the package transformers"),
        ("coca_ViT-B-32", None, "CoCa's own tokens"),
        ("ViT-Q-99", None, "unknown CLIP model 'ViT-Q-99': `vocabseg export --list-clips`"),
        ("ViT-B-16-SigLIP2", None, "as --clip ViT-B-16-SigLIP2::WEIGHTS::FOLDER"),
        ("ViT-B-16", "folder", "has CLIP's own tokenizer, which is there: leave folder out"),
    ],
)
def test_models_that_cannot_be_used_are_refused(name, tokenizer, problem):
    with pytest.raises(ConfigurationError, match=problem):
        open_clip_model(name, tokenizer=tokenizer)


def test_unknown_weights_are_refused():
    with pytest.raises(ConfigurationError, match=r"'laion99b' is neither a file nor .*laion2b_s34b_b88k"):
        open_clip_model("ViT-B/16", "laion99b")


def registered(tmp_path: Path, name: str, text: dict[str, Any]) -> str:
    """A tiny model whose text encoder is like SigLIP's."""
    config = {
        "embed_dim": 16,
        "custom_text": True,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1},
        "text_cfg": {
            "hf_tokenizer_name": "someone/tokenizer",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "vocab_size": 200,
            "context_length": 48,
            "width": 64,
            "heads": 1,
            "layers": 1,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            **text,
        },
    }
    (tmp_path / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / f"{name}.json")
    return name


def test_a_clip_with_another_tokenizer_embeds_regions(tmp_path):
    tokenizer = write_tokenizer(tmp_path / "tokenizer", "pieces")
    region = load_clip_source(f"{registered(tmp_path, 'tiny-siglip', {})}::::{tokenizer}")
    model = dataclasses.replace(small_model(), region_clip=region, region_prompt=None)
    configuration = small_configuration("prompt.region=single", "region.crop_size=32")
    bundle = open_bundle(export_bundle(model, configuration, tmp_path / "bundle", "tiny"))
    prompts = bundle.manifest.prompts
    assert prompts.query.tokenizer is None
    assert prompts.region.tokenizer.file == "region_tokenizer.json"
    assert (bundle.folder / "region_tokenizer.json").read_bytes() == (tokenizer / "tokenizer.json").read_bytes()
    names = ["a cat", "grass & sky", "\u732b"]
    embedder = TextEmbedder(bundle, lambda graph: open_engine(bundle.graph_path(graph)), cache_dir="")
    found = {side: embedder.text_matrix(Vocabulary(names), side) for side in ("query", "region")}
    # What open_clip computes of the sequences, which are held to those of its own wrapper elsewhere.
    rows = [region.tokenizer.sequences.sequence(f"a sculpture of a {name}.")[0] for name in names]
    with torch.no_grad():
        expected = F.normalize(region.module.encode_text(torch.tensor(rows)), dim=-1).numpy()
    assert np.abs(found["region"] - expected).max() <= 1e-5
    assert found["query"].shape == (3, model.query_clip.embed_dim)
    reference = ReferenceSegmenter(model, configuration)
    assert np.abs(reference.text_embeddings(names)[1].numpy() - expected).max() <= 1e-5
    result = vocabseg.load(bundle.folder, device="cpu")(REPOSITORY / "examples" / "scene.png", names)
    assert result.labels.shape == load_image(REPOSITORY / "examples" / "scene.png").shape[:2]


@pytest.mark.parametrize(
    ("files", "text", "problem"),
    [
        ((), {}, "no tokenizer at .*tokenizer.json: give a tokenizer.json"),
        (("tokenizer.json",), {}, "does not tell its pad_token: give the folder with the tokenizer_config.json"),
        (("tokenizer.json", "tokenizer_config.json"), {"vocab_size": 8}, r"has \d+ tokens, but tiny-\d embeds 8"),
    ],
)
def test_tokenizers_that_do_not_belong_to_the_model(tmp_path, files, text, problem):
    whole, folder = write_tokenizer(tmp_path / "whole", "pieces"), tmp_path / "tokenizer"
    folder.mkdir()
    for file in files:
        (folder / file).write_bytes((whole / file).read_bytes())
    with pytest.raises(ConfigurationError, match=problem):
        open_clip_model(registered(tmp_path, f"tiny-{len(files)}", text), tokenizer=folder)
