"""What a request is read as, without a server: limits, vocabularies and options."""

import base64
from typing import Any

import numpy as np
import pytest

from vocabseg.runtime.errors import ImageError, VocabularyError
from vocabseg.serving.answering.requests import RequestError, RequestReader, read_options
from vocabseg.serving.protocol import CLASSES, IMAGE, PIXELS, NamedVocabulary, RequestLimits

LIMITS = RequestLimits(max_names=3, max_name_length=8, max_pixels=200, max_image_bytes=10)
PICTURE = np.zeros((1, 10, 20, 3), np.uint8)


def reader(**named: NamedVocabulary) -> RequestReader:
    return RequestReader(LIMITS, named)


def names(*given: str | bytes) -> np.ndarray:
    return np.array([[name.encode() if isinstance(name, str) else name for name in given]], object)


def test_a_request_holds_the_image_the_names_and_what_is_wanted() -> None:
    (request,) = reader().read({PIXELS: PICTURE, CLASSES: names("cat", "café")}, {"seen": '["cat"]'}, ["SCORES"])
    assert request.vocabulary.names == ("cat", "café")
    assert request.vocabulary.seen is not None
    assert request.vocabulary.seen.tolist() == [True, False]
    assert request.wanted == {"SCORES"}
    assert np.array_equal(request.image, PICTURE[0])


def test_synonyms_and_the_contrast_class_are_names_like_others() -> None:
    (request,) = reader().read({PIXELS: PICTURE, CLASSES: names("a|b", "c")}, {"other": "true"}, [])
    assert request.vocabulary.names == ("a", "c", "other")
    assert request.vocabulary.synonyms == (("a", "b"), ("c",))
    (request,) = reader().read({PIXELS: PICTURE, CLASSES: names("a|b")}, {"other": '["wall"]'}, [])
    assert request.vocabulary.contrast == ("wall",)
    known = NamedVocabulary(names=["a|b"], ids=[7], colours=[[1, 2, 3]], other=["wall"])
    (request,) = reader(mine=known).read({PIXELS: PICTURE}, {"vocabulary": "mine"}, [])
    assert (request.vocabulary.contrast, request.vocabulary.categories.ids) == (("wall",), (7, 8))
    for given, other, told in (
        ("a|b|c|d", "false", "4 class names, with synonyms, are more than this server takes: give at most 3"),
        ("a|b", '["c", "d"]', "4 class names"),
        ("a", '["a very long name"]', "a name of other has 16 characters"),
    ):
        with pytest.raises(VocabularyError, match=told):
            reader().read({PIXELS: PICTURE, CLASSES: names(given)}, {"other": other}, [])


def test_the_names_that_other_is_chosen_from_count_as_prompts() -> None:
    own = {"": NamedVocabulary(names=[f"n{index}" for index in range(500)])}
    options = {"other": "true", "templates": str([f"{index} {{}}" for index in range(30)]).replace("'", '"')}
    given = {PIXELS: PICTURE, CLASSES: names("a")}
    assert reader().read(given, options, [])[0].vocabulary.contrast == ()
    assert reader(**own).read(given, {"other": "true"}, [])
    with pytest.raises(VocabularyError, match=r"6\d\d class names with 30 prompts each are more than 16384 prompts"):
        reader(**own).read(given, options, [])


def test_each_image_of_a_request_has_its_own_names() -> None:
    files = np.array([[b"one"], [b"two"]], object)
    first, second = reader().read({IMAGE: files, CLASSES: np.array([[b"a"], [b"b"]], object)}, {}, [])
    assert (first.image, second.image) == (b"one", b"two")
    assert (first.vocabulary.names, second.vocabulary.names) == (("a",), ("b",))


@pytest.mark.parametrize("before", [b"", b"data:image/png;base64,"])
def test_an_image_file_may_be_base64_text(before: bytes) -> None:
    content = b"\x89PNG\r\n\x1a\n\0"
    for text in (base64.b64encode(content), base64.encodebytes(content)):
        (request,) = reader().read({IMAGE: np.array([[before + text]], object), CLASSES: names("a")}, {}, [])
        assert request.image == content
    for other in (content, b"one", b"P3\n1 1 1\n", before + b"====" if before else b"===="):
        (request,) = reader().read({IMAGE: np.array([[other[:10]]], object), CLASSES: names("a")}, {}, [])
        assert request.image == other[:10]
    with pytest.raises(ImageError, match="more than 1e-05 MB"):
        reader().read({IMAGE: np.array([[before + base64.b64encode(b"\xff" * 11)]], object)}, {}, [])


def test_named_vocabularies_keep_what_a_request_does_not_override() -> None:
    known = NamedVocabulary(names=["road", "sky"], seen=[True, False], templates=["a {}"])
    road = reader(road=known)
    (request,) = road.read({PIXELS: PICTURE}, {"vocabulary": "road"}, [])
    assert request.vocabulary.templates == ("a {}",)
    (request,) = road.read({PIXELS: PICTURE}, {"vocabulary": "road", "templates": '["the {}"]'}, [])
    assert request.vocabulary.templates == ("the {}",)
    assert request.vocabulary.seen is not None
    assert request.vocabulary.seen.tolist() == [True, False]


@pytest.mark.parametrize(
    ("inputs", "parameters", "error", "message"),
    [
        ({PIXELS: np.zeros((1, 10, 21, 3), np.uint8)}, {}, ImageError, "21 x 10 pixels: give at least 1 x 1"),
        ({IMAGE: np.array([[b"x" * 11]], object)}, {}, ImageError, "more than 1e-05 MB"),
        ({}, {}, ImageError, "neither of IMAGE"),
        ({PIXELS: PICTURE, CLASSES: names("a", "b", "c", "d")}, {}, VocabularyError, "4 class names are more"),
        ({PIXELS: PICTURE, CLASSES: names("a" * 9)}, {}, VocabularyError, "9 characters, more than 8"),
        ({PIXELS: PICTURE, CLASSES: names("a" * 33)}, {}, VocabularyError, "has 33 bytes"),
        ({PIXELS: PICTURE, CLASSES: names(b"\xff")}, {}, VocabularyError, "not UTF-8 text"),
        ({PIXELS: PICTURE, CLASSES: names("a")}, {"vocabulary": "b"}, VocabularyError, "names a vocabulary"),
        ({PIXELS: PICTURE}, {}, VocabularyError, "no vocabulary of its own"),
        ({PIXELS: PICTURE}, {"vocabulary": "@/etc/passwd"}, VocabularyError, "no vocabulary '@/etc/passwd'"),
    ],
)  # fmt: skip
def test_a_request_that_cannot_be_used_says_why(
    inputs: dict[str, np.ndarray], parameters: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        reader().read(inputs, parameters, [])


def test_limits_themselves_are_allowed() -> None:
    longest = names("a" * 8, "\U0001f600" * 8, "c")
    assert len(reader().read({PIXELS: PICTURE, CLASSES: longest}, {}, [])[0].vocabulary) == 3


@pytest.mark.parametrize("parameters", [{"colour": 1}, {"things": "["}, {"things": '{"a": 1}'}, {"seen": "3"}])
def test_parameters_that_do_not_fit_are_refused(parameters: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="parameter"):
        read_options(parameters)


def test_triton_s_own_parameters_are_left_alone() -> None:
    assert read_options({"triton_enable_empty_final_response": True, "priority": 1}) == read_options({})
