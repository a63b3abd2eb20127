"""The parity contract: produced arrays against a network golden's, stage by stage.

`golden` are the arrays of `load_golden`, `i` is the image's place in its batch, N is the number of proposals, V that of
valid ones. A hard mask may flip at pixels whose probability lies within rounding of the threshold: `near_i` counts
them. One flipped pixel changes a crop, an embedding and, through the temperature of 100, class probabilities, so
regions with such pixels are compared loosely, and labels where the golden margin is larger than what those can move.

Every check returns its worst figure and raises AssertionError with the smallest tolerance that would have passed.
"""

from collections.abc import Mapping

import numpy as np

Golden = Mapping[str, np.ndarray]

CROP_TOLERANCE = 1e-4
COSINE_LIMIT = 0.99999
LOOSE_COSINE_LIMIT = 0.9  # of a region with flipped pixels
LABEL_MARGIN = 1e-4
LABEL_SHARE = 0.9999
# One flipped pixel reaches 4 x 4 samples of a bicubic crop and moves each by less than 4.5, the range of their values.
FLIP_REACH = 16 * 4.5


def check_close(what: str, produced: np.ndarray, expected: np.ndarray, tolerance: float) -> float:
    """Largest absolute difference, at most `tolerance`; shapes must agree."""
    produced, expected = np.asarray(produced), np.asarray(expected)
    if produced.shape != expected.shape:
        raise AssertionError(f"{what}: shape {produced.shape}, golden {expected.shape}")
    if not produced.size:
        return 0.0
    error = np.abs(produced.astype(np.float64) - expected)
    worst = np.unravel_index(np.argmax(np.where(np.isnan(error), np.inf, error)), error.shape)
    if not error[worst] <= tolerance:
        place = tuple(int(index) for index in worst)
        raise AssertionError(
            f"{what}: {produced[worst]:.7g} instead of {expected[worst]:.7g} at {place}; a tolerance of "
            f"{error[worst]:.3g} would have passed, {tolerance:.3g} is allowed, which {(error > tolerance).sum()} of "
            f"{error.size} values exceed"
        )
    return float(error[worst])


def stable_regions(golden: Golden, i: int) -> np.ndarray:
    """(N,) bool: no pixel of the mask is so near the threshold that rounding could flip it."""
    return golden[f"near_{i}"][:, 0] == 0


def flippable(golden: Golden, i: int, error: float) -> dict[str, np.ndarray]:
    """The golden with `near_i` counting the pixels that mask logits off by `error` can flip.

    Its columns are for probabilities within 2.5e-5 and 2.5e-4 of the threshold: logits off by 1e-4 and 1e-3 at most.
    """
    return {**golden, f"near_{i}": golden[f"near_{i}"][:, [1, 1]] if error > 1e-4 else golden[f"near_{i}"]}


def check_mask_logits(golden: Golden, i: int, mask_logits: np.ndarray, tolerance: float = 1e-3) -> float:
    """Mask logits (N, h, w) at stride 4; big goldens hold a part of them."""
    if "pred_masks" in golden:
        return check_close("mask logits", mask_logits, golden["pred_masks"][i], tolerance)
    every = check_close("mask logits [::20]", mask_logits[::20], golden["pred_masks_q"][i], tolerance)
    return max(every, check_close("mask logits", mask_logits[:, 1::5, 2::5], golden["pred_masks_sub"][i], tolerance))


def check_boxes(golden: Golden, i: int, boxes: np.ndarray, valid: np.ndarray) -> int:
    """Tight boxes (N, 4) and valid flags (N,), equal where the golden's box is stable; returns how many."""
    stable, expected_valid = golden[f"box_stable_{i}"], golden[f"valid_{i}"]
    wrong = np.flatnonzero(stable & (np.asarray(valid, bool) != expected_valid))
    if wrong.size:
        raise AssertionError(f"valid flags differ at {wrong.size} stable masks, first {wrong[0]}: {valid[wrong[0]]}")
    expected = np.zeros((len(stable), 4))
    expected[expected_valid] = golden[f"boxes_{i}"]
    compared = stable & expected_valid
    different = np.flatnonzero(compared & (np.asarray(boxes) != expected).any(axis=1))
    if different.size:
        worst = max(different, key=lambda n: np.abs(boxes[n] - expected[n]).max())
        raise AssertionError(
            f"{different.size} of {compared.sum()} stable boxes differ; worst is mask {worst}: {boxes[worst]} instead "
            f"of {expected[worst]}; a tolerance of {np.abs(boxes[worst] - expected[worst]).max():.0f} would have passed"
        )
    return int(compared.sum())


def check_areas(golden: Golden, i: int, areas: np.ndarray) -> int:
    """Pixels of each thresholded mask (N,): off by at most the number of those that may flip."""
    expected, near = golden[f"area_{i}"], golden[f"near_{i}"][:, 0]
    beyond = np.abs(np.asarray(areas, np.int64) - expected) - near
    worst = int(np.argmax(beyond))
    if beyond[worst] > 0:
        raise AssertionError(
            f"mask {worst} has {areas[worst]} pixels instead of {expected[worst]}, of which {near[worst]} may flip; "
            f"{beyond[worst]} more would have to"
        )
    return int(np.abs(np.asarray(areas, np.int64) - expected).max())


def check_crops(
    golden: Golden, i: int, crops: np.ndarray, indices: np.ndarray, tolerance: float = CROP_TOLERANCE
) -> float:
    """Crops (V, 3, S, S) of the masks `indices` (V,); the contract is for the golden's own mask logits."""
    stable, near, rows = stable_regions(golden, i), golden[f"near_{i}"][:, 0], _valid_rows(golden, i)
    boxes = golden[f"boxes_{i}"]
    worst = 0.0
    for crop, index in zip(crops, indices, strict=True):
        if index not in rows:
            continue  # a mask that became valid by a flip; check_boxes has seen to it
        row = rows[index]
        pairs = [(crop[:, 5::18, 7::18], golden[f"crop_sub_{i}"][row])]
        if f"crop_idx_{i}" in golden and row in golden[f"crop_idx_{i}"]:
            full = int(np.flatnonzero(golden[f"crop_idx_{i}"] == row)[0])
            pairs.append((crop, golden[f"crop_full_{i}"][full]))
        for produced, expected in pairs:
            if stable[index]:
                worst = max(worst, check_close(f"crop of mask {index}", produced, expected, tolerance))
            else:
                x1, y1, x2, y2 = boxes[row]
                limit = tolerance + FLIP_REACH * near[index] / max((x2 - x1) * (y2 - y1), 1)
                mean = np.abs(produced - expected).mean(keepdims=True)
                check_close(f"mean error of the crop of unstable mask {index}", mean, np.zeros_like(mean), limit)
    return worst


def check_embeddings(
    golden: Golden, i: int, embeddings: np.ndarray, indices: np.ndarray, limit: float = COSINE_LIMIT
) -> float:
    """Embeddings (V, D), of any length, of the masks `indices` (V,); returns the worst cosine of a stable region."""
    rows, stable = _valid_rows(golden, i), stable_regions(golden, i)
    before = sum(int(golden[f"valid_{image}"].sum()) for image in range(i))
    worst, worst_index, worst_loose = 1.0, -1, 1.0
    for embedding, index in zip(np.asarray(embeddings, np.float64), indices, strict=True):
        if index not in rows:
            continue
        expected = golden["crop_features"][before + rows[index]].astype(np.float64)
        cosine = float(embedding @ expected / (np.linalg.norm(embedding) * np.linalg.norm(expected)))
        if not stable[index]:
            worst_loose = min(worst_loose, cosine)
        elif not cosine >= worst:
            worst, worst_index = cosine, int(index)
    if not worst >= limit:
        raise AssertionError(
            f"embedding of mask {worst_index}: cosine {worst:.7f} to the golden, at least {limit} is needed"
        )
    if not worst_loose >= LOOSE_COSINE_LIMIT:
        raise AssertionError(
            f"an unstable mask's embedding has cosine {worst_loose:.4f}, at least {LOOSE_COSINE_LIMIT}"
        )
    return worst


def check_probabilities(
    golden: Golden, i: int, probabilities: np.ndarray, indices: np.ndarray, tolerance: float = 1e-3
) -> float:
    """Class probabilities (M, K) of the masks `indices` (M,) that vote, where the masks are stable."""
    expected, known = _expected_probabilities(golden, i, indices)
    stable = stable_regions(golden, i)[np.asarray(indices)] if f"valid_{i}" in golden else np.ones(len(indices), bool)
    keep = known & stable
    return check_close("class probabilities", np.asarray(probabilities)[keep], expected[keep], tolerance)


def flip_shift(golden: Golden, i: int, probabilities: np.ndarray, indices: np.ndarray) -> float:
    """How far unstable regions can have moved the difference of two class scores at a pixel.

    A score is a sum of class probability times mask (at most 1), so twice the largest per-class sum of the differences.
    """
    if f"valid_{i}" not in golden:
        return 0.0
    expected, known = _expected_probabilities(golden, i, indices)
    unstable = ~stable_regions(golden, i)[np.asarray(indices)]
    moved = np.where(known[:, None], np.abs(np.asarray(probabilities) - expected), np.asarray(probabilities))[unstable]
    return 2 * float(moved.sum(axis=0).max()) if moved.size else 0.0


def check_labels(golden: Golden, i: int, labels: np.ndarray, shift: float = 0.0, share: float = LABEL_SHARE) -> float:
    """Labels (H, W): the share that agrees where the golden margin exceeds 1e-4 plus `shift` (see flip_shift)."""
    expected, margin = golden[f"argmax_{i}"], golden[f"margin_{i}"].astype(np.float64)
    if labels.shape != expected.shape:
        raise AssertionError(f"labels: shape {labels.shape}, golden {expected.shape}")
    clear = margin > LABEL_MARGIN + shift
    wrong = labels != expected
    agreement = 1.0 - wrong[clear].mean() if clear.any() else 1.0
    if agreement < share:
        y, x = np.unravel_index(np.argmax(np.where(wrong, margin, -1.0)), margin.shape)
        raise AssertionError(
            f"labels: {100 * agreement:.4f} % of {clear.sum()} clear pixels agree, {100 * share:.2f} % are needed; "
            f"worst at ({y}, {x}): {labels[y, x]} instead of {expected[y, x]}, margin {margin[y, x]:.3g}; counting "
            f"above {_passing_margin(margin, wrong, share):.3g} (now {LABEL_MARGIN + shift:.3g}) would have passed"
        )
    return float(agreement)


def _passing_margin(margin: np.ndarray, wrong: np.ndarray, share: float) -> float:
    """The smallest margin above which enough pixels agree."""
    order = np.argsort(-margin, axis=None)
    errors = np.cumsum(wrong.ravel()[order])
    passing = errors <= (1 - share) * np.arange(1, len(order) + 1)
    # Margins repeat, so a limit lies between two different ones: take the last passing place, then its own margin.
    last = np.flatnonzero(passing)
    return float(margin.ravel()[order[last[-1] + 1 if last.size and last[-1] + 1 < len(order) else 0]])


def _valid_rows(golden: Golden, i: int) -> dict[int, int]:
    """Mask -> its row among the valid ones."""
    return {int(mask): row for row, mask in enumerate(np.flatnonzero(golden[f"valid_{i}"]))}


def _expected_probabilities(golden: Golden, i: int, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Golden rows (M, K) for the masks `indices`, and which of them the golden has."""
    stored = golden[f"class_prob_{i}"]
    rows = {n: n for n in range(len(stored))}
    if f"valid_{i}" in golden and len(stored) != len(golden[f"valid_{i}"]):
        rows = _valid_rows(golden, i)
    known = np.array([int(index) in rows for index in indices], bool)
    expected = np.zeros((len(indices), stored.shape[1]), stored.dtype)
    for place, index in enumerate(indices):
        if known[place]:
            expected[place] = stored[rows[int(index)]]
    return expected, known
