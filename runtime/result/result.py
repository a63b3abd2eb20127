"""What a user gets back: labels and scores at once, everything else on request."""

import importlib
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vocabseg.runtime.errors import OutputError, VocabsegError, VocabularyError
from vocabseg.runtime.result.categories import Categories
from vocabseg.runtime.result.coco import coco_panoptic
from vocabseg.runtime.result.evidence import Evidence, GivenEvidence
from vocabseg.runtime.result.panoptic import Instance, ResampledMasks, coco_box, panoptic_segments, rle_encode
from vocabseg.runtime.result.panoptic import instances as most_probable_instances
from vocabseg.runtime.result.votes import BEST_NAMES, Explanation, explain_pixel
from vocabseg.runtime.result.writing import check_suffix, picture_format, write_json, write_picture

if TYPE_CHECKING:
    import supervision


class Result:
    """One segmented image.

    Attributes:
        labels: (H, W) int32, indices into `classes`: every pixel gets the class with most votes, however few; -1 where
            no user-supplied mask covers it, or `confident` found too few.
        scores: (H, W) float32, the votes for the winning class: the sum over masks of the mask's probability times the
            class's. They are no probabilities, and above 1 where masks agree; those of described segments are in 0..1.
        classes: the names, in the given order.
        image: (H, W, 3) uint8 RGB, or None.
        evidence: what the further outputs are computed from; None limits the result to what the labels provide.
        categories: the classes' ids, colours, and which are things, and whether the last one is the contrast class.
    """

    __slots__ = ("categories", "classes", "evidence", "image", "labels", "scores")

    def __init__(
        self,
        labels: np.ndarray,
        scores: np.ndarray,
        classes: Sequence[str],
        image: np.ndarray | None = None,
        evidence: Evidence | None = None,
        categories: Categories | None = None,
    ):
        self.labels = labels
        self.scores = scores
        self.classes = list(classes)
        self.image = image
        self.evidence = evidence
        self.categories = categories or Categories()

    def __repr__(self) -> str:
        height, width = self.labels.shape
        return f"Result({height} x {width} pixels, {len(self.classes)} classes)"

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles hold everything on the host, and the kernels by their module's name."""
        evidence = self.evidence
        if evidence is None:
            return Result, (self.labels, self.scores, self.classes, self.image, None, self.categories)
        masks, kernels = evidence.masks, evidence.kernels.__name__
        parts = (masks, evidence.class_probabilities, evidence.no_object, kernels, evidence.opinions)
        return _restored, (self.labels, self.scores, self.classes, self.image, parts, self.categories)

    def confident(self, min_score: float) -> "Result":
        """The same result with the label -1 where the winning score is below `min_score`."""
        labels = np.where(self.scores < min_score, np.int32(-1), self.labels)
        return Result(labels, self.scores, self.classes, self.image, self.evidence, self.categories)

    def class_scores(self) -> np.ndarray:
        """The scores (C, H, W) float32 of every class at every pixel; 4 * C * H * W bytes, computed on each call."""
        known = self.known_evidence()
        return known.kernels.class_scores(known.masks, known.class_probabilities)

    def explain(self, x: int, y: int, name: str | None = None, best: int = BEST_NAMES) -> Explanation:
        """Which masks voted at the pixel of column `x` and row `y`, and what each was taken for, by query and by CLIP.

        The votes listed are those for the class `name`, by default the pixel's own; each opinion lists the `best` most
        probable classes. Raises ImageError for a pixel outside the image, VocabularyError for a name that is no class.
        """
        chosen = None if name is None else min(self._indices([name]))
        return explain_pixel(self.known_evidence(), self.classes, self.labels, x, y, chosen, best)

    def panoptic(
        self,
        things: Collection[str | int] | None = None,
        object_mask_threshold: float = 0.8,
        overlap_threshold: float = 0.8,
    ) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Segments that do not overlap: one per object for things, one per class for everything else.

        Args:
            things: names or indices of the countable classes; None counts those that the vocabulary
                calls things, or every class. The contrast class becomes no segment.
            object_mask_threshold: a mask takes part if its best class is above this probability and above that of
                "no object".
            overlap_threshold: a segment is dropped if it keeps less than this share of its mask.

        The masks' class probabilities and that of "no object" are used as they are, without normalising them to sum to
        1. Returns what `panoptic_segments` does: the segmentation (H, W) int32, 0 where there is none, and a dictionary
        per segment with its "id", "isthing", "category_id", "score" and "area". Raises VocabularyError for a thing that
        is not a class.
        """
        known = self.known_evidence()
        probabilities = np.column_stack([known.class_probabilities, known.no_object])
        settings = (self._countable(things), object_mask_threshold, overlap_threshold, self.categories.other)
        return panoptic_segments(probabilities, self._masks(), *settings)

    def instances(
        self,
        things: Collection[str | int] | None = None,
        top_k: int = 100,
        overlap_threshold: float | None = 0.5,
    ) -> list[Instance]:
        """The objects among the `top_k` most probable pairs of mask and class, best first; they may overlap.

        `things`, names or indices, keeps only those classes; None keeps all but the contrast class. An object whose
        intersection over union with a better one of its class exceeds `overlap_threshold` is dropped; None keeps all,
        as the published rule does. Each has `.class_index`, `.score` (0..1), `.box` (x1, y1, x2, y2) and `.mask` (H, W)
        bool. Raises VocabularyError for a thing that is not a class.
        """
        kept = None if self.categories.other is None else self._indices(range(len(self.classes) - 1))
        countable = kept if things is None else self._indices(things)
        probabilities = self.known_evidence().class_probabilities
        return most_probable_instances(probabilities, self._masks(), countable, top_k, overlap_threshold)

    def draw(
        self,
        legend: bool = True,
        opacity: float = 0.6,
        theme: str = "light",
        style: str = "overlay",
        labels: bool = True,
    ) -> np.ndarray:
        """The picture with every class in its colour, uint8 RGB; with the legend, larger than the image.

        The `opacity` of the colours is 0..1, the legend's `theme` "light" or "dark", and the `style` "overlay" (colours
        over the photo's brightness), "flat" (colours alone) or "outline" (borders over the photo). With `labels`, names
        are written on the regions that have room for them. Raises OutputError for other values.
        """
        from vocabseg.runtime.result.picture import draw_overlay

        colours = self.categories.palette(len(self.classes))
        return draw_overlay(self.labels, self.classes, self.image, legend, opacity, theme, colours, style, labels)

    def show(self) -> None:
        """Show the picture that `draw` returns: in a notebook, in the terminal, or else in the image viewer.

        Kitty, Ghostty, iTerm2 and WezTerm show the picture itself, other terminals half blocks and the legend's text.
        Raises OutputError where there is no viewer either.
        """
        from vocabseg.runtime.result.display import show

        show(self)

    def _repr_png_(self) -> bytes:
        """The picture, which notebooks show of a result."""
        from vocabseg.runtime.result.display import png

        return png(self)

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain types: {"image_size": [H, W], "classes": [name], "segments": [one per class present]}.

        A segment is {"category_id": the class's id, or without one its index, "name", "area": pixels, "bbox": [x, y,
        width, height], "score": the mean over its pixels of `scores`, each taken as 1 at most, "segmentation": COCO run
        lengths {"size": [H, W], "counts"}}, in the order of the classes; pixels in no segment carry the label -1. If
        more is known of the classes than their names, there is also "categories", in COCO's form.
        """
        segments = []
        for index, mask, score in self._present():
            name = {"category_id": self.categories.id_of(index), "name": self.classes[index]}
            segments.append({**name, **_described(mask), "score": score})
        return self._json(segments)

    def to_detections(self) -> "supervision.Detections":
        """A `supervision.Detections`, one for each class present: mask, box, class index, and the score of `to_json`.

        `data["class_name"]` holds the names. Raises VocabsegError if the package supervision is not installed.
        """
        try:
            from supervision import Detections
        except ImportError as error:
            raise VocabsegError(
                f"to_detections needs the package supervision ({error}); install it with `pip install supervision`"
            ) from error
        present = list(self._present())
        if not present:
            return Detections.empty()
        boxes = np.array([coco_box(mask) for _, mask, _ in present], np.float32)
        boxes[:, 2:] += boxes[:, :2]
        return Detections(
            xyxy=boxes,
            mask=np.stack([mask for _, mask, _ in present]),
            confidence=np.array([score for _, _, score in present], np.float32),
            class_id=np.array([index for index, _, _ in present], int),
            data={"class_name": np.array([self.classes[index] for index, _, _ in present])},
        )

    def save(self, path: str | os.PathLike[str], style: str = "overlay", labels: bool = True) -> None:
        """Write the picture that `draw` returns: .png, .jpg, .jpeg or .webp; an existing file is replaced.

        Raises OutputError for another suffix or style, and if the file cannot be written.
        """
        form, options = picture_format(path)
        write_picture(path, self.draw(style=style, labels=labels), form, options)

    def save_labels(self, path: str | os.PathLike[str]) -> None:
        """Write the labels as a PNG whose pixel values are class indices.

        Up to 256 classes: a palette image in the colours of `draw`, where 255 means "no label" if there are such pixels
        (256 classes and such pixels need 16 bits). More classes: 16-bit grey, 65535 meaning "no label". Raises
        OutputError for a suffix other than .png, for more classes than that, and if the file cannot be written.
        """
        from PIL import Image

        check_suffix("labels", path)
        gaps = bool((self.labels < 0).any())
        values = len(self.classes) + gaps
        if values > 2**16:
            raise OutputError(f"a PNG cannot hold {len(self.classes)} classes; use result.labels and numpy.save")
        if values <= 2**8:
            picture = Image.fromarray(self.labels.astype(np.uint8))
            table = np.zeros((256, 3), np.uint8)
            table[: len(self.classes)] = self.categories.palette(len(self.classes))
            picture.putpalette(table.tobytes())
            write_picture(path, picture, "PNG", {})
        else:
            write_picture(path, self.labels.astype(np.uint16), "PNG", {})

    def save_json(self, path: str | os.PathLike[str], info: Mapping[str, Any] | None = None) -> None:
        """Write what `to_json` returns, as UTF-8, and with `info`, plain types, an entry "info" before it.

        Raises OutputError if the file cannot be written.
        """
        write_json(path, self.to_json(), info)

    def save_panoptic(
        self,
        path: str | os.PathLike[str],
        things: Collection[str | int] | None = None,
        object_mask_threshold: float = 0.8,
        overlap_threshold: float = 0.8,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        """Write what `panoptic` returns as JSON, in the form of `save_json` plus each segment's "id" and "isthing"."""
        segmentation, segments = self.panoptic(things, object_mask_threshold, overlap_threshold)
        write_json(path, self._json(self.described_segments(segmentation, segments)), info)

    def described_segments(
        self, segmentation: np.ndarray, segments: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """What `panoptic` returned, each segment in the form of `to_json` with all that is in its dictionary."""
        described = []
        for segment in segments:
            shape = _described(segmentation == segment["id"])
            index = segment["category_id"]
            name = {"category_id": self.categories.id_of(index), "name": self.classes[index]}
            described.append({**segment, **name, **shape})
        return described

    def save_coco_panoptic(
        self,
        path: str | os.PathLike[str],
        file_name: str,
        things: Collection[str | int] | None = None,
        object_mask_threshold: float = 0.8,
        overlap_threshold: float = 0.8,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        """Write what `panoptic` returns in COCO's panoptic format: JSON at `path`, the ids as a PNG of the same stem.

        `file_name` is the image's. Categories have the classes' ids, or else their indices; pixels in no segment are 0.
        Raises as `panoptic`, and OutputError if the files cannot be written.
        """
        check_suffix("json", path)
        segmentation, segments = self.panoptic(things, object_mask_threshold, overlap_threshold)
        picture, described = coco_panoptic(
            file_name, os.fspath(path), segmentation, segments, self.classes, self._countable(things), self.categories
        )
        write_picture(Path(path).with_suffix(".png"), picture, "PNG", {})
        write_json(path, described, info)

    def _json(self, segments: list[dict[str, Any]]) -> dict[str, Any]:
        known = {"categories": self.categories.described(self.classes)} if self.categories.known else {}
        return {"image_size": list(self.labels.shape), "classes": self.classes, **known, "segments": segments}

    def _present(self) -> Any:
        """Index, mask (H, W) bool and score in 0..1 of each class that has a pixel."""
        counts = np.bincount(self.labels.ravel() + 1, minlength=len(self.classes) + 1)[1:]
        for index in np.flatnonzero(counts).tolist():
            mask = self.labels == index
            yield index, mask, float(np.minimum(self.scores[mask], 1).mean(dtype=np.float64))

    def known_evidence(self) -> Evidence:
        """The evidence; raises VocabsegError where there is none."""
        if self.evidence is None:
            raise VocabsegError("this result holds only labels and scores; get one from a segmenter for more")
        return self.evidence

    def _masks(self) -> ResampledMasks:
        known = self.known_evidence()
        return ResampledMasks(known.masks, known.kernels)

    def _countable(self, things: Collection[str | int] | None) -> frozenset[int]:
        return self._indices(self.categories.countable(len(self.classes)) if things is None else things)

    def _indices(self, classes: Collection[str | int]) -> frozenset[int]:
        if isinstance(classes, str):
            raise VocabularyError(f"things is the string {classes!r}; give a list of class names or indices")
        place = {name: index for index, name in enumerate(self.classes)}
        found = set()
        for item in classes:
            index = place.get(item) if isinstance(item, str) else int(item)
            if index is None or not 0 <= index < len(self.classes):
                raise VocabularyError(f"{item!r} in things is not one of {len(self.classes)} classes; use their names")
            found.add(index)
        return frozenset(found)


def _restored(
    labels: np.ndarray,
    scores: np.ndarray,
    classes: list[str],
    image: np.ndarray | None,
    parts: tuple[Any, ...],
    categories: Categories | None = None,
) -> Result:
    masks, probabilities, no_object, kernels, *opinions = parts  # older pickles have no opinions
    form = lambda: opinions[0] if opinions else None  # noqa: E731
    evidence = GivenEvidence(masks, probabilities, no_object, importlib.import_module(kernels), form)
    return Result(labels, scores, classes, image, evidence, categories)


def _described(mask: np.ndarray) -> dict[str, Any]:
    return {
        "area": int(np.count_nonzero(mask)),
        "bbox": coco_box(mask),
        "segmentation": rle_encode(mask),
    }
