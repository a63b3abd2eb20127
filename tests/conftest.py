"""Settings of all tests: none of them may touch the cache of the user who runs them."""

import pytest


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOCABSEG_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
