"""The region budget on a GPU: which masks get a crop, between finding their boxes and cutting them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from vocabseg.runtime.cuda.arrays import DeviceArray
from vocabseg.runtime.errors import EngineError
from vocabseg.runtime.kernels.device.arguments import Side
from vocabseg.runtime.kernels.device.launch import MOST_NEAR
from vocabseg.runtime.segmenter.cuda_proposals import DeviceProposals

if TYPE_CHECKING:
    from vocabseg.runtime.segmenter.cuda_stages import CudaStages


class RegionBudget:
    """The budget of a bundle's region section; `objects` gives `TextEmbedder.object_matrix`."""

    def __init__(self, stages: "CudaStages", objects: Callable[[], np.ndarray]):
        self.stages, self._objects = stages, objects
        self._text: DeviceArray | None = None

    def prepare(self, proposals: DeviceProposals, bits: DeviceArray | None, crop_boxes: DeviceArray) -> "BudgetedImage":
        """The image's buffers. Raises EngineError for more masks than can be compared with each other."""
        region, n, array = self.stages.bundle.manifest.region, len(proposals.masks), proposals.slot.buffers.array
        near = None
        if region.share_iou is not None:
            if n > MOST_NEAR:
                raise EngineError(
                    f"region.share_iou compares at most {MOST_NEAR} masks with each other on a GPU, not {n}: give "
                    "fewer, or use device cpu"
                )
            near = array("near", (n, n), np.uint8)
        text = probabilities = None
        if proposals.has_queries:
            text = self._object_text()
            probabilities = array("object_probabilities", (n, text.shape[0] - 1), np.float32)
        ratings = array("ratings", (n,), np.float32)
        ranked, leads = (array(name, (n,), np.int32) for name in ("ranked", "leads"))
        return BudgetedImage(
            self.stages, proposals, bits, crop_boxes, near, text, probabilities, ratings, ranked, leads
        )

    def _object_text(self) -> DeviceArray:
        if self._text is None:
            stages, host = self.stages, np.ascontiguousarray(self._objects(), np.float32)
            self._text = stages.device.empty(host.shape, host.dtype)
            stages.front.upload(self._text, host)
            stages.front.synchronize()
        return self._text


@dataclass(eq=False)
class BudgetedImage:
    """What the choice among one image's masks works on.

    `ratings` (N,) are the queries' probabilities of "no object", or the confidences of masks without queries.
    """

    stages: "CudaStages"
    proposals: DeviceProposals
    bits: DeviceArray | None
    crop_boxes: DeviceArray
    near: DeviceArray | None
    text: DeviceArray | None
    probabilities: DeviceArray | None
    ratings: DeviceArray
    ranked: DeviceArray
    leads: DeviceArray

    @property
    def used(self) -> tuple[DeviceArray | None, ...]:
        """The arrays that the launches depend on beside the table and those of the boxes."""
        queries = self.proposals.query_embeddings
        return queries, self.near, self.text, self.probabilities, self.ratings, self.ranked, self.leads

    def choose(self) -> None:
        """Enqueue the choice, once boxes, areas and bits are there."""
        stages, masks = self.stages, self.proposals.masks
        kernels, front, region = stages.kernels, stages.front, stages.bundle.manifest.region
        table, listed = self.proposals.table, self.proposals.listed
        boxes, areas, _, _ = table.of(listed)
        if self.text is None:
            kernels.mask_confidences(masks, region.mask_threshold, self.ratings, front)
        else:
            assert self.proposals.query_embeddings is not None
            assert self.probabilities is not None
            alone = msgspec.structs.replace(stages.bundle.manifest.ensemble, enabled=False)
            query = Side(self.proposals.query_embeddings, self.text)
            kernels.classify(query, None, None, None, None, alone, self.probabilities, self.ratings, front)
        if self.near is not None:
            assert self.bits is not None
            assert region.share_iou is not None
            kernels.near_masks(self.bits, boxes, areas, region.share_iou, self.near, front)
        rated = self.ratings, self.text is not None, self.near
        limits = region.min_objectness, region.max_regions
        written = areas, self.ranked, table.leaders_of(listed), self.leads
        kernels.choose_leaders(*rated, *limits, *written, front)

    def select(self) -> None:
        """Enqueue the list of the crops, after that of the regions, whose boxes for cutting it replaces."""
        stages, table, listed = self.stages, self.proposals.table, self.proposals.listed
        boxes = table.of(listed)[0]
        crops, count = table.cut_of(listed)
        ratio, size = stages.bundle.manifest.region.expand_ratio, self.proposals.masks.image_size
        stages.kernels.select_regions(boxes, self.leads, ratio, size, crops, self.crop_boxes, count, stages.front)
