"""From embeddings to class probabilities: similarity, softmax and the seen/unseen ensemble, in float32."""

from typing import Any

import numpy as np

from vocabseg.runtime.bundle.sections import EnsembleSection

Array = np.ndarray[Any, Any]


def class_probabilities(
    query_embeddings: Array | None,
    query_text: Array | None,
    valid: Array,
    region_embeddings: Array | None,
    region_text: Array | None,
    seen: Array | None,
    ensemble: EnsembleSection,
    query_first: Array | None = None,
    region_first: Array | None = None,
) -> Array:
    """The class distribution of every mask that votes.

    query_embeddings (N, Dq) and query_text (R+1, Dq), whose last row is the non-object's, both None for masks without
    queries; region_embeddings (V, Dr) of the V masks flagged in valid (N,) and region_text (R, Dr); seen (K,) bool,
    None for all unseen, as they all are without the ensemble's seen_rule; query_first (K+2,), whose last class is the
    non-object, and region_first (K+1,), as for `best_names`, None if every class has one name (R = K). Text rows have
    unit length; embeddings need not.

    Returns probabilities (M, K) float32, whose rows need not sum to 1. M = N; or V, the valid masks, if only CLIP
    votes: enabled with weight <= 0, or no queries. Raises ValueError if the arrays do not match.
    """
    valid = np.asarray(valid, bool)
    count, temperature = int(valid.sum()), ensemble.temperature
    if query_embeddings is None or query_text is None or (ensemble.enabled and ensemble.weight <= 0):
        return region_distribution(region_embeddings, region_text, count, temperature, region_first)
    query = query_distribution(query_embeddings, query_text, temperature, query_first)[:, :-1]
    if len(valid) != len(query):
        raise ValueError(f"{len(query)} query embeddings, but {len(valid)} valid flags")
    if not ensemble.enabled:
        return query
    region = np.empty((0, query.shape[1]), np.float32)
    if count:
        region = region_distribution(region_embeddings, region_text, count, temperature, region_first)
    return combine(query, region, valid, seen if ensemble.seen_rule else None, ensemble.weight)


def query_distribution(
    query_embeddings: Array, query_text: Array, temperature: float, first: Array | None = None
) -> Array:
    """Softmax over K classes and the non-object: embeddings (N, Dq), text (R+1, Dq) -> (N, K+1) float32."""
    return softmax(best_names(similarity(query_embeddings, query_text, temperature), first))


def best_names(logits: Array, first: Array | None) -> Array:
    """The logit of each class's most similar name: logits (n, R) of names -> (n, K) of classes.

    Class k has the names first[k] to first[k+1], of first (K+1,) from 0 to R. Without `first`, columns are classes.
    """
    return logits if first is None else np.maximum.reduceat(logits, first[:-1], axis=1)


def combine(query: Array, region: Array, valid: Array, seen: Array | None, weight: float) -> Array:
    """Geometric mean of query (N, K) and region (V, K) probabilities; the region rows are the valid masks', in order.

    `weight` is the query's exponent for seen classes, and CLIP's for unseen ones. An invalid mask has no CLIP evidence,
    which counts as 1. Returns (N, K) float32, not normalised.
    """
    if region.shape != (int(valid.sum()), query.shape[1]):
        raise ValueError(f"region probabilities {region.shape}: expected ({int(valid.sum())}, {query.shape[1]})")
    evidence = np.ones_like(query)
    evidence[valid] = region
    flags = np.zeros(query.shape[1], bool) if seen is None else np.asarray(seen, bool)
    if flags.shape != (query.shape[1],):
        raise ValueError(f"{flags.size} seen flags for {query.shape[1]} classes")
    query_power, region_power = powers(flags, weight)
    return query**query_power * evidence**region_power


def powers(seen: Array, weight: float) -> tuple[Array, Array]:
    """The exponents (K,) float32 of query and region probabilities, for flags (K,) bool."""
    query_power = np.where(seen, np.float32(weight), np.float32(1 - weight)).astype(np.float32)
    region_power = np.where(seen, np.float32(1 - weight), np.float32(weight)).astype(np.float32)
    return query_power, region_power


def similarity(embeddings: Array, text: Array, temperature: float) -> Array:
    """temperature x cosine: embeddings (n, D) of any length, text (K, D) of unit length -> (n, K) float32."""
    embeddings = np.asarray(embeddings, np.float32)
    text = np.asarray(text, np.float32)
    if embeddings.ndim != 2 or text.ndim != 2 or embeddings.shape[1] != text.shape[1]:
        raise ValueError(f"embeddings {embeddings.shape} and text {text.shape} must be (n, D) and (K, D)")
    length = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unit = embeddings / np.maximum(length, np.finfo(np.float32).tiny)
    return np.float32(temperature) * (unit @ text.T)


def softmax(logits: Array) -> Array:
    """Over the last axis, in the dtype of the logits."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def region_distribution(
    embeddings: Array | None, text: Array | None, count: int, temperature: float, first: Array | None = None
) -> Array:
    """Softmax over K classes: embeddings (V, Dr) of `count` = V regions, text (R, Dr) -> (V, K) float32."""
    if text is None:
        raise ValueError("region_text is missing: CLIP's side needs the classes' text embeddings")
    if count == 0:
        return np.empty((0, len(text) if first is None else len(first) - 1), np.float32)
    if embeddings is None or len(embeddings) != count:
        given = "no" if embeddings is None else len(embeddings)
        raise ValueError(f"{count} valid masks, but {given} region embeddings")
    return softmax(best_names(similarity(embeddings, text, temperature), first))
