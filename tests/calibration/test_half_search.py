"""FP16 repair on graphs in which a plain conversion fails in one known place."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.calibration import planted
from vocabseg.calibration.observe.statistics import Statistics
from vocabseg.calibration.observe.tensor_observer import TensorObserver, float_tensors
from vocabseg.calibration.search.fidelity import Comparator
from vocabseg.calibration.search.half_search import HalfSearch, passes
from vocabseg.export.half.recipe import GraphRecipe, Recipe, read_recipe, write_recipe

Maker = Callable[[Path], Path]


def search(path: Path, rank: int, ranges: bool = True) -> HalfSearch:
    statistics: dict[str, Statistics] = {}
    if ranges:
        TensorObserver(path, ["x", *float_tensors(path)]).observe(planted.feeds(rank, 8, seed=1), statistics)
    comparator = Comparator(path, planted.feeds(rank, 3, seed=2))
    return HalfSearch(
        "planted", path, statistics, comparator, Recipe(graphs={"planted": GraphRecipe()}), lambda *_: None
    )


CASES = {
    "an activation of 1e5": (planted.large_activation, 2, "large"),
    "a variance beyond 65504": (lambda path: planted.layer_norm(path, 1000.0), 2, "squares"),
    "a variance that vanishes": (lambda path: planted.layer_norm(path, 1e-4), 2, "variance"),
    "attention scores that vanish": (planted.tiny_scores, 3, "scores"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("ranges", [True, False], ids=["with ranges", "by bisection alone"])
def test_repair(case: str, ranges: bool, tmp_path: Path) -> None:
    make, rank, culprit = CASES[case]
    found = search(make(tmp_path / "planted.onnx"), rank, ranges)
    plain = found.fidelity({})
    assert not passes(plain), f"a plain conversion does well: {plain}"
    recipe = found.repair()
    assert passes(found.fidelity(found.kept))
    if ranges:
        assert any(keep.node == f"make_{culprit}" for keep in recipe.keep), recipe.keep
    total = len(float_tensors(found.path))
    assert 0 < len(recipe.keep) < total
    assert all(keep.reason for keep in recipe.keep)


def test_a_good_graph_keeps_nothing(tmp_path: Path) -> None:
    found = search(planted.layer_norm(tmp_path / "planted.onnx", 1.0, epsilon=1e-3), 2)
    assert passes(found.fidelity({}))
    assert found.repair().keep == []


def test_the_recipe_survives_a_file(tmp_path: Path) -> None:
    found = search(planted.large_activation(tmp_path / "planted.onnx"), 2)
    recipe = Recipe(graphs={"planted": found.repair()})
    write_recipe(recipe, tmp_path / "recipe.toml")
    assert read_recipe(tmp_path / "recipe.toml") == recipe
    assert "65504" in (tmp_path / "recipe.toml").read_text()
