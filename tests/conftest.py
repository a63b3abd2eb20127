"""Settings of all tests: none of them may touch the cache of the user who runs them."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.gpu import fail_instead_of_skipping

# Checks of main must not depend on chance: there, hypothesis draws the same examples every time.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    fail_instead_of_skipping(report, item)
    return report


@pytest.fixture(autouse=True, scope="session")
def no_cache_before_a_test_has_its_own() -> Iterator[None]:
    """Fixtures that live longer than a test are made before the next one sets the folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VOCABSEG_CACHE_DIR", "")
        yield


@pytest.fixture(autouse=True, scope="session")
def a_gpu_is_used_only_by_tests_that_say_so() -> Iterator[None]:
    """With device "auto", tests run on the CPU on every machine."""
    from vocabseg.runtime.engines import choose

    with pytest.MonkeyPatch.context() as patch:
        hidden = lambda: False  # noqa: E731
        hidden.found = choose.gpu_present  # for the test of it
        patch.setattr(choose, "gpu_present", hidden)
        yield


@pytest.fixture(autouse=True, scope="session")
def networks_run_on_the_cpu_over_the_fake_driver() -> Iterator[None]:
    """In a process over the fake driver (see CONTRIBUTING.md), which emulates no kernels of ONNX Runtime."""
    with pytest.MonkeyPatch.context() as patch:
        if os.environ.get("FAKE_DRIVER_KERNELS"):
            from tests.cuda_emulation import stand_ins
            from vocabseg.runtime.engines import device_engines, onnxruntime_cuda

            patch.setattr(onnxruntime_cuda, "check_provider", lambda: None)
            patch.setattr(device_engines, "open_graph", stand_ins.graphs())
        yield


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOCABSEG_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
