"""Bundles: what is written, how prompts become token ids, and that nothing is left behind when something fails."""

import os
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from tests.export.model.small_models import EMBEDDING, small_clip, small_configuration, small_model, small_prompt
from vocabseg.export import bundle as bundle_writer
from vocabseg.export.bundle import export_bundle
from vocabseg.export.graph.onnx_file import ExportError
from vocabseg.export.text_graphs import text_graphs
from vocabseg.runtime.bundle.folder import open_bundle
from vocabseg.runtime.bundle.manifest import MANIFEST, GraphRecord, file_record, read_manifest
from vocabseg.runtime.engines.host_engines import open_engine
from vocabseg.runtime.errors import ConfigurationError, ImageError, OutputError
from vocabseg.runtime.text.prompts import PROMPTS, token_sequences
from vocabseg.runtime.text.tokenizer import Tokenizer
from vocabseg.runtime.text.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model with a learned prompt, its bundle, and what progress was reported."""
    folder = tmp_path_factory.mktemp("bundles")
    model, reports = small_model(small_prompt(3, 2)), []
    path = export_bundle(
        model,
        small_configuration("prompt.query=learned", "ensemble.weight=0.4"),
        folder / "small",
        name="small",
        provenance={"weights": "model.pth"},
        vocabulary=Vocabulary(["cat", "grass"], seen=["grass"]),
        progress=lambda *report: reports.append(report),
    )
    return path, model, reports


def test_the_bundle_opens_and_says_everything(exported):
    path, model, _ = exported
    bundle = open_bundle(path)
    manifest = bundle.manifest
    assert list(manifest.graphs) == ["proposal", "image_encoder", "text_encoder"]
    assert manifest.vocabulary == ["cat", "grass"]
    assert manifest.seen == [False, True]
    assert manifest.ensemble.weight == 0.4
    assert (manifest.input.min_size, manifest.region.crop_size) == (64, 32)
    assert manifest.region.mean == model.region_clip.mean
    assert manifest.provenance["weights"] == "model.pth"
    assert manifest.provenance["versions"]["torch"]
    assert manifest.provenance["configuration"]["prompt"]["query"] == "learned"
    assert manifest.provenance["date"].endswith("Z")
    embedding = bundle.tensors["query.non_object_embedding"]
    assert embedding.dtype == np.float32
    assert (embedding == np.ones((1, EMBEDDING))).all()


def test_the_manifest_holds_the_measured_parity(exported):
    parity = open_bundle(exported[0]).manifest.parity
    assert parity["graphs"].keys() == {"proposal", "image_encoder", "text_encoder"}
    for engines in parity["graphs"].values():
        assert engines
        for outputs in engines.values():
            for figures in outputs.values():
                assert 0 <= figures["max_abs"] < 1e-2
                assert figures["cosine"] >= parity["limits"]["cosine"]
    assert set(parity["graphs"]["proposal"]["onnxruntime-cpu-float32"]) == {"mask_logits", "query_embeddings"}


def test_files_are_as_readable_as_any_other(exported, tmp_path):
    (tmp_path / "any").write_text("")
    wanted = (tmp_path / "any").stat().st_mode & 0o777
    assert {item.stat().st_mode & 0o777 for item in exported[0].iterdir()} == {wanted}
    assert sorted(item.name for item in exported[0].parent.iterdir()) == ["small"]


def test_progress_counts_to_the_end(exported):
    reports = exported[2]
    assert [done for _, done, _ in reports] == list(range(7))
    assert {total for _, _, total in reports} == {6}
    assert reports[0][0] == "exporting proposal"


def test_a_learned_prompt_runs_through_the_graph(exported):
    path, model, _ = exported
    bundle = open_bundle(path)
    prompt = bundle.manifest.prompts.query
    assert prompt.kind == "learned"
    assert (prompt.prefix_ids, prompt.suffix_ids) == ([49408, 49409, 49410], [49411, 49412])
    tokenizer = Tokenizer.from_file(path / "tokenizer.json")
    [(sequence, end)] = token_sequences("potted plant", prompt, tokenizer)
    token_ids = np.zeros((1, 77), np.int64)
    token_ids[0, : len(sequence)] = sequence
    found = open_engine(bundle.graph_path("text_encoder"), precision="float32").run(
        {"token_ids": token_ids, "eot_index": np.array([end])}
    )["text_features"]
    # The same by hand: vectors in a row, through open_clip's own layers.
    clip, learned = model.query_clip, model.query_prompt
    table = clip.token_embedding
    name = table[tokenizer.encode("potted plant")]
    inner = [table[[49406]], learned.prefix, name, learned.suffix, table[[269]], table[[49407]]]
    rows = torch.cat([*inner, table[[0]].expand(77 - len(sequence), -1)])
    module = clip.module
    with torch.no_grad():
        x = module.transformer(
            rows[None] + module.positional_embedding, attn_mask=torch.full((77, 77), -torch.inf).triu(1)
        )
        expected = module.ln_final(x)[0, end] @ module.text_projection
    assert np.abs(found[0] - expected.numpy()).max() <= 1e-5


def test_one_text_graph_where_both_sides_have_the_same_text_encoder():
    # The image encoders differ, which is nothing to the text.
    model = small_model(small_prompt(2, 0), small_clip(vision_width=128), small_prompt(4, 1))
    found = text_graphs(model, small_configuration("prompt.query=learned", "prompt.region=learned"))
    assert list(found.graphs) == ["text_encoder"]
    assert found.prompts.query.prefix_ids == [49408, 49409]
    assert found.prompts.region.prefix_ids == [49410, 49411, 49412, 49413]
    assert found.prompts.region.suffix_ids == [49414]
    table = found.graphs["text_encoder"].tower().embedding
    assert torch.equal(table[49410:49414], model.region_prompt.prefix)
    assert torch.equal(table[49414:], model.region_prompt.suffix)


def test_two_text_graphs_where_the_text_encoders_differ():
    model = small_model(None, small_clip(text_layers=1), small_prompt(4, 0))
    found = text_graphs(model, small_configuration("prompt.query=single", "prompt.region=learned"))
    assert list(found.graphs) == ["text_encoder", "region_text_encoder"]
    assert found.prompts.query.templates == list(PROMPTS["single"])
    assert found.prompts.query.graph == "text_encoder"
    assert (found.prompts.region.graph, found.prompts.region.prefix_ids[0]) == ("region_text_encoder", 49408)
    assert found.graphs["text_encoder"].rows == []


def test_a_text_encoder_with_other_weights_or_another_activation_is_another():
    model = small_model(None, small_clip())
    configuration = small_configuration("prompt.region=vild")
    assert list(text_graphs(model, configuration).graphs) == ["text_encoder"]
    model.region_clip.module.ln_final.bias.data += 1e-6
    assert len(text_graphs(model, configuration).graphs) == 2
    model = small_model(None, small_clip())
    model.region_clip.module.transformer.resblocks[0].mlp.gelu = torch.nn.GELU()
    assert len(text_graphs(model, configuration).graphs) == 2


def test_without_a_separate_adapter_the_prompts_are_equal_and_templates_may_be_ones_own():
    templates = '["a drawing of a {}.", "{}"]'
    prompts = text_graphs(small_model(), small_configuration(f"prompt.query={templates}")).prompts
    assert prompts.query == prompts.region
    assert (prompts.query.kind, prompts.query.templates) == ("custom", ["a drawing of a {}.", "{}"])


def quick(monkeypatch, error=None):
    """Let graphs be files of one byte, and their check raise `error`."""

    def export(module, sample, dimensions, path, *arguments):
        path.write_bytes(b"x")
        return GraphRecord(
            **msgspec.structs.asdict(file_record(path.parent, path.name)), inputs=[], outputs=[], opset=21
        )

    def check(*arguments):
        if error is not None:
            raise error
        return {}

    monkeypatch.setattr(bundle_writer, "export_graph", export)
    monkeypatch.setattr(bundle_writer, "check_graph", check)


@pytest.mark.parametrize("error", [ExportError("strays"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch, error):
    quick(monkeypatch, error)
    expected = OutputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as caught:
        export_bundle(small_model(), small_configuration(), tmp_path / "bundle", name="x")
    assert list(tmp_path.iterdir()) == []
    if expected is OutputError:
        assert "no space left on device; nothing was changed" in str(caught.value)


def test_a_bundle_is_replaced_only_on_request_and_only_when_the_new_one_is_whole(tmp_path, monkeypatch):
    old = tmp_path / "bundle"
    old.mkdir()
    (old / "manifest.json").write_text("{}")
    with pytest.raises(OutputError, match=r"there is a bundle at .* already"):
        export_bundle(small_model(), small_configuration(), old, name="x")
    with monkeypatch.context() as patch:
        quick(patch, ExportError("strays"))
        with pytest.raises(ExportError):
            export_bundle(small_model(), small_configuration(), old, name="x", overwrite=True)
    assert [item.name for item in tmp_path.iterdir()] == ["bundle"]
    assert (old / "manifest.json").read_text() == "{}"
    quick(monkeypatch)
    link = tmp_path / "link"
    link.symlink_to(old)
    export_bundle(small_model(), small_configuration(), link, name="new", overwrite=True)
    assert read_manifest(old / MANIFEST).name == "new"  # its graphs are none
    assert sorted(item.name for item in tmp_path.iterdir()) == ["bundle", "link"]


def test_places_that_cannot_be_written_are_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle_writer, "export_graph", lambda *arguments: pytest.fail("the work began"))
    (tmp_path / "file").write_text("")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("")
    places = {"missing/bundle": "does not exist", "file": "a file has that name", "photos": "other files"}
    for place, problem in places.items():
        with pytest.raises(OutputError, match=problem):
            export_bundle(small_model(), small_configuration(), tmp_path / place, name="x", overwrite=True)
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
        with pytest.raises(OutputError, match="no permission"):
            export_bundle(small_model(), small_configuration(), tmp_path / "bundle", name="x")


def test_bad_input_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle_writer, "export_graph", lambda *arguments: pytest.fail("the work began"))
    with pytest.raises(ImageError):
        export_bundle(small_model(), small_configuration(), tmp_path / "bundle", name="x", sample_image=Path(__file__))
    with pytest.raises(ConfigurationError, match="crop size 40"):
        export_bundle(small_model(), small_configuration("region.crop_size=40"), tmp_path / "bundle", name="x")
    assert list(tmp_path.iterdir()) == []
