"""Trains the demo model: a small CLIP, then a small MaskFormer aligned with its text encoder, on rendered scenes.

    python examples/train_demo/train.py --output DIR

Needs vocabseg[export] and scipy. Ends with DIR/model.pth in the published layout and the command that exports it.
Stop it at any time; --resume goes on from the last checkpoint.
"""

from pathlib import Path
from typing import Annotated

import cv2
import torch
import typer
from assemble import write_checkpoint
from captions import SEEN_CLASSES, Encoder
from clip_stage import EMBEDDING, PROMPT, class_embeddings, make_clip, train_clip
from loop import Run
from proposal_stage import demo_sizes, train_proposals
from scenes import load_scenes
from torch import Tensor

from vocabseg.benchmarks.datasets.world import CLASSES, COLOURS, SHAPES

CLIP_STEPS, CLIP_BATCH = 2400, 96
PROPOSAL_STEPS, PROPOSAL_BATCH = 6000, 8
CLIP_SHARE = 0.35  # of a budget of minutes


def train(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the scenes, checkpoints and logs.")],
    seed: Annotated[int, typer.Option(help="Of the scenes, the weights and the batches.")] = 0,
    scenes: Annotated[int, typer.Option(help="Training scenes to render.")] = 3000,
    minutes: Annotated[float | None, typer.Option(help="Shorten both stages so that they end in this time.")] = None,
    clip_steps: Annotated[int, typer.Option(help="Steps of the CLIP stage.")] = CLIP_STEPS,
    proposal_steps: Annotated[int, typer.Option(help="Steps of the MaskFormer stage.")] = PROPOSAL_STEPS,
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
    train_proposals(stage(proposal_steps, 1 - CLIP_SHARE), groups, texts, demo_sizes(EMBEDDING), PROPOSAL_BATCH)
    print(f"The checkpoint: {write_checkpoint(output)}")
    config = Path(__file__).parent / "demo.toml"
    print(f"Export it with: vocabseg export --config {config} --checkpoint {output / 'model.pth'} --output BUNDLE")


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
