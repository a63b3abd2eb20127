"""The emulated PyCUDA and cuda.bindings have the genuine names and parameters, and the runtime uses no others."""

import ast
import inspect
import re
import sys
import tomllib
from importlib.util import find_spec

import pytest

from tests.cuda_emulation import fake_pycuda
from tests.golden import REPOSITORY

API = tomllib.loads((REPOSITORY / "tests" / "cuda_emulation" / "pycuda_api.toml").read_text())
RUNTIME = sorted((REPOSITORY / "runtime" / "cuda").glob("*.py"))


def parameters(function):
    return [name for name in inspect.signature(function).parameters if name not in ("self", "kwargs")]


def test_functions_are_those_of_pycuda():
    for name, wanted in API["functions"].items():
        assert parameters(getattr(fake_pycuda, name)) == wanted, name


@pytest.mark.parametrize("name", list(API["classes"]))
def test_classes_are_those_of_pycuda(name):
    kind = getattr(fake_pycuda, name)
    for method, wanted in API["classes"][name].items():
        assert parameters(getattr(kind, method)) == wanted, (name, method)


def test_errors_are_those_of_pycuda():
    for name in ("MemoryError", "LogicError", "LaunchError", "RuntimeError"):
        kind = getattr(fake_pycuda, name)
        assert kind.__mro__[1:3] == (fake_pycuda.Error, Exception)  # and none is Python's own of that name


def test_the_runtime_calls_nothing_of_pycuda_that_is_not_listed():
    known = {*API["functions"], *API["classes"], "Error", "MemoryError", "function_attribute", "driver"}
    assert RUNTIME
    for path in RUNTIME:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in (
                "driver", "self.driver", "device.driver", "self.device.driver", "pycuda.driver",
            ):  # fmt: skip
                assert node.attr in known or node.attr.startswith("cu") or node.attr == "CUstreamCaptureMode", node.attr


@pytest.mark.skipif(find_spec("cuda") is None, reason="the package cuda-bindings is not installed")
def test_graph_functions_are_those_of_cuda_bindings():
    driver = pytest.importorskip("cuda.bindings.driver", reason="the package cuda-bindings is not installed")
    names = [name for name in vars(fake_pycuda) if re.fullmatch(r"cu[A-Z]\w+", name) and name[2:3].isupper()]
    assert len(names) == 6
    for name in names:
        first = getattr(driver, name).__doc__.splitlines()[0]
        genuine = [part.split(":")[0].split()[-1] for part in re.search(r"\((.*)\)", first)[1].split(",")]
        assert parameters(getattr(fake_pycuda, name)) == genuine, name
    mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    assert int(mode) == int(fake_pycuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
    for member in fake_pycuda.CUresult:
        assert int(getattr(driver.CUresult, member.name)) == int(member)


@pytest.mark.gpu
def test_the_genuine_pycuda_has_it_all():
    driver = pytest.importorskip("pycuda.driver", reason="PyCUDA is not installed", exc_type=ImportError)
    assert "pycuda" in sys.modules
    for name in API["functions"]:
        assert callable(getattr(driver, name))
    for name, methods in API["classes"].items():
        for method in methods:
            assert hasattr(getattr(driver, name), method), (name, method)
    for name, properties in API["properties"].items():
        for each in properties:
            assert hasattr(getattr(driver, name), each), (name, each)
