"""Proposal networks of transformers and RF-DETR as ONNX: the same masks and scores as those libraries give."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vocabseg.export.configuration import load_configuration
from vocabseg.export.proposals import adapters
from vocabseg.export.proposals.onnx_proposals import NOWHERE, OnnxProposals
from vocabseg.runtime.errors import CheckpointError, ConfigurationError

QUERIES, SIDE = 7, 64
SWIN = {
    "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4, "image_size": SIDE,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}  # fmt: skip
SMALL = {"num_labels": 4, "num_queries": QUERIES}


def mask2former():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install transformers")
    config = transformers.Mask2FormerConfig(
        backbone_config=transformers.SwinConfig(**SWIN), feature_size=32, mask_feature_size=32, hidden_dim=32,
        encoder_feedforward_dim=32, encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=32,
        **SMALL,
    )  # fmt: skip
    return transformers.Mask2FormerForUniversalSegmentation(config)


def maskformer():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install transformers")
    decoder = transformers.DetrConfig(
        d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=QUERIES,
    )  # fmt: skip
    config = transformers.MaskFormerConfig(
        backbone_config=transformers.SwinConfig(**SWIN), decoder_config=decoder, fpn_feature_size=32,
        mask_feature_size=32, num_labels=4,
    )  # fmt: skip
    return transformers.MaskFormerForInstanceSegmentation(config)


def eomt():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install transformers")
    config = transformers.EomtConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=16,
        num_blocks=2,
        **SMALL,
    )
    return transformers.EomtForUniversalSegmentation(config)


def check(path: Path, masks: torch.Tensor, scores: torch.Tensor, image: torch.Tensor) -> None:
    """The file selects by the library's own scores, and gives its own masks."""
    middle = float(scores.detach().median())
    network = OnnxProposals(path, middle)
    wanted = np.where((scores > middle)[..., None, None].numpy(), masks.numpy(), np.float32(NOWHERE))
    assert 0 < int((scores > middle).sum()) < scores.shape[1]
    np.testing.assert_allclose(network(image).numpy(), wanted, atol=1e-3, rtol=1e-3)
    side = image.shape[-1]
    settings = load_configuration(str(path.with_suffix(".toml"))).input
    section = network.input_section(settings)
    assert section.size == (side, side)
    assert network.dimensions(section)["mask_logits"] == list(masks.shape)


EVERY = pytest.mark.skipif(
    "VOCABSEG_EVERY_ADAPTER" not in os.environ, reason="takes 15 s of a core: VOCABSEG_EVERY_ADAPTER=1 runs it"
)


@pytest.mark.parametrize("make", [pytest.param(mask2former, marks=EVERY), pytest.param(maskformer, marks=EVERY), eomt])
def test_networks_of_transformers(tmp_path: Path, make, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(1)
    own = make().eval()
    folder = tmp_path / "network"
    own.save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE} if make is mask2former else {"shortest_edge": SIDE, "longest_edge": SIDE}
    processor = {"size": size, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25] * 3, "rescale_factor": 1 / 255}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    path = tmp_path / "network.onnx"
    adapters.main(["transformers", str(folder), str(path)])
    assert capsys.readouterr().out.split() == [str(path), str(tmp_path / "network.toml")]
    assert sorted(file.name for file in tmp_path.iterdir() if file.suffix != ".data") == [
        "network", "network.onnx", "network.toml"
    ]  # fmt: skip
    settings = load_configuration(str(tmp_path / "network.toml")).input
    assert (settings.mean, settings.std) == ((127.5,) * 3, (63.75,) * 3)
    assert settings.fit == ("stretch" if make is mask2former else "pad")
    image = torch.randn(1, 3, SIDE, SIDE)
    with torch.no_grad():
        found = own(pixel_values=image)
    check(path, found.masks_queries_logits, 1 - found.class_queries_logits.softmax(-1)[..., -1], image)


def test_a_network_of_rfdetr(tmp_path: Path) -> None:
    rfdetr = pytest.importorskip("rfdetr", reason="rfdetr is not installed: pip install rfdetr")
    torch.manual_seed(1)
    model = rfdetr.RFDETRSegNano(pretrain_weights=None, device="cpu")
    own, side = model.model.model.eval(), model.model.resolution
    image = torch.randn(1, 3, side, side)
    with torch.no_grad():
        found = own(image)
    path = tmp_path / "network.onnx"
    module = adapters.DetectorProposals(own)
    settings = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "fit": "stretch", "size": [side] * 2}
    adapters.write_network(module, settings, path)
    check(path, found["pred_masks"], found["pred_logits"].sigmoid().amax(-1), image)


def test_what_cannot_be_used_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: object) -> str:
        with pytest.raises(SystemExit) as stop:
            adapters.main([str(argument) for argument in arguments])
        assert stop.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    pytest.importorskip("transformers", reason="transformers is not installed: pip install transformers")
    assert "holds no config.json" in refused("transformers", tmp_path, tmp_path / "a.onnx")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert "holds a bert: give one of mask2former" in refused("transformers", tmp_path, tmp_path / "a.onnx")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "eomt"}))
    assert "cannot be loaded by transformers" in refused("transformers", tmp_path, tmp_path / "a.onnx")
    assert "'6x' is no size" in refused("transformers", tmp_path, tmp_path / "a.onnx", "--size", "6x")
    assert "--weights is for rfdetr" in refused("transformers", tmp_path, tmp_path / "a.onnx", "--weights", "a.pth")
    assert "--size is for transformers" in refused("rfdetr", "RFDETRSegNano", tmp_path / "a.onnx", "--size", "64")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json"]


def test_weights_that_rfdetr_cannot_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(pretrain_weights: str | None, device: str) -> None:
        raise RuntimeError("size mismatch\nfor a tensor")

    monkeypatch.setitem(sys.modules, "rfdetr", SimpleNamespace(RFDETRSegNano=broken))
    (tmp_path / "a.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"a\.pth cannot be loaded by rfdetr \(size mismatch\): copy it again"):
        adapters.detector_proposals("RFDETRSegNano", tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="no weights at"):
        adapters.detector_proposals("RFDETRSegNano", tmp_path / "b.pth")
    with pytest.raises(ConfigurationError, match="no 'RFDETRNano' with masks: give one of RFDETRSegNano"):
        adapters.detector_proposals("RFDETRNano", None)


@pytest.mark.parametrize(
    ("content", "settings"),
    [
        ({}, {"fit": "pad", "size": (800, 800)}),
        ({"size": 100, "do_rescale": None, "image_mean": None}, {"fit": "pad", "size": (128, 128)}),
        ({"size": {"shortest_edge": None, "longest_edge": 9}}, {"fit": "pad", "size": (800, 800)}),
        ({"size": {"height": 32, "width": 64}, "do_rescale": False}, {"size": (32, 64), "mean": [0.485, 0.456, 0.406]}),
        ({"do_normalize": False}, {"mean": [0, 0, 0], "std": [255, 255, 255]}),
        ({"size": "abc"}, None),
        ({"size": {"height": -3, "width": 5}}, None),
        ({"rescale_factor": 0}, None),
        ({"image_mean": 0.5}, None),
    ],
)
def test_preprocessing(tmp_path: Path, content: dict, settings: dict | None) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(content))
    if settings is None:
        with pytest.raises(CheckpointError, match=r"preprocessor_config.json cannot be read \(.*at `\$.*copy it again"):
            adapters._preprocessing(path)
    else:
        assert adapters._preprocessing(path).items() >= settings.items()
