"""The demo's training in miniature: it learns, goes on where it stopped, and leaves a checkpoint that exports."""

import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")
pytest.importorskip("scipy")
FOLDER = Path(__file__).parents[2] / "examples" / "train_demo"
sys.path.insert(0, str(FOLDER))

import backbone_stage  # noqa: E402
import captions  # noqa: E402
import clip_stage  # noqa: E402
import loop  # noqa: E402
import matching  # noqa: E402
import proposal_stage  # noqa: E402
import scenes  # noqa: E402
from assemble import write_checkpoint  # noqa: E402
from train import text_embeddings  # noqa: E402

from vocabseg.benchmarks.scenes.world import CLASSES, SEEN, render_scene  # noqa: E402
from vocabseg.export.checkpoint.load import load_model, read_state_dict  # noqa: E402
from vocabseg.export.configuration import load_configuration  # noqa: E402
from vocabseg.export.model.maskformer import ProposalNetwork, ProposalSizes  # noqa: E402
from vocabseg.export.model.resnet import ResNetSizes  # noqa: E402

STEPS = 20
TINY = ProposalSizes(
    backbone=ResNetSizes((8,), (1, 1, 1, 1), (8, 8, 8, 8), (16, 16, 32, 32), res5_dilation=2),
    pixel=32,
    mask=32,
    hidden=32,
    feed_forward=32,
    layers=1,
    queries=10,
    class_layers=(32, clip_stage.EMBEDDING),
    mask_layers=(32, 32),
)


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    torch.set_num_threads(1)
    return scenes.load_scenes(tmp_path_factory.mktemp("scenes"), 12, seed=1, workers=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, groups):
    """A folder with all stages trained for a few steps, and the losses of each."""
    output = tmp_path_factory.mktemp("trained")
    run = loop.Run(output, STEPS, seed=3, quiet=True)
    clip_losses = clip_stage.train_clip(run, groups, batch=12)
    backbone_losses = backbone_stage.train_backbone(run, groups, TINY, batch=4)
    texts = text_embeddings(output / "clip.pt", "cpu")
    proposal_losses = proposal_stage.train_proposals(run, groups, texts, TINY, batch=2)
    polish = loop.Run(output, 2, seed=3, quiet=True)
    proposal_stage.polish_proposals(polish, groups, texts, TINY, batch=2, learning_rate=1e-6)
    return output, clip_losses, backbone_losses, proposal_losses


def test_all_losses_fall(trained):
    for losses in trained[1:]:
        assert len(losses) == STEPS
        assert np.isfinite(losses).all()
        assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4])


def test_polishing_goes_on_from_the_proposals(trained):
    before, after = (torch.load(trained[0] / f"{name}.pt", weights_only=True) for name in ("proposals", "polished"))
    assert after["step"] == 2
    for key in ("sem_seg_head.predictor.query_embed.weight", "backbone.res2.0.conv1.weight"):
        old, new = before["modules"]["network"][key], after["modules"]["network"][key]
        assert not torch.equal(old, new)
        torch.testing.assert_close(old, new, atol=1e-4, rtol=0)


def test_the_checkpoint_has_the_published_layout(trained):
    output = trained[0]
    configuration = load_configuration(str(FOLDER / "demo.toml"))
    model = load_model(read_state_dict(write_checkpoint(output)), configuration)
    assert model.proposal.sizes == TINY
    assert model.query_clip.vocab_size == captions.VOCABULARY
    assert model.query_clip.context_length == captions.CONTEXT
    assert model.non_object_embedding.shape == (1, clip_stage.EMBEDDING)
    assert configuration.prompt.query == list(clip_stage.PROMPT)
    assert configuration.region.crop_size == clip_stage.CROP_SIZE
    assert configuration.ensemble.temperature == clip_stage.TEMPERATURE == proposal_stage.TEMPERATURE


def test_frozen_statistics_give_what_training_modules_give(trained):
    """The network that is trained and the one that is exported agree, batch normalisation and last layer included."""
    stage = torch.load(trained[0] / "proposals.pt", weights_only=True)["modules"]["network"]
    training = backbone_stage.trainable(ProposalNetwork(TINY)).eval()
    training.load_state_dict(stage)
    exported = ProposalNetwork(TINY).eval()
    exported.load_state_dict({key: value for key, value in stage.items() if not key.endswith("num_batches_tracked")})
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        masks, embeddings = proposal_stage.predictions(training, images)[2][0]
        expected_masks, expected_embeddings = exported(images)
    torch.testing.assert_close(masks, expected_masks, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(embeddings, expected_embeddings, atol=1e-4, rtol=1e-4)


def test_text_with_padding_cut_off_is_text(trained):
    """What the training's text encoder gives for short batches is what the exported tower gives at full length."""
    output = trained[0]
    model = load_model(
        read_state_dict(write_checkpoint(output)), load_configuration(str(FOLDER / "demo.toml"))
    ).query_clip
    ids, ends = captions.Encoder()(["a red circle", "grass"])
    padded = torch.zeros(2, captions.CONTEXT, dtype=torch.int64)
    padded[:, : ids.shape[1]] = ids
    clip = clip_stage.make_clip()
    clip.load_state_dict(torch.load(output / "clip.pt", weights_only=True)["modules"]["clip"])
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model.text_tower(padded, ends), dim=-1)
        torch.testing.assert_close(clip_stage.encode_text(clip.eval(), ids, ends), expected, atol=1e-5, rtol=1e-4)


class Interrupted(Exception):
    pass


def test_a_resumed_run_ends_like_one_that_never_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_EVERY", -1.0)

    def go(name: str, stop_at: int | None, resume: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5))
        output = tmp_path / name
        output.mkdir(exist_ok=True)

        def evaluate() -> dict[str, float]:
            if stop_at is not None:
                raise Interrupted
            return {}

        loop.train(
            "toy",
            loop.Run(output, steps=9, seed=5, resume=resume, quiet=True),
            {"module": module},
            1e-2,
            lambda generator, progress: torch.from_numpy(generator.standard_normal((6, 4), np.float32)),
            lambda batch, progress: (module(batch).square().mean(), {}),
            evaluate,
            stop_at or 100,
        )
        return module.state_dict()

    whole = go("whole", None, False)
    with pytest.raises(Interrupted):
        go("stopped", 4, False)
    resumed = go("stopped", None, True)
    for key, value in whole.items():
        assert torch.equal(value, resumed[key]), key


def test_captions_never_name_an_unseen_pair():
    unseen = [name for name, seen in zip(CLASSES, SEEN, strict=True) if not seen]
    synonyms = {name: (name, *captions.SYNONYMS.get(name, ())) for pair in unseen for name in pair.split()}
    forbidden = {
        f"{colour} {shape}"
        for pair in unseen
        for colour in synonyms[pair.split()[0]]
        for shape in synonyms[pair.split()[1]]
    }
    texts = [text for step in range(30) for text in captions.bank(np.random.default_rng(step)).texts]
    assert len(texts) > 3000
    for text in texts:
        assert not any(f" {pair} " in f" {text.replace('.', ' ')} " for pair in forbidden), text


def test_every_caption_fits_the_context():
    encode = captions.Encoder().tokenizer.encode
    texts = {text for step in range(30) for text in captions.bank(np.random.default_rng(step)).texts}
    assert max(len(encode(text)) for text in texts) <= captions.CONTEXT - 2


def test_training_crops_are_cut_like_the_runtimes():
    from vocabseg.runtime.kernels import load_kernels
    from vocabseg.runtime.kernels.cropping import Cropping
    from vocabseg.runtime.masks import Masks

    scene = render_scene(0, "test", 1, size=(128, 160))
    h, w = scene.labels.shape
    coarse = (scene.segmentation == scene.segments[-1].id).astype(np.float32).reshape(h // 4, 4, w // 4, 4)
    masks = Masks((coarse.mean(axis=(1, 3))[None] - 0.5) * 8, (h, w), (h, w), (h, w))
    host = load_kernels("reference")
    boxes, _ = host.region_boxes(masks, 0.5)
    mean, std = 255 * np.float32(clip_stage.MEAN), 255 * np.float32(clip_stage.STD)
    cropping = Cropping(0.5, False, mean, mean, std, clip_stage.CROP_SIZE)
    expected = host.crop_regions(scene.image, masks, boxes, np.zeros(1, np.int32), cropping)
    mask = host.resample_masks(masks)[0] > 0.5
    crop = scenes.cut(scene.image.astype(np.float32), mask, mean, clip_stage.CROP_SIZE)
    found = clip_stage.normalise_crops(crop[None]).numpy()
    assert np.abs(found - expected).max() < 2e-3


def test_matching_finds_the_right_proposals():
    generator = torch.Generator().manual_seed(0)
    masks = (torch.rand(3, 8, 8, generator=generator) > 0.5).float()
    logits = torch.full((5, 8, 8), -4.0)
    for proposal, segment in ((4, 0), (1, 1), (2, 2)):
        logits[proposal] = masks[segment] * 8 - 4
    rows, columns = matching.match(matching.mask_costs(logits, masks, torch.ones(8, 8, dtype=torch.bool)))
    assert dict(zip(rows.tolist(), columns.tolist(), strict=True)) == {4: 0, 1: 1, 2: 2}


def test_the_focal_loss_is_the_published_one_on_hard_masks():
    from torchvision.ops import sigmoid_focal_loss

    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(4, 6, 6, generator=generator) * 3
    masks = (torch.rand(4, 6, 6, generator=generator) > 0.5).float()
    focal, dice = matching.mask_losses(logits, masks, torch.ones(4, 6, 6, dtype=torch.bool))
    assert focal == pytest.approx(float(sigmoid_focal_loss(logits, masks, 0.25, 2, "mean")), rel=1e-5)
    p = logits.sigmoid()
    expected = 1 - (2 * (p * masks).sum((1, 2)) + 1) / (p.sum((1, 2)) + masks.sum((1, 2)) + 1)
    assert dice == pytest.approx(float(expected.mean()), rel=1e-5)


def test_the_checkpoint_exports_and_segments(trained, tmp_path):
    import vocabseg
    from vocabseg.export.pipeline import export_checkpoint

    bundle = export_checkpoint(str(FOLDER / "demo.toml"), tmp_path / "bundle", write_checkpoint(trained[0]))
    scene = render_scene(0, "test", 0)
    result = vocabseg.load(bundle)(scene.image, ["red circle", "grass"])
    assert result.labels.shape == scene.labels.shape
    assert set(np.unique(result.labels)) <= {0, 1}
