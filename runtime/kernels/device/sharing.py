"""The region budget on an NVIDIA GPU: kernels/budget.py's functions as launches, without a trip to the host."""

from typing import TYPE_CHECKING, Any

import numpy as np

from vocabseg.runtime.kernels.device import launch
from vocabseg.runtime.kernels.device.arguments import FLOATS, array, kind, mask_shape
from vocabseg.runtime.kernels.reference import threshold_logit
from vocabseg.runtime.masks import Masks

if TYPE_CHECKING:
    from vocabseg.runtime.cuda.arrays import DeviceArray
    from vocabseg.runtime.cuda.streams import Stream


class SharingKernels:
    """The part of `CudaKernels` that a region budget needs."""

    _launch: Any

    def mask_confidences(self, masks: Masks, threshold: float, confidences: "DeviceArray", stream: "Stream") -> None:
        """See budget.mask_confidences: masks float32 or float16 -> confidences (N,) float32, summed in float32."""
        n, _ = mask_shape(masks)
        array("confidences", confidences, np.float32, (n,))
        pixels = masks.logits.shape[1] * masks.logits.shape[2]
        arguments = [masks.logits, np.int64(pixels), threshold_logit(threshold), confidences]
        if n:
            self._launch(f"mask_confidence_{kind(masks.logits)}", launch.sharing(n), arguments, stream)

    def near_masks(
        self,
        bits: "DeviceArray",
        boxes: "DeviceArray",
        areas: "DeviceArray",
        share_iou: float,
        near: "DeviceArray",
        stream: "Stream",
    ) -> None:
        """Which pairs of masks have an IoU of share_iou or more: near (N, N) uint8, the diagonal is not written.

        bits (N, h, words) uint32, boxes (N, 4) and areas (N,) int32 as of region_boxes; at most 4096 masks.
        """
        n, height, words = array("bits", bits, np.uint32, ("masks", "h", "words"))
        if n > launch.MOST_NEAR:
            raise ValueError(f"bits holds {n} masks: at most {launch.MOST_NEAR} are compared with each other")
        array("boxes", boxes, np.int32, (n, 4))
        array("areas", areas, np.int32, (n,))
        array("near", near, np.uint8, (n, n))
        arguments = [np.int32(n), bits, boxes, areas, np.int32(height), np.int32(words), np.float64(share_iou), near]
        if n:
            self._launch("near_masks", launch.near_masks(n), arguments, stream)

    def choose_leaders(
        self,
        ratings: "DeviceArray",
        inverted: bool,
        near: "DeviceArray | None",
        min_objectness: float,
        max_regions: int | None,
        areas: "DeviceArray",
        ranked: "DeviceArray",
        leaders: "DeviceArray",
        leads: "DeviceArray",
        stream: "Stream",
    ) -> None:
        """See budget.choose_leaders: ratings (N,) float32, the masks' objectness or (inverted) one minus it -> leaders.

        near as of near_masks, None if no masks share; areas (N,) int32 become -1 where a mask is dropped; leaders and
        leads (N,) int32, which are 1 where a mask leads itself; ranked (N,) int32 is scratch.
        """
        (n,) = array("ratings", ratings, np.float32, ("masks",))
        given = ("areas", areas), ("ranked", ranked), ("leaders", leaders), ("leads", leads)
        for name, value in given:
            array(name, value, np.int32, (n,))
        if near is not None:
            array("near", near, np.uint8, (n, n))
        most = np.int32(min(n, n if max_regions is None else max_regions))
        arguments = [np.int32(n), ratings, np.int32(inverted), near, np.float32(min_objectness), most]
        self._launch("choose_leaders", launch.sharing(1), [*arguments, areas, ranked, leaders, leads], stream)

    def share_rows(
        self,
        features: "DeviceArray",
        leaders: "DeviceArray",
        order: "DeviceArray",
        crops: "DeviceArray",
        count: "DeviceArray",
        rows: "DeviceArray",
        stream: "Stream",
    ) -> None:
        """Every region's row of features (U, D): rows (V, D), both float32 or float16.

        leaders (N,) int32 as of choose_leaders; order (N,) int32: region v is mask order[v]; crops (N,) and count (1,)
        int32: crop u is that of mask crops[u], u < count, by rising masks.
        """
        _, depth = array("features", features, FLOATS, ("crops", "depth"))
        v, _ = array("rows", rows, features.dtype, ("regions", depth))
        (n,) = array("leaders", leaders, np.int32, ("masks",))
        array("order", order, np.int32, (n,))
        array("crops", crops, np.int32, (n,))
        array("count", count, np.int32, (1,))
        width = np.int32(depth * features.dtype.itemsize // 2)
        if v:
            self._launch("share_rows", launch.sharing(v), [features, leaders, order, crops, count, width, rows], stream)
