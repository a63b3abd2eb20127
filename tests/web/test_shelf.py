"""What is kept of pictures is bounded, of each page and in all."""

from collections.abc import Iterator, Mapping
from types import SimpleNamespace

import numpy as np
import pytest

from vocabseg.runtime.errors import EngineError
from vocabseg.runtime.result.result import Result
from vocabseg.web.shelf import ALL_PICTURES, ANSWERS, MODELS, PICTURES, Gone, Kept, Shelf


def picture(page: str, side: int = 10) -> Kept:
    return Kept("a.png", np.zeros((side, side, 3), np.uint8), page)


def kept(shelf: Shelf, keys: list[str]) -> list[bool]:
    found = []
    for key in keys:
        try:
            shelf.picture(key)
            found.append(True)
        except Gone:
            found.append(False)
    return found


def test_a_page_keeps_its_last_pictures_and_takes_none_from_others() -> None:
    shelf = Shelf()
    other = shelf.add(picture("other"))
    keys = [shelf.add(picture("page")) for _ in range(PICTURES)]
    shelf.picture(keys[0])  # is used last
    keys.append(shelf.add(picture("page")))
    assert kept(shelf, keys) == [True, False, *[True] * (PICTURES - 1)]
    assert kept(shelf, [other]) == [True]


def test_all_pages_together_are_bounded() -> None:
    shelf = Shelf(most_bytes=1000)
    keys = [shelf.add(picture(f"page {number}")) for number in range(4)]  # 300 bytes each
    assert kept(shelf, keys) == [False, True, True, True]
    assert shelf.bytes == 900
    large = shelf.add(picture("large", side=100))
    assert kept(shelf, [*keys, large]) == [False] * 4 + [True]


def test_regions_and_answers_count() -> None:
    shelf = Shelf(most_bytes=10_000)
    first, second = shelf.add(picture("a")), shelf.add(picture("b"))
    one = shelf.picture(second)
    arrays = {"image": one.image, "mask_logits": np.zeros((2, 50), np.float32)}
    for number in range(MODELS + 1):
        shelf.add_regions(one, ("demo", str(number)), SimpleNamespace(arrays=arrays))  # type: ignore[arg-type]
    assert [model for _, model in one.regions] == [str(number) for number in range(1, MODELS + 1)]
    assert shelf.bytes == 300 + 300 + MODELS * 400
    labels, scores = np.zeros((10, 10), np.int32), np.zeros((10, 10), np.float32)
    model, result = ("demo", str(MODELS)), Result(labels, scores, ["cat"])
    names = [shelf.add_answer(second, one, model, result) for _ in range(ANSWERS + 1)]
    assert shelf.bytes == 300 + 300 + MODELS * 400 + ANSWERS * 800
    assert shelf.answer(names[-1])[0] is one
    for name in (names[0], f"{second}.x", f"{second}.", second, "", ".", f"{second}.²"):
        with pytest.raises(Gone):
            shelf.answer(name)
    shelf.add_regions(one, ("demo", "large"), SimpleNamespace(arrays={"a": np.zeros(9000, np.uint8)}))  # type: ignore[arg-type]
    assert kept(shelf, [first, second]) == [False, True]


def test_small_pictures_are_bounded_too() -> None:
    shelf = Shelf()
    keys = [shelf.add(picture(str(number))) for number in range(ALL_PICTURES + 1)]
    assert kept(shelf, keys) == [False, *[True] * ALL_PICTURES]


class DeviceDouble(Mapping[str, np.ndarray]):
    """Arrays that are checked when they are fetched, as those on a GPU are."""

    def __init__(self, usable: bool):
        self.usable, self.fetched = usable, 0

    def __getitem__(self, name: str) -> np.ndarray:
        self.fetched += 1
        if not self.usable:
            raise EngineError("the network returned NaN")
        return np.zeros(100, np.uint8)

    def __iter__(self) -> Iterator[str]:
        return iter(["mask_logits"])

    def __len__(self) -> int:
        return 1


def test_regions_that_cannot_be_used_are_not_kept_and_others_are_fetched_once() -> None:
    shelf = Shelf()
    one = shelf.picture(shelf.add(picture("a")))
    with pytest.raises(EngineError):
        shelf.add_regions(one, ("demo", "fp8"), SimpleNamespace(arrays=DeviceDouble(False)))  # type: ignore[arg-type]
    assert not one.regions
    arrays = DeviceDouble(True)
    shelf.add_regions(one, ("demo", "fp8"), SimpleNamespace(arrays=arrays))  # type: ignore[arg-type]
    shelf.add(picture("b"))
    assert (shelf.bytes, arrays.fetched) == (300 + 100 + 300, 1)


def test_names_cannot_be_guessed() -> None:
    shelf = Shelf()
    keys = {shelf.add(picture(str(number))) for number in range(50)}
    assert len(keys) == 50
    assert min(map(len, keys)) >= 22
