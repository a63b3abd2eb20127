"""Every check of the CUDA kernels' arguments, on arrays that are nothing but a shape and a type: none is launched."""

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.runtime.kernels.cases import cropping
from vocabseg.runtime.bundle.sections import EnsembleSection
from vocabseg.runtime.cuda.arrays import DeviceArray
from vocabseg.runtime.kernels.device.arguments import CropSource, Side
from vocabseg.runtime.kernels.device.face import CudaKernels
from vocabseg.runtime.masks import Masks

ENSEMBLE = EnsembleSection(enabled=True, weight=0.7, temperature=100)


def array(dtype: Any, shape: tuple[int, ...]) -> DeviceArray:
    return DeviceArray(None, shape, dtype, 256, None)  # type: ignore[arg-type]


def f4(*shape: int) -> DeviceArray:
    return array(np.float32, shape)


def i4(*shape: int) -> DeviceArray:
    return array(np.int32, shape)


def u1(*shape: int) -> DeviceArray:
    return array(np.uint8, shape)


def masks(logits: Any, size: tuple[int, int] = (8, 40)) -> Masks:
    return Masks(logits, size, size, (4, 4))


def kernels() -> tuple[CudaKernels, list[str]]:
    """Kernels that are not launched, and the names of those that would have been."""
    found = CudaKernels(SimpleNamespace(load_module=lambda _: None), b"")  # type: ignore[arg-type]
    launched: list[str] = []
    found._launch = lambda name, *_: launched.append(name)  # type: ignore[method-assign,assignment]
    return found, launched


def crop(k: CudaKernels, **changed: Any) -> None:
    usual = {
        "resized": u1(8, 40, 3), "masks": masks(f4(3, 2, 10)), "bits": None, "crop_boxes": i4(2, 4), "order": i4(2),
        "count": i4(1), "first": 0,
    }  # fmt: skip
    k.crop_regions([CropSource(**{**usual, **changed})], cropping(8), f4(1, 3, 8, 8), None)  # type: ignore[arg-type]


def classify(k: CudaKernels, **changed: Any) -> None:
    usual = {
        "query": Side(f4(3, 6), f4(5, 6)), "region": Side(f4(2, 7), f4(4, 7)), "seen": u1(4), "order": i4(3),
        "count": i4(1), "ensemble": ENSEMBLE, "probabilities": f4(3, 4), "no_object": f4(3), "stream": None,
    }  # fmt: skip
    k._workspaces = SimpleNamespace(get=lambda *_: SimpleNamespace(pointer=256))  # type: ignore[assignment]
    k.classify(**{**usual, **changed})


def compose(k: CudaKernels, **changed: Any) -> None:
    usual = {
        "masks": masks(f4(3, 2, 10)), "probabilities": f4(2, 5), "order": i4(2), "count": i4(1), "labels": i4(4, 4),
        "scores": f4(4, 4), "stream": None,
    }  # fmt: skip
    k._workspaces = SimpleNamespace(get=lambda *_: SimpleNamespace(pointer=256))  # type: ignore[assignment]
    k.compose(**{**usual, **changed})


BAD: list[tuple[str, Callable[[CudaKernels], None]]] = [
    ("mask_logits holds 65536 masks: at most 65535", lambda k: crop(k, masks=masks(f4(65536, 2, 10)))),
    ("mask_logits has shape (3, 2): give (masks, h, w)", lambda k: crop(k, masks=masks(f4(3, 2)))),
    ("mask_logits has type int32: give float32 or float16", lambda k: crop(k, masks=masks(i4(3, 2, 10)))),
    ("resized is 40000 x 40000: at most 1431655765", lambda k: crop(
        k, resized=u1(40000, 40000, 3), masks=masks(f4(3, 2, 10), (40000, 40000)))),
    ("resized is 8 x 41, but the masks' image size is (8, 40)", lambda k: crop(k, resized=u1(8, 41, 3))),
    ("bits has type int32: give uint32", lambda k: crop(k, bits=i4(3, 8, 2))),
    ("crop_boxes has shape (3, 4): give (2, 4)", lambda k: crop(k, crop_boxes=i4(3, 4))),
    ("count has shape (2,): give (1,)", lambda k: crop(k, count=i4(2))),
    ("order has type float32: give int32", lambda k: crop(k, order=f4(2))),
    ("first is -1: the number of a crop must be 0 or more", lambda k: crop(k, first=-1)),
    ("query embeddings has shape (2, 6): give (3, depth)", lambda k: classify(k, query=Side(f4(2, 6), f4(5, 6)))),
    ("query text has shape (5, 7): give (5, 6)", lambda k: classify(k, query=Side(f4(3, 6), f4(5, 7)))),
    ("region text has shape (5, 7): give (4, 7)", lambda k: classify(k, region=Side(f4(2, 7), f4(5, 7)))),
    ("the regions' embeddings and texts are missing: give them", lambda k: classify(k, region=None)),
    ("order must be a DeviceArray of shape (masks,), not NoneType", lambda k: classify(k, order=None)),
    ("count has shape (3,): give (1,)", lambda k: classify(k, count=i4(3))),
    ("count is missing: give the number of regions in order", lambda k: classify(k, count=None)),
    ("seen has shape (5,): give (4,)", lambda k: classify(k, seen=u1(5))),
    ("no_object has shape (4,): give (3,)", lambda k: classify(k, no_object=f4(4))),
    ("order has shape (3,): give (2,)", lambda k: compose(k, order=i4(3))),
    ("count has shape (2,): give (1,)", lambda k: compose(k, count=i4(2))),
    ("scores has shape (4, 5): give (4, 4)", lambda k: compose(k, scores=f4(4, 5))),
    ("labels has type float32: give int32", lambda k: compose(k, labels=f4(4, 4))),
    ("flag has shape (2,): give (1,)", lambda k: k.find_unusable(f4(3), i4(2), None)),  # type: ignore[arg-type]
]  # fmt: skip


@pytest.mark.parametrize(("message", "call"), BAD, ids=[message[:30] for message, _ in BAD])
def test_bad_arguments_are_told_and_nothing_is_launched(message: str, call: Callable[[CudaKernels], None]) -> None:
    found, launched = kernels()
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        call(found)
    assert "\n" not in str(error.value)
    assert launched == []


def test_what_is_launched() -> None:
    """The arguments that others differ from are good, at the limits too; nothing is launched for what is empty."""
    found, launched = kernels()
    crop(found, masks=masks(f4(65535, 2, 10)))
    classify(found)
    compose(found)
    assert launched == ["crop_regions_logits_f32", "similarity", "classify", "compose_classes", "compose_f32"]
    launched.clear()
    crop(found, crop_boxes=i4(0, 4), order=i4(0))
    empty = {"query": Side(f4(0, 6), f4(5, 6)), "order": i4(0), "no_object": f4(0), "probabilities": f4(0, 4)}
    classify(found, **empty)
    found.region_boxes(masks(f4(0, 2, 10)), 0.5, i4(0, 4), i4(0), None, None)  # type: ignore[arg-type]
    found.find_unusable(f4(0), i4(1), None)  # type: ignore[arg-type]
    assert launched == []
    compose(found, probabilities=f4(0, 5), order=i4(0))
    assert launched == ["compose_f32"]
