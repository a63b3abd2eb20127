"""`python -m vocabseg.export.proposals.adapters`: networks of other libraries as ONNX, with their settings as TOML.

transformers' Mask2Former, MaskFormer and EoMT from a local folder (config.json, weights and, for the preprocessing,
preprocessor_config.json), and RF-DETR-Seg's variants with weights in a file. Classes are dropped: a proposal's score is
1 - P("no object") of the first three, and the most likely class's probability of RF-DETR, which has no such class.
`vocabseg export --proposals NETWORK.onnx` reads the file and NETWORK.toml beside it.
"""

import argparse
import json
import re
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Annotated, Any

import msgspec
import torch
from torch import Tensor, nn

from vocabseg.export.configuration import REGIONS, Configuration, load_configuration
from vocabseg.export.graph.onnx_file import ExportError, save_graph
from vocabseg.export.graph.trace import OPSET
from vocabseg.export.graph_checks import check_graph
from vocabseg.export.proposals.onnx_proposals import MASKS, NEEDED, SCORES
from vocabseg.runtime.bundle.sections import Side
from vocabseg.runtime.errors import CheckpointError, ConfigurationError, VocabsegError
from vocabseg.runtime.files import atomic_write, check_writable, decode_json, read_regular

Size = tuple[int, int]

# model_type in config.json; their outputs have the same names.
UNIVERSAL = ("mask2former", "maskformer", "eomt")
# ImageNet's, 0..1, as these libraries take where nothing else is said.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Of networks that take any size, the one they are written for: multiples of it.
STRIDE = 32
LARGEST_JSON = 1 << 20
# Pixels of the shorter side where nothing else is said.
SHORTEST = 800


class UniversalProposals(nn.Module):
    """image (1, 3, H, W) -> mask logits (1, N, h, w), scores (1, N), by one of transformers' networks.

    Raises ExportError for an EoMT whose training was stopped halfway: its masked attention would draw lots.
    """

    def __init__(self, network: Any):
        super().__init__()
        self.network = network.eval()
        shares = getattr(network, "attn_mask_probs", None)
        if shares is not None:  # of EoMT's blocks; as numbers, so that they can decide what is traced
            if not all(share in (0, 1) for share in shares.tolist()):
                raise ExportError(f"attn_mask_probs are {shares.tolist()}: give weights of a finished training, 0 or 1")
            del network.attn_mask_probs
            network.attn_mask_probs = shares.tolist()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        found = self.network(pixel_values=image)
        return found.masks_queries_logits, 1 - found.class_queries_logits.softmax(-1)[..., -1]


class DetectorProposals(nn.Module):
    """image (1, 3, S, S) -> mask logits (1, N, h, w), scores (1, N), by the network of an RF-DETR-Seg model."""

    def __init__(self, network: Any):
        super().__init__()
        self.network = network.eval()
        self.network.export()  # its own form for graphs: tensors in and out

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        _, classes, masks = self.network(image)
        return masks, classes.sigmoid().amax(-1)


def universal_proposals(folder: Path, size: Size | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """A network of transformers from a folder, and its [input] settings; `size` where its files do not decide it.

    Raises CheckpointError for a folder that holds none of `UNIVERSAL`, and ConfigurationError for a size that the
    network cannot take.
    """
    from transformers import AutoConfig, AutoModelForUniversalSegmentation

    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} holds no config.json: give a folder that transformers' save_pretrained wrote")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        if config.model_type not in UNIVERSAL:
            raise CheckpointError(f"{folder} holds a {config.model_type}: give one of {', '.join(UNIVERSAL)}")
        # Fused attention leaves shapes in the graph that the exporter cannot take.
        network = AutoModelForUniversalSegmentation.from_pretrained(
            folder, config=config, local_files_only=True, attn_implementation="eager", dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"{folder} cannot be loaded by transformers ({_reason(error)}): copy it again") from None
    settings = _preprocessing(folder / "preprocessor_config.json")
    own = (config.image_size,) * 2 if config.model_type == "eomt" else None
    if own is not None and size not in (None, own):
        raise ConfigurationError(f"--size {size[0]}x{size[1]}: this EoMT takes {own[0]}x{own[1]}: leave it out")
    return UniversalProposals(network), {**settings, "size": own or size or settings["size"]}


def detector_proposals(variant: str, weights: Path | None) -> tuple[nn.Module, dict[str, Any]]:
    """A network of rfdetr and its [input] settings; random weights where none are given.

    Raises ConfigurationError for an unknown variant, CheckpointError for weights that are missing or cannot be loaded.
    """
    import rfdetr

    known = [name for name in dir(rfdetr) if name.startswith("RFDETRSeg")]
    if variant not in known:
        raise ConfigurationError(f"rfdetr has no {variant!r} with masks: give one of {', '.join(known)}")
    if weights is not None and not weights.is_file():
        raise CheckpointError(f"there are no weights at {weights}: give the path of their file")
    try:
        model = getattr(rfdetr, variant)(pretrain_weights=None if weights is None else str(weights), device="cpu")
    except (OSError, ValueError, RuntimeError, LookupError, UnpicklingError) as error:
        raise CheckpointError(
            f"{weights or variant} cannot be loaded by rfdetr ({_reason(error)}): copy it again"
        ) from None
    side = model.model.resolution
    settings = {"mean": _scaled(model.means), "std": _scaled(model.stds), "fit": "stretch", "size": (side, side)}
    return DetectorProposals(model.model.model), settings


def write_network(module: nn.Module, settings: Mapping[str, Any], path: str | Path) -> Path:
    """Write a module that gives mask logits and scores as an ONNX file, and the configuration beside it as TOML.

    `settings` are entries of the configuration's [input], with the images' `size` (H, W). The file is compared with the
    module on noise, on every engine that can run it. Raises ExportError where it differs or cannot be written,
    OutputError, and ConfigurationError for settings that no configuration takes; an unfinished file is not left behind.
    """
    path = Path(path)
    if path.suffix.lower() != ".onnx":
        raise ExportError(f"{path} is no name for an ONNX file: let it end in .onnx")
    target, beside = check_writable(path), check_writable(path.with_suffix(".toml"))
    text = _as_toml(
        load_configuration(REGIONS, [f"input.{key}={json.dumps(value)}" for key, value in settings.items()])
    )
    image = torch.randn(1, 3, *settings["size"], generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory(prefix=".vocabseg-", suffix=".part", dir=target.parent) as scratch:
        folder = Path(scratch)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module.eval(),
                (image,),
                dynamo=True,
                verbose=False,
                input_names=["image"],
                output_names=[MASKS, SCORES],
                opset_version=OPSET,
            )
        if program is None:
            raise ExportError(f"the exporter gave no graph for {path.name}: try another version of torch")
        record = save_graph(program.model, folder / target.name)
        check_graph(folder / target.name, module, [{"image": image.numpy()}], needed=NEEDED)
        for name in (*(external.file for external in record.external), record.file):
            (folder / name).replace(target.with_name(name))
    with atomic_write(beside) as file:
        file.write(text.encode())
    return path


class Preprocessing(msgspec.Struct, frozen=True):
    """What counts of transformers' preprocessor_config.json; None stands for its default."""

    do_rescale: bool | None = None
    rescale_factor: Annotated[float, msgspec.Meta(gt=0)] | None = None
    do_normalize: bool | None = None
    image_mean: tuple[float, float, float] | None = None
    image_std: tuple[float, float, float] | None = None
    size: Side | dict[str, Side | None] | None = None


def _preprocessing(path: Path) -> dict[str, Any]:
    """Settings from transformers' preprocessor_config.json; its defaults without the file."""
    content = Preprocessing()
    if path.is_file():
        try:
            content = decode_json(read_regular(path, LARGEST_JSON), Preprocessing)
        except ValueError as error:
            raise CheckpointError(f"{path} cannot be read ({error}): copy it again") from None
    scale = 255.0 if content.do_rescale is False else 255 * (content.rescale_factor or 1 / 255)
    mean, std = content.image_mean or MEAN, content.image_std or STD
    if content.do_normalize is False:
        mean, std = (0, 0, 0), (1, 1, 1)
    settings: dict[str, Any] = {"mean": _scaled(mean, scale), "std": _scaled(std, scale), "fit": "pad"}
    size = content.size if isinstance(content.size, dict) else {"shortest_edge": content.size}
    height, width = size.get("height"), size.get("width")
    if height and width:
        return {**settings, "fit": "stretch", "size": (height, width)}
    side = -(-(size.get("shortest_edge") or SHORTEST) // STRIDE) * STRIDE
    return {**settings, "size": (side, side)}


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _scaled(values: Sequence[float], scale: float = 1.0) -> list[float]:
    """0..1 -> 0..255, for pixels that were multiplied by scale / 255."""
    return [round(255 * value / scale, 3) for value in values]


def _as_toml(configuration: Configuration) -> str:
    """Numbers, texts, truth values and lists look in TOML as they do in JSON."""
    sections = msgspec.to_builtins(configuration)
    del sections["name"]
    parts = []
    for name, section in sections.items():
        entries = [f"{key} = {json.dumps(value)}" for key, value in section.items() if value is not None]
        parts.append("\n".join([f"[{name}]", *entries]) + "\n")
    return "\n".join(parts)


def _size(text: str) -> Size:
    found = re.fullmatch(r"([1-9][0-9]{0,4})(?:x([1-9][0-9]{0,4}))?", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: give HEIGHTxWIDTH, such as 640x640")
    return int(found[1]), int(found[2] or found[1])


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the files; what cannot be used is told in one line, with exit code 2."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("library", choices=("transformers", "rfdetr"))
    parser.add_argument("network", help="a folder of transformers, or a variant of rfdetr such as RFDETRSegNano")
    parser.add_argument("output", type=Path, help="NETWORK.onnx; NETWORK.toml is written beside it")
    parser.add_argument(
        "--weights", type=Path, help="rfdetr: the checkpoint, whose code rfdetr runs; without it, random weights"
    )
    parser.add_argument("--size", type=_size, help="transformers: HEIGHTxWIDTH of the images; default: its own")
    options = parser.parse_args(arguments)
    try:
        option, owner = ("--weights", "rfdetr") if options.library == "transformers" else ("--size", "transformers")
        if getattr(options, option.removeprefix("--")) is not None:
            raise ConfigurationError(f"{option} is for {owner}: leave it out")
        try:
            if options.library == "transformers":
                module, settings = universal_proposals(Path(options.network), options.size)
            else:
                module, settings = detector_proposals(options.network, options.weights)
        except ImportError as error:
            raise ConfigurationError(f"{error}: pip install {options.library}") from None
        print(write_network(module, settings, options.output))
        print(options.output.with_suffix(".toml"))
    except VocabsegError as error:
        print(f"vocabseg: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
