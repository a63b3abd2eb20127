"""A result -> the tensors that a request asks for."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vocabseg.runtime.files import strict_json
from vocabseg.runtime.result.result import Result
from vocabseg.serving import protocol
from vocabseg.serving.answering.requests import ImageRequest, RequestError

Tensors = dict[str, np.ndarray]


def tensors(result: Result, request: ImageRequest) -> Tensors:
    """The outputs that a request asks for, without the batch's axis; BYTES as object arrays.

    Raises VocabularyError for "things" that are not classes, VocabsegError for what a per-pixel model does not have.
    """
    found: Tensors = {}
    wanted = request.wanted
    if protocol.LABELS in wanted:
        found[protocol.LABELS] = result.labels
    if protocol.SCORES in wanted:
        found[protocol.SCORES] = result.scores
    if protocol.CLASS_NAMES in wanted:
        found[protocol.CLASS_NAMES] = np.array([name.encode() for name in result.classes], object)
    if protocol.SEGMENTS in wanted:
        found[protocol.SEGMENTS] = _json(result.to_json())
    if protocol.PANOPTIC in wanted or protocol.PANOPTIC_SEGMENTS in wanted:
        options = request.options
        ids, segments = result.panoptic(options.things, options.object_mask_threshold, options.overlap_threshold)
        if protocol.PANOPTIC in wanted:
            found[protocol.PANOPTIC] = ids
        if protocol.PANOPTIC_SEGMENTS in wanted:
            found[protocol.PANOPTIC_SEGMENTS] = _json(segments)
    if not set(protocol.EVIDENCE).isdisjoint(wanted):
        evidence = result.known_evidence()
        if protocol.MASK_LOGITS in wanted:
            found[protocol.MASK_LOGITS] = evidence.masks.logits
        if protocol.CLASS_PROBABILITIES in wanted:
            found[protocol.CLASS_PROBABILITIES] = evidence.class_probabilities
        if protocol.NO_OBJECT in wanted:
            found[protocol.NO_OBJECT] = evidence.no_object
        if protocol.SIZES in wanted:
            masks = evidence.masks
            sizes = (*masks.padded_size, *masks.image_size, *masks.output_size)
            found[protocol.SIZES] = np.array(sizes, np.int32)
    return found


def stack(answers: Sequence[Mapping[str, np.ndarray]]) -> Tensors:
    """The tensors of a request's images, stacked; raises RequestError if their sizes differ."""
    stacked = {}
    for name in answers[0]:
        parts = [answer[name] for answer in answers]
        if any(part.shape != parts[0].shape for part in parts):
            raise RequestError(
                f"{name} differs in size between the {len(parts)} images: send each in a request of its own"
            )
        stacked[name] = np.stack(parts)
    return stacked


def _json(content: Any) -> np.ndarray:
    return np.array([strict_json(content, separators=(",", ":"))], object)
