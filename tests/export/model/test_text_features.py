"""Names to embeddings through the whole way, from tokenizer to text tower, against the published method's values."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.golden import load_golden
from tests.runtime.text.test_embedder import make_bundle

torch = pytest.importorskip("torch", reason="torch runs the text tower")
pytest.importorskip("open_clip", reason="open_clip builds the text tower")

from vocabseg.export.checkpoint.random_weights import fill  # noqa: E402
from vocabseg.export.model.clip import ClipModel, build_clip  # noqa: E402
from vocabseg.export.tokenizer_file import write_tokenizer  # noqa: E402
from vocabseg.runtime.bundle.manifest import PromptSpec  # noqa: E402
from vocabseg.runtime.text.embedder import TextEmbedder  # noqa: E402
from vocabseg.runtime.text.prompts import PROMPTS  # noqa: E402

WIDTH, LAYERS, EMBEDDING, PATCH, VISION = 128, 3, 64, 16, 192
PREFIX = "clip_adapter.clip_model."


def block_shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.attn.in_proj_weight": (3 * width, width),
        f"{name}.attn.in_proj_bias": (3 * width,),
        f"{name}.attn.out_proj.weight": (width, width),
        f"{name}.attn.out_proj.bias": (width,),
        **{f"{name}.ln_{index}.{leaf}": (width,) for index in (1, 2) for leaf in ("weight", "bias")},
        f"{name}.mlp.c_fc.weight": (4 * width, width),
        f"{name}.mlp.c_fc.bias": (4 * width,),
        f"{name}.mlp.c_proj.weight": (width, 4 * width),
        f"{name}.mlp.c_proj.bias": (width,),
    }


def clip_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "positional_embedding": (77, WIDTH),
        "text_projection": (WIDTH, EMBEDDING),
        "logit_scale": (),
        "token_embedding.weight": (49408, WIDTH),
        "ln_final.weight": (WIDTH,),
        "ln_final.bias": (WIDTH,),
        "visual.class_embedding": (VISION,),
        "visual.positional_embedding": (197, VISION),
        "visual.proj": (VISION, EMBEDDING),
        "visual.conv1.weight": (VISION, 3, PATCH, PATCH),
        **{f"visual.ln_{place}.{leaf}": (VISION,) for place in ("pre", "post") for leaf in ("weight", "bias")},
    }
    for index in range(LAYERS):
        shapes |= block_shapes(f"transformer.resblocks.{index}", WIDTH)
    shapes |= block_shapes("visual.transformer.resblocks.0", VISION)
    return shapes


@pytest.fixture(scope="module")
def clip() -> ClipModel:
    arrays = fill({PREFIX + name: shape for name, shape in clip_shapes().items()})
    return build_clip({key.removeprefix(PREFIX): torch.from_numpy(np.array(value)) for key, value in arrays.items()})


class Tower:
    """The text tower as an engine."""

    key = "torch-cpu-float32"

    def __init__(self, clip: ClipModel, extra_rows: np.ndarray | None = None):
        self.tower = clip.make_text_tower(None if extra_rows is None else torch.from_numpy(extra_rows))

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            features = self.tower(torch.from_numpy(inputs["token_ids"]), torch.from_numpy(inputs["eot_index"]))
        return {"text_features": features.numpy()}


def embed(folder: Path, engine: Tower, prompt: PromptSpec, names: list[str]) -> np.ndarray:
    folder.mkdir()
    write_tokenizer(folder / "tokenizer.json")
    bundle = make_bundle(folder, prompt, width=EMBEDDING)
    return TextEmbedder(bundle, lambda graph: engine, "").embed(names, prompt)


@pytest.mark.parametrize("kind", ["single", "vild"])
def test_templates(tmp_path: Path, clip: ClipModel, kind: str) -> None:
    arrays, meta = load_golden("e_text_and_clip")
    prompt = PromptSpec(graph="text_encoder", kind=kind, templates=list(PROMPTS[kind]))  # type: ignore[arg-type]
    rows = embed(tmp_path / "bundle", Tower(clip), prompt, meta["names"])
    np.testing.assert_allclose(rows, arrays[f"feat_{kind}"], atol=1e-5)


@pytest.mark.parametrize("shape", [(16, 0), (4, 3), (0, 0), (0, 2)])
def test_learned_prompts(tmp_path: Path, clip: ClipModel, shape: tuple[int, int]) -> None:
    arrays, meta = load_golden("e_text_and_clip")
    before, after = shape
    drawn = fill(
        {
            f"clip_adapter.prompt_learner.{part}_prompt": (count, WIDTH)
            for part, count in (("prefix", before), ("suffix", after))
        }
    )
    rows = np.concatenate([drawn[f"clip_adapter.prompt_learner.{part}_prompt"] for part in ("prefix", "suffix")])
    ids = list(range(clip.vocab_size, clip.vocab_size + before + after))
    prompt = PromptSpec(graph="text_encoder", kind="learned", prefix_ids=ids[:before], suffix_ids=ids[before:])
    engine = Tower(clip, rows if len(rows) else None)
    got = embed(tmp_path / "bundle", engine, prompt, meta["names"])
    np.testing.assert_allclose(got, arrays[f"feat_learn_{before}_{after}"], atol=1e-5)
