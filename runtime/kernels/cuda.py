"""The kernels on an NVIDIA GPU: arrays that lie on the device already, in and out, and nothing but launches between.

Every method returns at once; its work is on `stream`, and the arrays it was given must live until that is done. A
method allocates only what it keeps: tables for each pair of sizes, and a workspace for each stream. A graph that was
captured uses the workspace of its stream, so the largest sizes must have been run on that stream before.

Results are the host's bit for bit for resize_normalize and region_boxes; crops, classes and scores differ by rounding
(device_*.cuh say by how much and why). Bad arguments are ValueErrors of one line.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vocabseg.runtime.errors import EngineError
from vocabseg.runtime.kernels import checks, cuda_launch
from vocabseg.runtime.kernels.checks import Size
from vocabseg.runtime.kernels.cuda_launch import packed
from vocabseg.runtime.kernels.reference import threshold_logit

if TYPE_CHECKING:
    from vocabseg.runtime.cuda import Device, Function
    from vocabseg.runtime.cuda_arrays import DeviceArray
    from vocabseg.runtime.cuda_streams import Event, Stream

FLOATS = (np.float32, np.float16)
# Tables of this many pairs of sizes are kept: 10 KB each for an image of usual size.
TABLES = 256


@dataclass(frozen=True)
class CropSource:
    """One image's regions, for crop_regions.

    Attributes:
        resized: (h, w, 3) uint8 RGB.
        mask_logits: (N, hm, wm) float32 or float16 over padded_size (Hp, Wp).
        bits: (N, h, ceil(w / 32)) uint32 that region_boxes made of the logits, or None; matting needs none.
        crop_boxes, order, count: (N, 4), (N,), (1,) int32 of select_regions.
        first: the crop of the first region; the others follow.
    """

    resized: "DeviceArray"
    mask_logits: "DeviceArray"
    bits: "DeviceArray | None"
    padded_size: Size
    crop_boxes: "DeviceArray"
    order: "DeviceArray"
    count: "DeviceArray"
    first: int


class _Table(NamedTuple):
    struct: np.ndarray
    spans: "DeviceArray"
    weights: "DeviceArray"
    ready: "Event"
    streams: set[int]  # that come after it, by handle


def kernels_fatbin() -> bytes:
    """The compiled kernels; raises EngineError where they were not built."""
    path = resources.files("vocabseg.runtime").joinpath("kernels.fatbin")
    if not path.is_file():
        raise EngineError(
            "the CUDA kernels are not part of this installation: put nvcc of a CUDA toolkit (12.8 or newer knows all "
            "GPUs) on PATH and reinstall vocabseg, or use device 'cpu'"
        )
    return path.read_bytes()


class CudaKernels:
    """The kernels of one device; `fatbin` are those of the installation unless given. Raises EngineError."""

    def __init__(self, device: "Device", fatbin: bytes | None = None):
        self.device = device
        self._module = device.load_module(kernels_fatbin() if fatbin is None else fatbin)
        self._functions: dict[str, Function] = {}
        self._tables: OrderedDict[tuple[int, int], _Table] = OrderedDict()
        self._workspaces: dict[int, DeviceArray] = {}
        self._lock = threading.RLock()

    def resize_normalize(
        self,
        image: "DeviceArray",
        mean: object,
        std: object,
        network_input: "DeviceArray",
        resized: "DeviceArray",
        stream: "Stream",
    ) -> None:
        """Pillow's bilinear resize of image (H, W, 3) uint8 to resized (h, w, 3) uint8, bit for bit.

        network_input (1, 3, Hp, Wp) float32 or float16 becomes (resized - mean) / std, both (3,) 0..255, padded with 0.
        """
        in_h, in_w, _ = _array("image", image, np.uint8, ("H", "W", 3))
        h, w, _ = _array("resized", resized, np.uint8, ("h", "w", 3))
        _, _, *padded = _array("network_input", network_input, FLOATS, (1, 3, "Hp", "Wp"))
        _, padded_size = checks.sizes((h, w), padded)
        checks.size("image", (in_h, in_w))
        mean, std = checks.colour("mean", mean), checks.deviation(std)
        columns, rows = self._table(in_w, w, stream), self._table(in_h, h, stream)
        shape = packed(cuda_launch.RESIZE_SHAPE, in_size=(in_h, in_w), size=(h, w), padded_size=padded_size)
        colours = packed(cuda_launch.COLOURS, mean=mean, deviation=std)
        arguments = [image, shape, columns, rows, colours, network_input, resized]
        self._launch(f"resize_normalize_{_kind(network_input)}", cuda_launch.resize(padded_size), arguments, stream)

    def region_boxes(
        self,
        mask_logits: "DeviceArray",
        padded_size: Sequence[int],
        image_size: Sequence[int],
        threshold: float,
        boxes: "DeviceArray",
        areas: "DeviceArray",
        bits: "DeviceArray | None",
        stream: "Stream",
    ) -> None:
        """Boxes (N, 4) int32 [x1, y1, x2, y2) and areas (N,) int32 of the thresholded masks (N, hm, wm); 0 where empty.

        bits (N, h, ceil(w / 32)) uint32, if given, become the masks themselves, column x in bit x % 32 of word x // 32.
        """
        n, shape = _masks(mask_logits, padded_size, image_size)
        _array("boxes", boxes, np.int32, (n, 4))
        _array("areas", areas, np.int32, (n,))
        h, w = shape["image_size"].tolist()
        if bits is not None:
            _array("bits", bits, np.uint32, (n, h, -(-w // 32)))
        if n == 0:
            return
        masks = np.int32(n)
        self._launch("region_boxes_start", cuda_launch.threads(4 * n), [masks, boxes, areas], stream)
        arguments = [mask_logits, shape, threshold_logit(threshold), boxes, areas, bits]
        self._launch(f"region_boxes_{_kind(mask_logits)}", cuda_launch.region_boxes(n, (h, w)), arguments, stream)
        arguments = [masks, np.int32(h), np.int32(w), boxes, areas]
        self._launch("region_boxes_finish", cuda_launch.threads(n), arguments, stream)

    def select_regions(
        self,
        boxes: "DeviceArray",
        areas: "DeviceArray",
        expand_ratio: float,
        image_size: Sequence[int],
        order: "DeviceArray",
        crop_boxes: "DeviceArray",
        count: "DeviceArray",
        stream: "Stream",
    ) -> None:
        """Which masks are not empty, order (N,) int32, their boxes crop_boxes (N, 4) int32, and their count (1,) int32.

        The boxes are expanded as by geometry.expand_boxes. What lies beyond the count is left as it is.
        """
        n, _ = _array("boxes", boxes, np.int32, ("masks", 4))
        for name, array, shape in (
            ("areas", areas, (n,)), ("order", order, (n,)), ("crop_boxes", crop_boxes, (n, 4)), ("count", count, (1,))
        ):  # fmt: skip
            _array(name, array, np.int32, shape)
        h, w = checks.size("image size", image_size)
        arguments = [np.int32(n), boxes, areas, np.float32(expand_ratio), np.int32(h), np.int32(w)]
        launch = cuda_launch.Launch((1, 1, 1), (cuda_launch.BOX_WARPS * cuda_launch.WARP, 1, 1))
        self._launch("select_regions", launch, [*arguments, order, crop_boxes, count], stream)

    def crop_regions(
        self,
        sources: Sequence[CropSource],
        fill: object,
        mean: object,
        std: object,
        threshold: float,
        matting: bool,
        crops: "DeviceArray",
        stream: "Stream",
    ) -> None:
        """Cuts, fills, normalises and resizes the regions of many images into crops (B, 3, S, S) float32 or float16.

        Image k's regions go to crops[first_k : first_k + count_k], those beyond B nowhere; other crops are left as they
        are. fill, mean and std (3,), 0..255. With matting the mask probability weighs image against fill.
        """
        capacity, _, size, _ = _array("crops", crops, FLOATS, ("crops", 3, "S", "S"))
        if crops.shape[3] != size:
            raise ValueError(f"crops has shape {crops.shape}: crops are squares")
        checks.crop_size(size)
        fill, mean, std = checks.colour("fill", fill), checks.colour("mean", mean), checks.deviation(std)
        settings = packed(
            cuda_launch.CROP_SETTINGS,
            fill=fill,
            background=(fill - mean) / std,
            gain=1 / std,
            limit=threshold_logit(threshold),
            matting=bool(matting),
            size=size,
            crops=capacity,
        )
        for with_bits in (True, False):
            chosen = [_crop_source(s) for s in sources if with_bits == (s.bits is not None and not matting)]
            chosen = [source for source in chosen if source["capacity"]]
            name = f"crop_regions_{'bits' if with_bits else 'logits'}_{_kind(crops)}"
            for k in range(0, len(chosen), cuda_launch.CROP_IMAGES):
                part = chosen[k : k + cuda_launch.CROP_IMAGES]
                regions = max(int(source["capacity"]) for source in part)
                launch, across = cuda_launch.crop_regions(size, regions, len(part))
                self._launch(name, launch, [cuda_launch.source_struct(part), settings, np.int32(across), crops], stream)

    def classify(
        self,
        query_embeddings: "DeviceArray | None",
        query_text: "DeviceArray | None",
        image_features: "DeviceArray | None",
        region_text: "DeviceArray | None",
        seen: "DeviceArray | None",
        order: "DeviceArray | None",
        count: "DeviceArray | None",
        enabled: bool,
        weight: float,
        temperature: float,
        probabilities: "DeviceArray",
        no_object: "DeviceArray | None",
        stream: "Stream",
    ) -> None:
        """runtime/classify.py's class_probabilities, in float32, on what the networks gave.

        query_embeddings (N, Dq) and image_features (V, Dr) float32 or float16, of any length; query_text (K + 1, Dq)
        and region_text (K, Dr) float32 of unit length; seen (K,) bool or uint8, None for all unseen; order (N,) and
        count (1,) int32: features[v] are of mask order[v], v < count. probabilities (N, K) float32; where only CLIP
        speaks (no queries, or enabled with a weight of 0) its rows are the regions', and those beyond the count are
        left as they are. no_object (N,) float32, if given: the probability that the query means none of the classes,
        0 without queries.
        """
        rows, classes = _array("probabilities", probabilities, np.float32, ("rows", "classes"))
        by_region = query_embeddings is None or query_text is None or (enabled and weight <= 0)
        sides = [packed(cuda_launch.SIDE), packed(cuda_launch.SIDE)]
        if not by_region:
            sides[0] = _side("query", query_embeddings, query_text, classes + 1)
            _array("query_embeddings", query_embeddings, FLOATS, (rows, "Dq"))
        if by_region or enabled:
            sides[1] = _side("region", image_features, region_text, classes)
            if not by_region:
                _array("order", order, np.int32, ("masks",))
            if count is not None:
                _array("count", count, np.int32, (1,))
            elif not by_region:
                raise ValueError("count is missing: give how many regions order holds")
        if seen is not None:
            _array("seen", seen, (np.bool_, np.uint8), (classes,))
        if no_object is not None:
            _array("no_object", no_object, np.float32, (rows,))
        if rows == 0 or classes == 0:
            return
        lengths = [int(side["rows"] * side["texts_count"]) for side in sides]
        memory = self._workspace(4 * sum(lengths), stream)
        sides[0]["logits"], sides[1]["logits"] = memory.pointer, memory.pointer + 4 * lengths[0]
        launch = cuda_launch.similarity(int(sides[0]["rows"]), int(sides[1]["rows"]), classes + 1)
        both = np.stack(sides).tobytes()
        self._launch("similarity", launch, [both, np.float32(temperature)], stream)
        given = packed(
            cuda_launch.ENSEMBLE,
            query=sides[0]["logits"] if not by_region else 0,
            region=sides[1]["logits"] if by_region or enabled else 0,
            seen=_pointer(seen),
            order=_pointer(order),
            count=_pointer(count),
            rows=min(rows, int(sides[1]["rows"])) if by_region else rows,
            classes=classes,
            weight=weight,
        )
        launch = cuda_launch.Launch((rows, 1, 1), (cuda_launch.ROW_THREADS, 1, 1))
        self._launch("classify", launch, [given, probabilities, no_object], stream)

    def compose(
        self,
        mask_logits: "DeviceArray",
        probabilities: "DeviceArray",
        order: "DeviceArray | None",
        count: "DeviceArray | None",
        padded_size: Sequence[int],
        image_size: Sequence[int],
        labels: "DeviceArray",
        scores: "DeviceArray",
        stream: "Stream",
    ) -> None:
        """The class with the highest score at every pixel, the first of equals: labels (H, W) int32, scores float32.

        mask_logits (N, hm, wm) float32 or float16, probabilities (rows, K) float32 from 0 to 1 (15 at most).
        Row v weighs mask order[v], v < count, or without order and count mask v. Both are 0 where there is no mask.
        """
        n, mask_shape = _masks(mask_logits, padded_size, image_size)
        rows, classes = _array("probabilities", probabilities, np.float32, (n if order is None else "rows", "classes"))
        if classes == 0:
            raise ValueError("probabilities has no class: give at least one")
        if (order is None) != (count is None):
            raise ValueError("order and count belong together: give both or neither")
        if order is not None:
            _array("order", order, np.int32, (rows,))
            _array("count", count, np.int32, (1,))
        output = checks.size("labels", _array("labels", labels, np.int32, ("H", "W")))
        _array("scores", scores, np.float32, output)
        plan = cuda_launch.compose(rows, classes, output)
        table = self._workspace(plan.table_bytes, stream)
        groups, steps = np.int32(plan.groups), np.int32(plan.steps)
        if rows:
            arguments = [probabilities, count, np.int32(rows), np.int32(classes), groups, steps, table]
            self._launch("compose_classes", plan.prepare, arguments, stream)
        fragments = packed(cuda_launch.CLASS_TABLE, fragments=table.pointer, groups=groups, steps=steps)
        shape = packed(cuda_launch.COMPOSE_SHAPE, mask=mask_shape, output_size=output, masks=rows, classes=classes)
        name = f"compose_{'many_' if plan.many else ''}{_kind(mask_logits)}"
        self._launch(name, plan.launch, [mask_logits, fragments, order, count, shape, labels, scores], stream)

    def _launch(self, name: str, launch: cuda_launch.Launch, arguments: Sequence[Any], stream: "Stream") -> None:
        function = self._functions.get(name)
        if function is None:
            function = self._functions[name] = self._module.function(name)
        # Structs go by value; as a scalar they know their alignment.
        values = [a[()] if isinstance(a, np.ndarray) else a for a in arguments]
        function(launch.grid, launch.block, values, stream, launch.shared_bytes)

    def _table(self, in_size: int, out_size: int, stream: "Stream") -> np.ndarray:
        """Pillow's weights of one axis, made on the device when first needed."""
        with self._lock:
            table = self._tables.get((in_size, out_size))
            if table is None:
                while len(self._tables) >= TABLES:
                    self.device.synchronize()  # somebody may still read them
                    for _ in range(TABLES // 2):
                        self._tables.popitem(last=False)
                capacity = cuda_launch.triangle_capacity(in_size, out_size)
                spans = self.device.empty((out_size, 2), np.int32)
                weights = self.device.empty((out_size, capacity), np.int32)
                arguments = [np.int32(in_size), np.int32(out_size), np.int32(capacity), spans, weights]
                self._launch("resize_table", cuda_launch.threads(out_size), arguments, stream)
                struct = packed(
                    cuda_launch.RESIZE_TABLE, spans=spans.pointer, weights=weights.pointer, capacity=capacity
                )
                table = _Table(struct, spans, weights, stream.record(), {stream.handle})
                self._tables[in_size, out_size] = table
            else:
                self._tables.move_to_end((in_size, out_size))
                if stream.handle not in table.streams:
                    stream.wait(table.ready)
                    table.streams.add(stream.handle)
            return table.struct

    def _workspace(self, size: int, stream: "Stream") -> "DeviceArray":
        """At least `size` bytes that only this stream uses."""
        with self._lock:
            memory = self._workspaces.get(stream.handle)
            if memory is None or memory.nbytes < size:
                if memory is not None:
                    stream.synchronize()  # what runs there still uses the smaller one
                memory = self._workspaces[stream.handle] = self.device.empty((max(2 * size, 2**18),), np.uint8)
            return memory


def _array(name: str, value: Any, dtypes: Any, shape: Sequence[int | str]) -> tuple[int, ...]:
    """The shape of a device array, if it and the type fit; a word in `shape` stands for any length."""
    wanted = "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"
    if not hasattr(value, "pointer"):
        raise ValueError(f"{name} must be a DeviceArray of shape {wanted}, not {type(value).__name__}")
    dtypes = dtypes if isinstance(dtypes, tuple) else (dtypes,)
    if value.dtype not in [np.dtype(dtype) for dtype in dtypes]:
        kinds = " or ".join(str(np.dtype(dtype)) for dtype in dtypes)
        raise ValueError(f"{name} has type {value.dtype}: give {kinds} of shape {wanted}")
    fits = len(value.shape) == len(shape) and all(
        isinstance(want, str) or want == have for want, have in zip(shape, value.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} has shape {value.shape}: give {wanted}")
    return tuple(value.shape)


def _masks(value: Any, padded_size: Sequence[int], image_size: Sequence[int]) -> tuple[int, np.ndarray]:
    """How many masks, and the MaskShape."""
    n, h, w = _array("mask_logits", value, FLOATS, ("masks", "h", "w"))
    if n > cuda_launch.MOST_MASKS:
        raise ValueError(f"mask_logits holds {n} masks: at most {cuda_launch.MOST_MASKS} are supported")
    checks.size("mask_logits", (h, w))
    image_size, padded_size = checks.sizes(image_size, padded_size)
    return n, packed(cuda_launch.MASK_SHAPE, mask_size=(h, w), padded_size=padded_size, image_size=image_size)


def _crop_source(source: CropSource) -> np.ndarray:
    h, w, _ = _array("resized", source.resized, np.uint8, ("h", "w", 3))
    n, shape = _masks(source.mask_logits, source.padded_size, (h, w))
    if h * w > cuda_launch.MOST_PIXELS:
        raise ValueError(f"resized is {h} x {w}: at most {cuda_launch.MOST_PIXELS} pixels are supported")
    if source.bits is not None:
        _array("bits", source.bits, np.uint32, (n, h, -(-w // 32)))
    (capacity,) = _array("order", source.order, np.int32, ("regions",))
    _array("crop_boxes", source.crop_boxes, np.int32, (capacity, 4))
    _array("count", source.count, np.int32, (1,))
    if source.first < 0:
        raise ValueError(f"first is {source.first}: the number of a crop must be 0 or more")
    return packed(
        cuda_launch.CROP_SOURCE,
        image=source.resized.pointer,
        logits=source.mask_logits.pointer,
        bits=_pointer(source.bits),
        boxes=source.crop_boxes.pointer,
        order=source.order.pointer,
        count=source.count.pointer,
        shape=shape,
        half=source.mask_logits.dtype == np.float16,
        first=source.first,
        capacity=capacity,
    )


def _side(name: str, embeddings: Any, text: Any, texts: int) -> np.ndarray:
    rows, depth = _array(f"{name} embeddings", embeddings, FLOATS, ("rows", "depth"))
    _array(f"{name}_text", text, np.float32, (texts, depth))
    return packed(
        cuda_launch.SIDE,
        embeddings=embeddings.pointer,
        texts=text.pointer,
        rows=rows,
        texts_count=texts,
        depth=depth,
        half=embeddings.dtype == np.float16,
    )


def _pointer(array: Any) -> int:
    return 0 if array is None else array.pointer


def _kind(array: Any) -> str:
    return "f16" if array.dtype == np.float16 else "f32"
