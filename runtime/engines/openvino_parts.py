"""Cuts an OpenVINO model in two, so that its first layers can run in another precision than the rest."""

from typing import Any

PRODUCTS = ("Convolution", "GroupConvolution", "MatMul")
# Share of a network's products that stay in float32 where the rest runs in bfloat16: of ViT-B/16 the patch embedding
# and the first of twelve blocks, for what these round off, all later blocks amplify. Random weights of the published
# size, 24 crops of photos, mean cosine with float32 (worst): 0.9976 (0.9966) in bfloat16 throughout, 0.99962 (0.9994)
# with one block in float32, 0.99984 (0.9998) with two, 0.9962 (0.9944) with the last four instead. With one block the
# embeddings of seven photos keep the parity contract (0.99957, worst 0.9988); their labels do not, and would not with
# eight blocks either, of some vocabularies (docs/precision.md).
FIRST_SHARE = 1 / 12
# The tensor that passes from the first part to the second.
BETWEEN = "first_layers"


def first_layers(model: Any) -> list[Any]:
    """Two models, the first of which ends with the layers of FIRST_SHARE and gives the second its input BETWEEN.

    Both take those inputs of `model`, an openvino.Model, that they need. It is used up, and stays whole where no single
    tensor leads from its first layers to the rest, or samples are not along the first axis of that.
    """
    import openvino
    from openvino import opset8

    cut = _cut(model)
    if cut is None or not _by_sample(model, cut):
        return [model]
    users = cut.get_target_inputs()
    first = openvino.Model([cut], _inputs(model, cut), "first layers")
    between = opset8.parameter(cut.get_partial_shape(), cut.get_element_type(), BETWEEN)
    between.output(0).set_names({BETWEEN})
    for user in users:
        user.replace_source_output(between.output(0))
    ends = [result.input_value(0) for result in model.get_results()]
    return [first, openvino.Model(ends, [between, *_inputs(model, *ends)], "other layers")]


def _cut(model: Any) -> Any:
    """The first tensor behind FIRST_SHARE of all products, and before the last one, past which no other leads."""
    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() not in ("Constant", "Result")]
    moving: set[str] = set()  # names of nodes whose values depend on the inputs
    last: dict[str, int] = {}  # where their values are used last
    for place, node in enumerate(nodes):
        sources = {value.get_node().get_name() for value in node.input_values()} & moving
        last |= dict.fromkeys(sources, place)
        if sources or node.get_type_name() == "Parameter":
            moving.add(node.get_name())
    total = sum(node.get_type_name() in PRODUCTS for node in nodes)
    done, needed = 0, {result.input_value(0).get_node().get_name() for result in model.get_results()}
    alive: set[str] = set()
    for place, node in enumerate(nodes):
        name = node.get_name()
        done += node.get_type_name() in PRODUCTS
        if name in moving and node.get_type_name() != "Parameter":
            alive.add(name)
        alive -= {one for one in alive if last.get(one, 0) <= place and one not in needed}
        if done == total:
            return None
        if alive == {name} and done >= FIRST_SHARE * total and node.get_output_size() == 1:
            return node.output(0)
    return None


def _by_sample(model: Any, tensor: Any) -> bool:
    """Whether the first axis of a tensor is that of the model's inputs, so that it can be split as they are."""
    samples, name = 61, tensor.get_node().get_friendly_name()
    probe = model.clone()
    shapes = {value: value.get_partial_shape() for value in probe.inputs}
    if not all(shape.rank.is_static and len(shape) and shape[0].is_dynamic for shape in shapes.values()):
        return False
    probe.reshape({value: [samples, *list(shape)[1:]] for value, shape in shapes.items()})
    (found,) = (node for node in probe.get_ops() if node.get_friendly_name() == name)
    shape = found.output(0).get_partial_shape()
    return bool(shape.rank.is_static and len(shape) and shape[0] == samples)


def _inputs(model: Any, *ends: Any) -> list[Any]:
    """The model's inputs that these tensors depend on."""
    found: set[str] = set()
    waiting = [end.get_node() for end in ends]
    while waiting:
        node = waiting.pop()
        if node.get_name() not in found:
            found.add(node.get_name())
            waiting += [value.get_node() for value in node.input_values()]
    return [parameter for parameter in model.get_parameters() if parameter.get_name() in found]
