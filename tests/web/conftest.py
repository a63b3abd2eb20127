"""The page over the demo model and small scenes; how often the networks looked for regions is counted."""

from collections.abc import Iterator

import pytest

from vocabseg.benchmarks.scenes.world import CLASSES, render_scene
from vocabseg.runtime.segmenter.segmenter import Segmenter
from vocabseg.web.models import Models, find_bundles
from vocabseg.web.site import Example, Site


@pytest.fixture(scope="session")
def models() -> Models:
    return Models(find_bundles(None)[0], "cpu")


@pytest.fixture(scope="session")
def examples() -> list[Example]:
    found = []
    for number in (20, 13):
        scene = render_scene(0, "test", number, (120, 160))
        names = dict.fromkeys(CLASSES[segment.class_index] for segment in scene.segments)
        found.append(Example(f"scene-{number}.png", scene.image, ", ".join(names)))
    return found


@pytest.fixture
def site(models: Models, examples: list[Example]) -> Site:
    return Site(models, examples, lambda bundle, vocabulary: "unknown to it" if "cat" in vocabulary.names else "")


@pytest.fixture
def searches() -> Iterator[list[tuple[int, ...]]]:
    """The sizes of the pictures in which regions were looked for."""
    seen: list[tuple[int, ...]] = []
    genuine = Segmenter.propose
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Segmenter, "propose", lambda self, image: seen.append(image.shape[:2]) or genuine(self, image))
        yield seen
