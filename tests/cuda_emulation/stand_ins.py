"""Graphs and kernels for an emulated GPU: the bundle's own graphs on ONNX Runtime, the host's kernels."""

import numpy as np

from vocabseg.runtime.bundle import Bundle
from vocabseg.runtime.classify import class_probabilities, query_distribution
from vocabseg.runtime.cuda_arrays import DeviceArray
from vocabseg.runtime.engines import Choice
from vocabseg.runtime.errors import DeviceMemoryError
from vocabseg.runtime.kernels import host


def view(array: DeviceArray) -> np.ndarray:
    """The emulated device's memory."""
    from tests.cuda_emulation import fake_pycuda

    if not array.nbytes:
        return np.empty(array.shape, array.dtype)
    return fake_pycuda.machine().bytes(array.pointer, array.nbytes).view(array.dtype).reshape(array.shape)


def put(stream, work) -> None:
    """Queue work of the host on an emulated stream."""
    from tests.cuda_emulation import fake_pycuda

    fake_pycuda.machine().put(stream.raw._queue, work)


class EmulatedGraph:
    """A DeviceGraph whose work is done by ONNX Runtime when its turn on the stream comes.

    `dtype` is that of its floating-point inputs and outputs. Batches above `out_of_memory_above` find no memory.
    """

    def __init__(self, bundle: Bundle, name: str, dtype: type = np.float32):
        from vocabseg.runtime.engines.onnxruntime import OnnxRuntimeGraph

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

    def region_boxes(self, mask_logits, padded_size, image_size, threshold, boxes, areas, bits, stream) -> None:
        def work() -> None:
            view(boxes)[...], view(areas)[...] = host.region_boxes(
                _wide(view(mask_logits)), padded_size, image_size, threshold
            )

        put(stream, work)

    def select_regions(self, boxes, areas, expand_ratio, image_size, order, crop_boxes, count, stream) -> None:
        from vocabseg.runtime.geometry import expand_boxes

        def work() -> None:
            chosen = np.flatnonzero(view(areas) > 0)
            view(count)[0] = len(chosen)
            view(order)[: len(chosen)] = chosen
            view(crop_boxes)[: len(chosen)] = expand_boxes(view(boxes)[chosen], expand_ratio, image_size)

        put(stream, work)

    def crop_regions(self, sources, fill, mean, std, threshold, matting, crops, stream) -> None:
        def work() -> None:
            for source in sources:
                count = int(view(source.count)[0])
                assert 0 <= count <= len(source.order)
                view(crops)[source.first : source.first + count] = host.crop_regions(
                    view(source.resized), _wide(view(source.mask_logits)), source.padded_size,
                    view(source.crop_boxes)[:count], view(source.order)[:count], threshold, matting, fill, mean, std,
                    crops.shape[-1],
                )  # fmt: skip

        put(stream, work)

    def classify(
        self, query_embeddings, query_text, image_features, region_text, seen, order, count, enabled, weight,
        temperature, probabilities, no_object, stream,
    ) -> None:  # fmt: skip
        def work() -> None:
            valid = np.zeros(len(order), bool)
            valid[view(order)[: int(view(count)[0])]] = True
            query = None if query_embeddings is None else _wide(view(query_embeddings))
            text = None if query_text is None else view(query_text)
            regions = None if image_features is None else _wide(view(image_features))
            region = None if region_text is None else view(region_text)
            found, _ = class_probabilities(
                query, text, valid, regions, region, view(seen) != 0, enabled, weight, temperature,
            )  # fmt: skip
            view(probabilities)[: len(found)] = found
            if query is not None:
                view(no_object)[...] = query_distribution(query, text, temperature)[:, -1]

        put(stream, work)

    def compose(
        self, mask_logits, probabilities, order, count, padded_size, image_size, labels, scores, stream
    ) -> None:
        def work() -> None:
            masks, values = _wide(view(mask_logits)), view(probabilities)
            if order is not None:
                chosen = view(order)[: int(view(count)[0])]
                masks, values = masks[chosen], values[: len(chosen)]
            view(labels)[...], view(scores)[...] = host.compose(
                np.ascontiguousarray(masks), np.ascontiguousarray(values), padded_size, image_size, labels.shape
            )

        put(stream, work)
