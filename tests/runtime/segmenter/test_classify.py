"""Class probabilities against recorded values, and the rules of who votes."""

import numpy as np
import pytest

from tests.golden import load_golden
from tests.runtime.kernels.cases import worst
from vocabseg.runtime.bundle.sections import EnsembleSection
from vocabseg.runtime.segmenter.classify import class_probabilities, combine, query_distribution, similarity, softmax

GOLDEN_CASES = range(36)


def ensemble(weight: float, temperature: float = 100.0, enabled: bool = True) -> EnsembleSection:
    return EnsembleSection(enabled=enabled, weight=weight, temperature=temperature)


def embeddings_with(logits: np.ndarray, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray, float]:
    """Embeddings, unit text rows and the temperature whose similarity is `logits`: text row k is axis k, and one more
    coordinate makes all embeddings equally long."""
    values = logits.astype(np.float64)
    length = 1.5 * np.sqrt((values**2).sum(axis=1).max())
    rest = np.sqrt(length**2 - (values**2).sum(axis=1, keepdims=True))
    embeddings = np.concatenate([values, rest], axis=1) / temperature
    text = np.eye(values.shape[1], values.shape[1] + 1)
    return embeddings.astype(np.float32), text.astype(np.float32), float(length)


@pytest.mark.parametrize("index", GOLDEN_CASES)
def test_ensemble_of_the_published_code(index: int) -> None:
    arrays, meta = load_golden("e_ensemble")
    case = meta["cases"][index]
    valid = np.array(meta["valids"][case["valid"]], bool)
    seen = np.array(meta["flag"], bool) if case["trained"] else None
    query, query_text, temperature = embeddings_with(arrays["query_logits"])
    region, region_text, region_temperature = embeddings_with(arrays["clip_logits"])
    region = region * np.float32(temperature / region_temperature)  # embeddings of any length are the same direction
    scaled_text = region_text * np.float32(region_temperature / temperature)
    settings = ensemble(case["weight"], temperature)
    found = class_probabilities(query, query_text, valid, region[valid], scaled_text[:-1], seen, settings)
    wanted = arrays[f"prob_{index}"]
    worst("probabilities", found, wanted, 2e-6)
    assert len(found) == (valid.sum() if case["weight"] <= 0 else len(valid))
    assert found.dtype == np.float32


def test_without_ensemble_queries_speak_alone() -> None:
    arrays, _ = load_golden("e_ensemble")
    query, text, temperature = embeddings_with(arrays["query_logits"])
    valid = np.zeros(len(query), bool)
    found = class_probabilities(query, text, valid, None, None, None, ensemble(0.8, temperature, enabled=False))
    worst("probabilities", found, softmax(arrays["query_logits"].astype(np.float64))[:, :-1], 2e-6)
    assert len(found) == len(query)
    assert found[0].sum() < 0.34  # the non-object's share is gone
    # A weight of zero means "only CLIP" in an ensemble, and nothing where there is none.
    again = class_probabilities(query, text, valid, None, None, None, ensemble(0.0, temperature, enabled=False))
    np.testing.assert_array_equal(found, again)


def test_network_golden() -> None:
    arrays, meta = load_golden("c_r50_tiny16_vild")
    found = query_distribution(arrays["class_embed"][0], arrays["text_query"], 100.0)
    worst("query side", found, softmax(arrays["query_logits_0"].astype(np.float64)), 1e-4)
    probabilities = class_probabilities(
        arrays["class_embed"][0],
        arrays["text_query"],
        arrays["valid_0"],
        arrays["crop_features"],
        arrays["text_query"][:-1],
        np.array(meta["trainable_flag"], bool),
        ensemble(0.8),
    )
    worst("ensemble", probabilities, arrays["class_prob_0"], 1e-4)
    assert len(probabilities) == 100


@pytest.mark.parametrize("case", ["t_swin_tiny14_mpt", "t_swin_tiny14_clip_only", "t_swin_tiny14_no_ensemble"])
def test_published_code_without_a_rule_for_seen_classes(case: str) -> None:
    arrays, meta = load_golden(case)
    clip = meta["model"]["clip_adapter"]
    settings = EnsembleSection(
        enabled=clip["CLIP_ENSEMBLE"], weight=clip["CLIP_ENSEMBLE_WEIGHT"], temperature=100, seen_rule=False
    )
    text = arrays["text_query"]
    seen = np.arange(len(text) - 1) % 2 == 0  # does not matter
    region = arrays.get("crop_features")
    found = class_probabilities(arrays["class_embed"][0], text, arrays["valid_0"], region, text[:-1], seen, settings)
    worst("probabilities", found, arrays["class_prob_0"], 1e-4)


def test_masks_of_ones_own_have_only_clip() -> None:
    region, text, temperature = embeddings_with(np.array([[2.0, 1.0, 0.0], [0.0, 0.0, 3.0]]))
    valid = np.array([True, False, True])
    found = class_probabilities(None, None, valid, region, text, None, ensemble(0.7, temperature))
    worst("probabilities", found, softmax(np.array([[2.0, 1.0, 0.0], [0.0, 0.0, 3.0]])), 1e-6)


def test_no_valid_mask() -> None:
    query, text, temperature = embeddings_with(np.array([[2.0, 1.0, 0.5], [0.0, 0.5, 3.0]]))
    none = np.zeros(2, bool)
    empty = class_probabilities(query, text, none, None, text[:-1], None, ensemble(0.0, temperature))
    assert empty.shape == (0, 2)
    # An invalid mask has no CLIP evidence, but its query votes still.
    found = class_probabilities(query, text, none, None, text[:-1], None, ensemble(0.75, temperature))
    worst("query alone", found, query_distribution(query, text, temperature)[:, :-1] ** 0.25, 1e-6)


def test_seen_and_unseen_weigh_the_sides_the_other_way_round() -> None:
    query, region = np.array([[0.5, 0.5]], np.float32), np.array([[0.1, 0.1]], np.float32)
    found = combine(query, region, np.array([True]), np.array([True, False]), 0.8)
    worst("ensemble", found, np.array([[0.5**0.8 * 0.1**0.2, 0.5**0.2 * 0.1**0.8]]), 1e-6)


def test_similarity_takes_any_length_even_none() -> None:
    text = np.eye(3, dtype=np.float32)
    found = similarity(np.array([[0, 5, 0], [0, 0, 0], [1e-3, 0, 0]], np.float32), text, 100.0)
    worst("similarity", found, np.array([[0, 100.0, 0], [0, 0, 0], [100.0, 0, 0]]), 1e-4)


def test_arrays_that_do_not_fit() -> None:
    query, text = np.ones((3, 4), np.float32), np.eye(4, dtype=np.float32)
    valid = np.array([True, False, True])
    with pytest.raises(ValueError, match="3 query embeddings, but 2 valid flags"):
        class_probabilities(query, text, valid[:2], None, None, None, ensemble(0.5))
    with pytest.raises(ValueError, match="2 valid masks, but no region embeddings"):
        class_probabilities(query, text, valid, None, text[:-1], None, ensemble(0.5))
    with pytest.raises(ValueError, match="2 valid masks, but 1 region embeddings"):
        class_probabilities(query, text, valid, query[:1], text[:-1], None, ensemble(0.5))
    with pytest.raises(ValueError, match="region_text is missing"):
        class_probabilities(query, text, valid, query[:2], None, None, ensemble(0.5))
    with pytest.raises(ValueError, match=r"embeddings \(3, 4\) and text \(2, 3\)"):
        class_probabilities(query, np.ones((2, 3), np.float32), valid, None, None, None, ensemble(0.5, enabled=False))
    with pytest.raises(ValueError, match="2 seen flags for 3 classes"):
        class_probabilities(query, text, valid, query[:2], text[:-1], [True, False], ensemble(0.5))
