"""The kernels on an NVIDIA GPU: device arrays in and out, and nothing but launches in between.

Every method returns at once; its work is enqueued on `stream`, and its arrays must live until that is done. A method
allocates only what it keeps: tables for each pair of sizes, and a workspace for each stream. A captured graph uses the
workspace of its stream, so the largest sizes must have run on that stream before.

resize_normalize and region_boxes equal the host's bit for bit; crops, classes and scores differ by rounding (the *.cuh
say by how much and why). Bad arguments raise ValueErrors of one line.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vocabseg.runtime.kernels import checks
from vocabseg.runtime.kernels.cropping import Cropping
from vocabseg.runtime.kernels.device import launch
from vocabseg.runtime.kernels.device.arguments import (
    FLOATS,
    CropSource,
    Ensemble,
    Side,
    array,
    crop_launches,
    crop_source,
    kind,
    mask_shape,
    pointer,
    side_sizes,
    side_struct,
)
from vocabseg.runtime.kernels.device.fatbin import kernels_fatbin
from vocabseg.runtime.kernels.device.launch import packed
from vocabseg.runtime.kernels.device.sharing import SharingKernels
from vocabseg.runtime.kernels.device.tables import ResizeTables, Workspaces
from vocabseg.runtime.kernels.reference import patch_limit, threshold_logit
from vocabseg.runtime.masks import Masks

if TYPE_CHECKING:
    from vocabseg.runtime.cuda.arrays import DeviceArray
    from vocabseg.runtime.cuda.device import Device
    from vocabseg.runtime.cuda.kernel import Function
    from vocabseg.runtime.cuda.streams import Stream


class CudaKernels(SharingKernels):
    """The kernels of one device; `fatbin` defaults to that of the installation. Raises EngineError."""

    def __init__(self, device: "Device", fatbin: bytes | None = None):
        self.device = device
        self._module = device.load_module(kernels_fatbin() if fatbin is None else fatbin)
        self._functions: dict[str, Function] = {}
        self._tables, self._workspaces = ResizeTables(device, self._launch), Workspaces(device)

    @property
    def state(self) -> tuple[int, int]:
        """How often memory of tables or workspaces was replaced, which makes recorded launches void; and set up."""
        tables, workspaces = self._tables, self._workspaces
        return tables.replaced + workspaces.replaced, tables.made + workspaces.made

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
        in_h, in_w, _ = array("image", image, np.uint8, ("H", "W", 3))
        h, w, _ = array("resized", resized, np.uint8, ("h", "w", 3))
        _, _, *padded = array("network_input", network_input, FLOATS, (1, 3, "Hp", "Wp"))
        _, padded_size = checks.sizes((h, w), padded)
        checks.size("image", (in_h, in_w))
        mean, std = checks.colour("mean", mean), checks.deviation(std)
        columns, rows = self._tables.get(in_w, w, stream), self._tables.get(in_h, h, stream)
        shape = packed(launch.RESIZE_SHAPE, in_size=(in_h, in_w), size=(h, w), padded_size=padded_size)
        colours = packed(launch.COLOURS, mean=mean, deviation=std)
        arguments = [image, shape, columns, rows, colours, network_input, resized]
        self._launch(f"resize_normalize_{kind(network_input)}", launch.resize(padded_size), arguments, stream)

    def region_boxes(
        self,
        masks: Masks,
        threshold: float,
        boxes: "DeviceArray",
        areas: "DeviceArray",
        bits: "DeviceArray | None",
        stream: "Stream",
    ) -> None:
        """Boxes (N, 4) int32 [x1, y1, x2, y2) and areas (N,) int32 of the thresholded masks; 0 where empty.

        bits (N, h, ceil(w / 32)) uint32, if given, receive the masks, column x in bit x % 32 of word x // 32.
        """
        n, shape = mask_shape(masks)
        array("boxes", boxes, np.int32, (n, 4))
        array("areas", areas, np.int32, (n,))
        h, w = masks.image_size
        if bits is not None:
            array("bits", bits, np.uint32, (n, h, -(-w // 32)))
        if n == 0:
            return
        count = np.int32(n)
        self._launch("region_boxes_start", launch.threads(4 * n), [count, boxes, areas], stream)
        arguments = [masks.logits, shape, threshold_logit(threshold), boxes, areas, bits]
        self._launch(f"region_boxes_{kind(masks.logits)}", launch.region_boxes(n, (h, w)), arguments, stream)
        arguments = [count, np.int32(h), np.int32(w), boxes, areas]
        self._launch("region_boxes_finish", launch.threads(n), arguments, stream)

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
        """The masks that are not empty, order (N,) int32, their boxes crop_boxes (N, 4) int32, and count (1,) int32.

        The boxes are expanded as by geometry.expand_boxes. Entries beyond the count are not written.
        """
        n, _ = array("boxes", boxes, np.int32, ("masks", 4))
        for name, value, shape in (
            ("areas", areas, (n,)), ("order", order, (n,)), ("crop_boxes", crop_boxes, (n, 4)), ("count", count, (1,))
        ):  # fmt: skip
            array(name, value, np.int32, shape)
        h, w = checks.size("image size", image_size)
        arguments = [np.int32(n), boxes, areas, np.float32(expand_ratio), np.int32(h), np.int32(w)]
        blocks = launch.Launch((1, 1, 1), (launch.BOX_WARPS * launch.WARP, 1, 1))
        self._launch("select_regions", blocks, [*arguments, order, crop_boxes, count], stream)

    def crop_regions(
        self, sources: Sequence[CropSource], cropping: Cropping, crops: "DeviceArray", stream: "Stream"
    ) -> None:
        """Cut, fill, normalise and resize the regions of many images into crops (B, 3, S, S) float32 or float16.

        Image k's regions go to crops[first_k : first_k + count_k], those beyond B are dropped; other crops are not
        written. With matting, image and fill are blended by the mask probability.
        """
        cropping = checks.cropping(cropping)
        fill, mean, std, size = cropping.fill, cropping.mean, cropping.std, cropping.size
        capacity, *_ = array("crops", crops, FLOATS, ("crops", 3, size, size))
        settings = packed(
            launch.CROP_SETTINGS,
            fill=fill,
            background=(fill - mean) / std,
            gain=1 / std,
            limit=threshold_logit(cropping.threshold),
            matting=cropping.matting,
            size=size,
            crops=capacity,
        )
        for given, part, regions in crop_launches(sources, cropping):
            blocks, across = launch.crop_regions(size, regions, len(part))
            structs = launch.source_struct([crop_source(source) for source in part])
            arguments = [structs, settings, np.int32(across), crops]
            self._launch(f"crop_regions_{given}_{kind(crops)}", blocks, arguments, stream)

    def patch_masks(
        self, sources: Sequence[CropSource], cropping: Cropping, patches: "DeviceArray", stream: "Stream"
    ) -> None:
        """Which patches of each crop hold a pixel of its region: patches (B, G, G) float32 or float16, 0 or 1.

        Image k's regions go to patches[first_k : first_k + count_k], as their crops do; see reference.patch_masks.
        """
        cropping = checks.cropping(cropping)
        capacity, across, _ = array("patches", patches, FLOATS, ("crops", "G", "G"))
        if patches.shape[1] != patches.shape[2]:
            raise ValueError(f"patches has shape {patches.shape}: give (crops, G, G)")
        settings = packed(
            launch.PATCH_SETTINGS,
            limit=patch_limit(cropping.threshold, cropping.matting),
            size=cropping.size,
            across=checks.patch_grid(across, cropping.size),
            crops=capacity,
        )
        for given, part, regions in crop_launches(sources, cropping):
            blocks = launch.patch_masks(cropping.size, across, regions, len(part))
            structs = launch.source_struct([crop_source(source) for source in part])
            arguments = [structs, settings, patches]
            self._launch(f"patch_masks_{given}_{kind(patches)}", blocks, arguments, stream)

    def classify(
        self,
        query: Side | None,
        region: Side | None,
        seen: "DeviceArray | None",
        order: "DeviceArray | None",
        count: "DeviceArray | None",
        ensemble: Ensemble,
        probabilities: "DeviceArray",
        no_object: "DeviceArray | None",
        stream: "Stream",
    ) -> None:
        """class_probabilities of segmenter/classify.py, in float32, on the networks' outputs.

        query: N embeddings and the texts of K + 1 classes, of which the last means "no object"; None for masks without
        queries. region: V embeddings and the texts of K classes. seen (K,) bool or uint8, None (or without seen_rule)
        for all unseen; order (N,) and count (1,) int32: region v is mask order[v], v < count. probabilities (N, K)
        float32; if only CLIP votes (no queries, or enabled with a weight of 0), its rows are the regions', and those
        beyond the count are not written.
        no_object (N,) float32, if given: the probability that the query means none of the classes, 0 without queries.
        """
        rows, classes = array("probabilities", probabilities, np.float32, ("rows", "classes"))
        by_region = query is None or (ensemble.enabled and ensemble.weight <= 0)
        query = None if by_region else query
        query_rows, query_texts = side_sizes("query", query, classes + 1)
        if query is not None and query_rows != rows:
            array("query embeddings", query.embeddings, FLOATS, (rows, "depth"))
        region = region if by_region or ensemble.enabled else None
        region_rows, region_texts = side_sizes("region", region, classes)
        if by_region or ensemble.enabled:
            if region is None:
                raise ValueError("the regions' embeddings and texts are missing: give them")
            if not by_region:
                array("order", order, np.int32, ("masks",))
            if count is not None:
                array("count", count, np.int32, (1,))
            elif not by_region:
                raise ValueError("count is missing: give the number of regions in order")
        if seen is not None:
            array("seen", seen, (np.bool_, np.uint8), (classes,))
        if no_object is not None:
            array("no_object", no_object, np.float32, (rows,))
        if rows == 0 or classes == 0:
            return
        heights, texts, columns = (query_rows, region_rows), (query_texts, region_texts), (classes + 1, classes)
        firsts = (None if query is None else query.first, None if region is None else region.first)
        lengths = [height * width for height, width in zip(heights, texts, strict=True)]
        best = [0 if first is None else h * k for first, h, k in zip(firsts, heights, columns, strict=True)]
        memory = self._workspaces.get(4 * (sum(lengths) + sum(best)), stream).pointer
        logits = [memory, memory + 4 * lengths[0]]
        blocks = launch.similarity(query_rows, region_rows, max(*texts, classes + 1))
        both = side_struct(query, logits[0]) + side_struct(region, logits[1])
        self._launch("similarity", blocks, [both, np.float32(ensemble.temperature)], stream)
        spare = memory + 4 * sum(lengths)
        for k, first in enumerate(firsts):
            if first is not None and best[k]:
                found = [np.uint64(logits[k]), np.int32(texts[k]), first, np.int32(columns[k]), np.uint64(spare)]
                self._launch("best_names", launch.rows(heights[k]), found, stream)
                logits[k], spare = spare, spare + 4 * best[k]
        given = packed(
            launch.ENSEMBLE,
            query=0 if query is None else logits[0],
            region=0 if region is None else logits[1],
            seen=pointer(seen) if ensemble.seen_rule else 0,
            order=pointer(order),
            count=pointer(count),
            rows=min(rows, region_rows) if by_region else rows,
            classes=classes,
            weight=ensemble.weight,
        )
        self._launch("classify", launch.rows(rows), [given, probabilities, no_object], stream)

    def compose(
        self,
        masks: Masks,
        probabilities: "DeviceArray",
        order: "DeviceArray | None",
        count: "DeviceArray | None",
        labels: "DeviceArray",
        scores: "DeviceArray",
        stream: "Stream",
    ) -> None:
        """The class with the highest score at every pixel, the first one on ties: labels (H, W) int32, scores float32.

        masks float32 or float16; probabilities (rows, K) float32 from 0 to 1 (at most 15). Row v weights mask order[v],
        v < count, or without order and count mask v. Labels and scores are 0 where there is no mask.
        """
        n, shape_of_masks = mask_shape(masks)
        rows, classes = array("probabilities", probabilities, np.float32, (n if order is None else "rows", "classes"))
        if classes == 0:
            raise ValueError("probabilities has no class: give at least one")
        if (order is None) != (count is None):
            raise ValueError("order and count belong together: give both or neither")
        if order is not None:
            array("order", order, np.int32, (rows,))
            array("count", count, np.int32, (1,))
        output = checks.size("output size", masks.output_size)
        array("labels", labels, np.int32, output)
        array("scores", scores, np.float32, output)
        plan = launch.compose(rows, classes, output)
        table = self._workspaces.get(plan.table_bytes, stream)
        groups, steps = np.int32(plan.groups), np.int32(plan.steps)
        if rows:
            arguments = [probabilities, count, np.int32(rows), np.int32(classes), groups, steps, table]
            self._launch("compose_classes", plan.prepare, arguments, stream)
        fragments = packed(launch.CLASS_TABLE, fragments=table.pointer, groups=groups, steps=steps)
        shape = packed(launch.COMPOSE_SHAPE, mask=shape_of_masks, output_size=output, masks=rows, classes=classes)
        name = f"compose_{'many_' if plan.many else ''}{kind(masks.logits)}"
        self._launch(name, plan.launch, [masks.logits, fragments, order, count, shape, labels, scores], stream)

    def find_unusable(self, values: "DeviceArray", flag: "DeviceArray", stream: "Stream") -> None:
        """Set flag (1,) int32 to 1 if `values`, of any shape, float32 or float16, holds an infinity or NaN."""
        array("flag", flag, np.int32, (1,))
        name = f"find_unusable_{kind(values)}"
        count = values.nbytes // values.dtype.itemsize
        if count:
            self._launch(name, launch.find_unusable(count), [values, np.int64(count), flag], stream)

    def _launch(self, name: str, blocks: launch.Launch, arguments: Sequence[Any], stream: "Stream") -> None:
        function = self._functions.get(name)
        if function is None:
            function = self._functions[name] = self._module.function(name)
        function(blocks.grid, blocks.block, arguments, stream, blocks.shared_bytes)
