"""Graphs and kernels for an emulated GPU: the bundle's own graphs on ONNX Runtime, the host's kernels."""

from dataclasses import fields, replace

import numpy as np

from tests.fake_driver.machine import current
from vocabseg.runtime.bundle.folder import Bundle
from vocabseg.runtime.cuda.arrays import DeviceArray
from vocabseg.runtime.engines.interface import Choice
from vocabseg.runtime.errors import DeviceMemoryError
from vocabseg.runtime.kernels import budget
from vocabseg.runtime.kernels.device.arguments import CropSource, Side
from vocabseg.runtime.kernels.host import face as host
from vocabseg.runtime.masks import Masks
from vocabseg.runtime.segmenter.classify import class_probabilities, query_distribution


def view(array: DeviceArray) -> np.ndarray:
    """The emulated device's memory."""
    if not array.nbytes:
        return np.empty(array.shape, array.dtype)
    return current().bytes(array.pointer, array.nbytes).view(array.dtype).reshape(array.shape)


def put(stream, work) -> None:
    """Queue work of the host on an emulated stream."""
    stream.submit(lambda raw: current().put(int(raw.handle), work))


class EmulatedGraph:
    """A DeviceGraph whose work is done by ONNX Runtime when its turn on the stream comes.

    `dtype` is that of its floating-point inputs and outputs. Batches above `out_of_memory_above` find no memory.
    """

    def __init__(self, bundle: Bundle, name: str, dtype: type = np.float32):
        from vocabseg.runtime.engines.onnxruntime_cpu import OnnxRuntimeGraph

        record = bundle.graph(name)
        self.name = name
        self.input_dtypes = {each.name: _dtype(each.dtype, dtype) for each in record.inputs}
        self.output_dtypes = {each.name: _dtype(each.dtype, dtype) for each in record.outputs}
        self.batches: list[int] = []
        self.addresses: set[tuple[int, ...]] = set()
        self.out_of_memory_above: int | None = None
        self._graph = OnnxRuntimeGraph(bundle.graph_path(name), 1)

    def run(self, inputs, outputs, stream) -> None:
        batch = next(iter(inputs.values())).shape[0]
        if self.out_of_memory_above is not None and batch > self.out_of_memory_above:
            raise DeviceMemoryError(f"the GPU is out of memory: a batch of {batch} crops does not fit")
        self.batches.append(batch)
        self.addresses.add(tuple(array.pointer for array in (*inputs.values(), *outputs.values())))
        for name, array in inputs.items():
            assert array.dtype == self.input_dtypes[name]
            assert array.pointer % 256 == 0  # as of memory of its own: engines may rely on it
        given, taken = dict(inputs), dict(outputs)

        def work() -> None:
            host_inputs = {name: _wide(view(array)) for name, array in given.items()}
            for name, result in self._graph.run(host_inputs).items():
                target = view(taken[name])
                assert target.shape == result.shape
                target[...] = result

        put(stream, work)

    def close(self) -> None:
        pass


def graphs(dtype: type = np.float32):
    """Replaces engines.device.open_graph; `.opened` has every graph by its name."""
    opened: dict[str, EmulatedGraph] = {}

    def open_graph(device, bundle: Bundle, name: str, choice: Choice, stream) -> EmulatedGraph:
        opened[name] = EmulatedGraph(bundle, name, dtype)
        return opened[name]

    open_graph.opened = opened
    return open_graph


def _dtype(name: str, float_dtype: type) -> np.dtype:
    return np.dtype(float_dtype if name.startswith("float") else name)


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _on_host(masks: Masks) -> Masks:
    return replace(masks, logits=_wide(view(masks.logits)))


def by_address(value):
    """The same argument of a kernel, but as a launch has it: an address that keeps no memory alive."""
    if isinstance(value, DeviceArray):
        return DeviceArray(value.device, value.shape, value.dtype, value.pointer, None)
    if isinstance(value, Masks | CropSource):
        return replace(value, **{each.name: by_address(getattr(value, each.name)) for each in fields(value)})
    if isinstance(value, Side):
        return Side(*map(by_address, value))
    return [by_address(each) for each in value] if isinstance(value, list) else value


class HostKernels:
    """The methods of CudaKernels over the host's kernels, for tests of the pipeline alone."""

    state = (0, 0)

    def __init__(self, device) -> None:
        self.device = device

    def __getattribute__(self, name):
        found = super().__getattribute__(name)
        return (lambda *arguments: found(*map(by_address, arguments))) if callable(found) else found

    def resize_normalize(self, image, mean, std, network_input, resized, stream) -> None:
        def work() -> None:
            size, padded = resized.shape[:2], network_input.shape[2:]
            found, small = host.resize_normalize(view(image), size, padded, mean, std)
            view(network_input)[...], view(resized)[...] = found, small

        put(stream, work)

    def region_boxes(self, masks, threshold, boxes, areas, bits, stream) -> None:
        def work() -> None:
            view(boxes)[...], view(areas)[...] = host.region_boxes(_on_host(masks), threshold)
            if bits is not None:
                view(bits)[...] = host.region_bits(_on_host(masks), threshold)

        put(stream, work)

    def find_unusable(self, values, flag, stream) -> None:
        def work() -> None:
            if not np.isfinite(view(values)).all():
                view(flag)[0] = 1

        put(stream, work)

    def select_regions(self, boxes, areas, expand_ratio, image_size, order, crop_boxes, count, stream) -> None:
        from vocabseg.runtime.kernels.geometry import expand_boxes

        def work() -> None:
            chosen = np.flatnonzero(view(areas) > 0)
            view(count)[0] = len(chosen)
            view(order)[: len(chosen)] = chosen
            view(crop_boxes)[: len(chosen)] = expand_boxes(view(boxes)[chosen], expand_ratio, image_size)

        put(stream, work)

    def mask_confidences(self, masks, threshold, confidences, stream) -> None:
        def work() -> None:
            view(confidences)[...] = budget.mask_confidences(_wide(view(masks.logits)), threshold)

        put(stream, work)

    def near_masks(self, bits, boxes, areas, share_iou, near, stream) -> None:
        def work() -> None:
            for one in range(len(view(areas))):
                first = (np.arange(len(view(areas))) == one).astype(np.float32)
                found = budget.choose_leaders(view(boxes), view(areas), first, view(bits), share_iou, 0.0, 1)
                view(near)[one] = found == one

        put(stream, work)

    def choose_leaders(
        self, ratings, inverted, near, min_objectness, max_regions, areas, ranked, leaders, leads, stream
    ) -> None:
        def work() -> None:
            found, own, chosen = view(areas), np.full(areas.shape, -1, np.int32), 0
            objectness = np.float32(1) - view(ratings) if inverted else view(ratings)
            order = [mask for mask in np.argsort(-objectness, kind="stable") if found[mask] > 0]
            for place, mask in enumerate(order):
                if own[mask] >= 0 or (place and objectness[mask] < min_objectness) or chosen == max_regions:
                    continue
                chosen, own[mask] = chosen + 1, mask
                if near is not None:
                    own[(own < 0) & (found > 0) & (view(near)[mask] != 0) & (objectness >= min_objectness)] = mask
            view(leaders)[...], view(leads)[...] = own, own == np.arange(len(own))
            found[(found > 0) & (own < 0)] = -1

        put(stream, work)

    def share_rows(self, features, leaders, order, crops, count, rows, stream) -> None:
        def work() -> None:
            led = view(leaders)[view(order)[: rows.shape[0]]]
            view(rows)[...] = view(features)[np.searchsorted(view(crops)[: int(view(count)[0])], led)]

        put(stream, work)

    def crop_regions(self, sources, cropping, crops, stream) -> None:
        assert crops.shape[2:] == (cropping.size, cropping.size)

        def work() -> None:
            for source in sources:
                count = int(view(source.count)[0])
                assert 0 <= count <= len(source.order)
                view(crops)[source.first : source.first + count] = host.crop_regions(
                    view(source.resized), _on_host(source.masks), view(source.crop_boxes)[:count],
                    view(source.order)[:count], cropping,
                )  # fmt: skip

        put(stream, work)

    def patch_masks(self, sources, cropping, patches, stream) -> None:
        def work() -> None:
            for source in sources:
                count = int(view(source.count)[0])
                view(patches)[source.first : source.first + count] = host.patch_masks(
                    _on_host(source.masks), view(source.crop_boxes)[:count], view(source.order)[:count], cropping,
                    patches.shape[1],
                )  # fmt: skip

        put(stream, work)

    def classify(self, query, region, seen, order, count, ensemble, probabilities, no_object, stream) -> None:
        def work() -> None:
            firsts = [None if one is None or one.first is None else view(one.first) for one in (query, region)]
            valid = np.zeros(probabilities.shape[0], bool)
            if order is not None:
                valid[view(order)[: int(view(count)[0])]] = True
            queries, query_text = (None, None) if query is None else (_wide(view(array)) for array in query[:2])
            regions, region_text = (None, None) if region is None else (_wide(view(array)) for array in region[:2])
            found = class_probabilities(
                queries,
                query_text,
                valid,
                regions,
                region_text,
                None if seen is None else view(seen) != 0,
                ensemble,
                *firsts,
            )
            view(probabilities)[: len(found)] = found
            if queries is not None:
                view(no_object)[...] = query_distribution(queries, query_text, ensemble.temperature, firsts[0])[:, -1]

        put(stream, work)

    def compose(self, masks, probabilities, order, count, labels, scores, stream) -> None:
        assert labels.shape == scores.shape == masks.output_size

        def work() -> None:
            voters, values = _on_host(masks), view(probabilities)
            if order is not None:
                chosen = view(order)[: int(view(count)[0])]
                voters, values = voters[chosen], values[: len(chosen)]
            view(labels)[...], view(scores)[...] = host.compose(voters, values)

        put(stream, work)
