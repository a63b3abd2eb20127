"""ONNX graphs of the small models, as the exporter writes them."""

from collections import Counter

import onnx
import torch

from tests.export.model.small_models import EMBEDDING, QUERIES, small_clip, small_proposal
from vocabseg.export.graph.trace import export_graph
from vocabseg.export.half.convert import write_half
from vocabseg.export.half.recipe import default_recipe
from vocabseg.export.model.towers import prune_last_block
from vocabseg.export.tensorrt.operators import check_operators

PROPOSAL = {
    "image": ("batch", 3, "height", "width"),
    "mask_logits": ("batch", QUERIES, "height/4", "width/4"),
    "query_embeddings": ("batch", QUERIES, EMBEDDING),
}
TEXT = {"token_ids": ("batch", 77), "eot_index": ("batch",), "text_features": ("batch", EMBEDDING)}


def operations(path):
    """How often a graph uses each operation."""
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def image_dimensions(size):
    return {"crops": ("batch", 3, size, size), "image_features": ("batch", EMBEDDING)}


def export_proposal(folder, fused=False, deep_stem=True):
    module = small_proposal(deep_stem)
    path = folder / "proposal.onnx"
    sample = {"image": torch.randn(2, 3, 64, 96)}
    return path, module, export_graph(module, sample, PROPOSAL, path, fused_attention=fused)


def export_image(folder, fused=False, **sizes):
    clip = small_clip(**sizes)
    size = clip.image_size
    path = folder / "image_encoder.onnx"
    sample = {"crops": torch.randn(2, 3, size, size)}
    tower = prune_last_block(clip.image_tower)
    record = export_graph(tower, sample, image_dimensions(size), path, fused_attention=fused)
    return path, clip.image_tower, record


def export_text(folder, fused=False):
    tower = small_clip().make_text_tower(torch.ones(2, 64))
    sample = {"token_ids": torch.ones(2, 77, dtype=torch.int64), "eot_index": torch.tensor([3, 4])}
    path = folder / "text_encoder.onnx"
    return path, tower, export_graph(tower, sample, TEXT, path, fused_attention=fused)


def taken_in_both_precisions(path, half, oldest):
    """TensorRT's parser, from the version `oldest` on, takes the graph as it is and in FP16 (written to `half`)."""
    write_half(path, half, default_recipe(), path.stem)
    for graph in (path, half):
        assert check_operators(graph, oldest) == check_operators(graph) == []
    types = {
        value.type.tensor_type.elem_type for value in (*onnx.load(half).graph.input, *onnx.load(half).graph.output)
    }
    assert onnx.TensorProto.FLOAT16 in types
