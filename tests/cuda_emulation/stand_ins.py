"""Graphs and kernels for an emulated GPU: the bundle's own graphs on ONNX Runtime, the host's kernels."""

from dataclasses import replace

import numpy as np

from tests.fake_driver.machine import current
from vocabseg.runtime.bundle.folder import Bundle
from vocabseg.runtime.cuda.arrays import DeviceArray
from vocabseg.runtime.engines.interface import Choice
from vocabseg.runtime.errors import DeviceMemoryError
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
    current().put(stream.handle, work)


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


class HostKernels:
    """The methods of CudaKernels over the host's kernels, for tests of the pipeline alone."""

    def __init__(self, device) -> None:
        self.device = device

    def resize_normalize(self, image, mean, std, network_input, resized, stream) -> None:
        def work() -> None:
            size, padded = resized.shape[:2], network_input.shape[2:]
            found, small = host.resize_normalize(view(image), size, padded, mean, std)
            view(network_input)[...], view(resized)[...] = found, small

        put(stream, work)

    def region_boxes(self, masks, threshold, boxes, areas, bits, stream) -> None:
        def work() -> None:
            view(boxes)[...], view(areas)[...] = host.region_boxes(_on_host(masks), threshold)

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

    def classify(self, query, region, seen, order, count, ensemble, probabilities, no_object, stream) -> None:
        def work() -> None:
            valid = np.zeros(len(order), bool)
            valid[view(order)[: int(view(count)[0])]] = True
            queries, query_text = (None, None) if query is None else (_wide(view(array)) for array in query)
            regions, region_text = (None, None) if region is None else (_wide(view(array)) for array in region)
            found = class_probabilities(queries, query_text, valid, regions, region_text, view(seen) != 0, ensemble)
            view(probabilities)[: len(found)] = found
            if queries is not None:
                view(no_object)[...] = query_distribution(queries, query_text, ensemble.temperature)[:, -1]

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
