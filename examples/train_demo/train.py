"""Trains the demo model: a small CLIP, then a small MaskFormer aligned with its text encoder, on rendered scenes.

    python examples/train_demo/train.py --output DIR

Needs vocabseg[export,cpu] and scipy. Ends with the weights in DIR/model.safetensors, in the published layout, and the
bundle in DIR/bundle. Stop it at any time; --resume goes on from the last checkpoint.
"""

from pathlib import Path
from typing import Annotated

import cv2
import torch
import typer
from assemble import write_checkpoint
from backbone_stage import train_backbone
from captions import SEEN_CLASSES, Encoder
from clip_stage import EMBEDDING, PROMPT, class_embeddings, make_clip, train_clip
from loop import Run
from proposal_stage import demo_sizes, polish_proposals, train_proposals
from scenes import load_scenes
from torch import Tensor

from vocabseg.benchmarks.scenes.world import CLASSES, COLOURS, SEEN, SHAPES
from vocabseg.export.pipeline import export_checkpoint
from vocabseg.runtime.text.vocabulary import Vocabulary

CLIP_STEPS, CLIP_BATCH = 2400, 96
BACKBONE_STEPS, PROPOSAL_STEPS, POLISH_STEPS, PROPOSAL_BATCH = 6000, 11_000, 2600, 8
CLIP_SHARE, BACKBONE_SHARE, POLISH_SHARE = 0.1, 0.1, 0.2  # of a budget of minutes


def train(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the scenes, checkpoints and logs.")],
    seed: Annotated[int, typer.Option(help="Of the scenes, the weights and the batches.")] = 0,
    scenes: Annotated[int, typer.Option(help="Training scenes to render.")] = 3000,
    minutes: Annotated[float | None, typer.Option(help="Shorten all stages so that they end in this time.")] = None,
    clip_steps: Annotated[int, typer.Option(help="Steps of the CLIP stage.")] = CLIP_STEPS,
    backbone_steps: Annotated[int, typer.Option(help="Steps of the MaskFormer's backbone alone.")] = BACKBONE_STEPS,
    proposal_steps: Annotated[int, typer.Option(help="Steps of the MaskFormer stage.")] = PROPOSAL_STEPS,
    polish_steps: Annotated[int, typer.Option(help="Steps at full size, with as many new scenes.")] = POLISH_STEPS,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoints.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads; more help little, since the networks are small.")] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Train the demo model. Example: python examples/train_demo/train.py --output /tmp/demo"""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(threads)
    cv2.setNumThreads(0)  # the batches are made in a thread of their own
    output.mkdir(parents=True, exist_ok=True)
    print(f"Training on {device}: {scenes} scenes, seed {seed}; logs and checkpoints in {output}")
    groups = load_scenes(output / "scenes", scenes, seed)

    def stage(steps: int, share: float) -> Run:
        budget = None if minutes is None else share * minutes
        return Run(output, steps, seed, budget, resume, device, quiet)

    train_clip(stage(clip_steps, CLIP_SHARE), groups, CLIP_BATCH)
    texts = text_embeddings(output / "clip.pt", device)
    sizes = demo_sizes(EMBEDDING)
    train_backbone(stage(backbone_steps, BACKBONE_SHARE), groups, sizes, PROPOSAL_BATCH)
    share = 1 - CLIP_SHARE - BACKBONE_SHARE - POLISH_SHARE
    train_proposals(stage(proposal_steps, share), groups, texts, sizes, PROPOSAL_BATCH)
    more = load_scenes(output / "scenes", 2 * scenes, seed)
    polish_proposals(stage(polish_steps, POLISH_SHARE), more, texts, sizes, PROPOSAL_BATCH)
    export_bundle(write_checkpoint(output), output / "bundle")
    print(f"Measure it with: vocabseg evaluate {output / 'bundle'} --dataset world")


def export_bundle(checkpoint: Path, output: Path) -> None:
    """Export the trained weights; the bundle declares the world's classes and which of them were seen."""
    config = Path(__file__).parent / "demo.toml"
    export_checkpoint(str(config), output, checkpoint, vocabulary=Vocabulary(CLASSES, SEEN), overwrite=True)
    print(f"The weights: {checkpoint}; the bundle: {output}")


def text_embeddings(path: Path, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """What queries are compared with: the trained text encoder's seen classes, colours and shapes, each (n, D)."""
    clip = make_clip()
    clip.load_state_dict(torch.load(path, weights_only=True, map_location="cpu")["modules"]["clip"])
    clip = clip.to(device).eval()
    encoder = Encoder()
    names = [CLASSES[index] for index in SEEN_CLASSES]
    colours = [f"{colour} thing" for colour in COLOURS]
    return (
        class_embeddings(clip, encoder, names, PROMPT),
        class_embeddings(clip, encoder, colours, PROMPT),
        class_embeddings(clip, encoder, SHAPES, PROMPT),
    )


if __name__ == "__main__":
    typer.run(train)
