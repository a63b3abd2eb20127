"""Numbers that are none: what an overflow in a network looks like must be an error, and never class 0."""

from pathlib import Path

import numpy as np
import pytest

import vocabseg
from tests.attack.broken import bundle_with
from vocabseg.cli import main
from vocabseg.runtime.errors import EngineError
from vocabseg.runtime.files import cache_folder
from vocabseg.runtime.kernels import load_kernels
from vocabseg.runtime.masks import Masks
from vocabseg.runtime.segmenter.segmenter import Segmenter
from vocabseg.runtime.text.cache import TextCache

IMAGE = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
OUTPUTS = [("proposal", "mask_logits"), ("proposal", "query_embeddings"), ("image_encoder", "image_features")]
NAMES = {"proposal": "proposal network", "image_encoder": "image encoder", "text_encoder": "text encoder"}


@pytest.mark.parametrize("factor", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("graph", "output"), OUTPUTS)
def test_the_graph_and_the_way_out_are_told(tmp_path: Path, graph: str, output: str, factor: float) -> None:
    for engine in ("onnxruntime", "openvino"):
        segmenter = vocabseg.load(bundle_with(tmp_path / engine, graph, output, factor), engine=engine)
        with pytest.raises(EngineError) as caught:
            segmenter(IMAGE, ["cat", "grass"])
        assert str(caught.value).startswith(f"the {NAMES[graph]} gave no usable {output}")
        assert str(caught.value).endswith("use precision float32")


def test_embeddings_without_a_direction_are_told(tmp_path: Path) -> None:
    segmenter = vocabseg.load(bundle_with(tmp_path / "zero", "image_encoder", "image_features", 0.0))
    with pytest.raises(EngineError, match="image encoder gave no usable image_features"):
        segmenter(IMAGE, ["cat", "grass"])


def test_the_command_line_writes_no_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    Image.fromarray(IMAGE).save(tmp_path / "image.png")
    folder = bundle_with(tmp_path / "nan", "proposal", "mask_logits", np.nan)
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "segment",
                str(tmp_path / "image.png"),
                "-b",
                str(folder),
                "-c",
                "cat,grass",
                "-o",
                str(tmp_path / "out.png"),
            ]
        )
    assert stop.value.code == 2
    assert "the proposal network gave no usable mask_logits" in capsys.readouterr().err
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize("factor", [0.0, 1e30, 0.5, np.nan])
def test_cached_embeddings_that_nobody_wrote_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    monkeypatch.setenv("VOCABSEG_CACHE_DIR", str(tmp_path))
    first = Segmenter(vocabseg.load().bundle)
    right = first.text.query_matrix(first.vocabulary(["cat", "grass"]))
    cache = TextCache(cache_folder())
    with sqlite(tmp_path) as connection:
        for key, value in connection.execute("SELECT key, value FROM embeddings").fetchall():
            wrong = (np.frombuffer(value, "<f4") * np.float32(factor)).astype("<f4").tobytes()
            cache.write({key: wrong})
    again = Segmenter(vocabseg.load().bundle)
    np.testing.assert_array_equal(again.text.query_matrix(again.vocabulary(["cat", "grass"])), right)
    assert again.text.counts["disk"] == 0


def sqlite(folder: Path):
    import contextlib
    import sqlite3

    return contextlib.closing(sqlite3.connect(folder / "text.sqlite"))


def test_kernels_pass_numbers_that_are_none_on() -> None:
    """Of logits that a caller brings comes no score and no crash, and boxes are as the specification has them."""
    logits = np.full((3, 24, 32), np.nan, np.float32)
    logits[1], logits[2] = np.inf, -np.inf
    masks = Masks(logits, (96, 128), (96, 128), (96, 128))
    probabilities = np.full((3, 2), 0.5, np.float32)
    host, reference = load_kernels(), load_kernels("reference")
    _, scores = host.compose(masks, probabilities)
    assert not np.isfinite(scores).any()
    assert np.isnan(host.resample_masks(masks)[0]).all()
    with np.errstate(all="ignore"):
        wanted = reference.region_boxes(masks, 0.5)
    for found, right in zip(host.region_boxes(masks, 0.5), wanted, strict=True):
        np.testing.assert_array_equal(found, right)
