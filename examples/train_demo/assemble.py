"""Both stages' weights -> one checkpoint in the published layout, which `vocabseg export` reads."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from vocabseg.export.model.clip import MEAN, STD


def assemble(clip: dict[str, Tensor], network: dict[str, Tensor], non_object_embedding: Tensor) -> dict[str, Tensor]:
    """State dicts of the CLIP and of the proposal network as trained -> the published keys, float32, contiguous."""
    result = {key: value for key, value in network.items() if not key.endswith("num_batches_tracked")}
    result |= {f"clip_adapter.clip_model.{key}": value for key, value in clip.items()}
    result["clip_adapter.non_object_embedding"] = non_object_embedding
    for name, values in (("pixel_mean", MEAN), ("pixel_std", STD)):
        result[f"clip_adapter.{name}"] = 255 * torch.tensor(values).view(1, 3, 1, 1)
    return {
        key: value.detach().cpu().contiguous() if value.is_floating_point() else value.cpu()
        for key, value in result.items()
    }


def write_checkpoint(folder: Path) -> Path:
    """Read clip.pt and polished.pt of a training folder and write model.safetensors beside them."""
    clip = torch.load(folder / "clip.pt", weights_only=True, map_location="cpu")["modules"]["clip"]
    stage = torch.load(folder / "polished.pt", weights_only=True, map_location="cpu")["modules"]
    weights = assemble(clip, stage["network"], stage["criterion"]["non_object_embedding"])
    path = folder / "model.safetensors"
    save_file(weights, path)
    return path
