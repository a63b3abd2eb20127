"""Image files that keep those who read them busy."""

import pytest

from tests.attack.slow_images import HONEST, SLOW
from vocabseg.runtime.errors import ImageError
from vocabseg.runtime.images import load_image


@pytest.mark.parametrize("name", SLOW)
def test_small_files_that_take_long_are_refused(name: str) -> None:
    with pytest.raises(ImageError, match=r"tiny parts|scans|as text") as refused:
        load_image(SLOW[name]())
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", HONEST)
def test_honest_files_that_look_like_them_are_read(name: str) -> None:
    assert min(load_image(HONEST[name]()).shape[:2]) >= 8
