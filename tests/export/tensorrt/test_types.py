"""Our calls of TensorRT against its genuine bindings: types, names of parameters, and what happens without a GPU."""

import fcntl
import inspect
import json
import os
import re
import subprocess
import sys

import pytest

from tests.bundles import cache_folder
from tests.doubles import tensorrt as tensorrt_double
from tests.doubles import tensorrt_rtx as rtx_double
from tests.golden import REPOSITORY
from tests.package_tree import package_tree
from tests.tensorrt_stubs.generate import VERSIONS, Unavailable, get_bindings, get_lean

MODULES = (
    "runtime.bundle.plans",
    "runtime.engines.tensorrt.scratch",
    "runtime.engines.tensorrt.graph",
    "runtime.engines.tensorrt.context",
    "runtime.engines.tensorrt.jit",
    "runtime.engines.tensorrt.messages",
    "runtime.engines.tensorrt.package",
    "export.tensorrt.builder",
    "export.tensorrt.installer",
    "export.tensorrt.operators",
    "export.tensorrt.profiles",
    "export.tensorrt.monitor",
    "export.tensorrt.target",
)
STUBS = REPOSITORY / "tests" / "tensorrt_stubs"
BUILDER = "export/tensorrt/builder.py"
CONTEXT, ENGINE = "runtime/engines/tensorrt/context.py", "runtime/engines/tensorrt/graph.py"


def fetched(name, get, *arguments):
    """The genuine bindings that `get` fetches; skips where their wheel or a tool is not to be had."""
    folder = cache_folder() / "tensorrt-stubs"
    folder.mkdir(exist_ok=True)
    with open(folder / f"{name}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # processes of one test run share it
        try:
            return get(*arguments, folder)
        except Unavailable as reason:
            pytest.skip(str(reason))


@pytest.fixture(scope="module", params=list(VERSIONS))
def bindings(request):
    return fetched(request.param, get_bindings, request.param)


@pytest.fixture(scope="module")
def newest():
    return fetched("11.4", get_bindings, "11.4")


def mypy(bindings, *arguments):
    pytest.importorskip("mypy", reason="the types are checked by mypy")
    paths = [str(package_tree(bindings.folder / "package")), str(bindings.typings)]
    command = [sys.executable, "-m", "mypy", "--config-file", str(STUBS / "mypy.ini"), "--no-error-summary"]
    command += ["--cache-dir", str(bindings.folder / "mypy"), *arguments]
    environment = os.environ | {"MYPYPATH": os.pathsep.join(paths)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=REPOSITORY)


# Types


def test_our_calls_agree_with_the_genuine_signatures(bindings):
    modules = [option for name in MODULES for option in ("-m", f"vocabseg.{name}")]
    result = mypy(bindings, *modules)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_nothing_that_calls_tensorrt_is_left_out():
    users = [
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
        for folder in ("runtime", "export")
        for path in (REPOSITORY / folder).rglob("*.py")
        if re.search(r"\btrt\.|import tensorrt\b", path.read_text())
    ]
    assert set(users) <= set(MODULES)
    assert "export.tensorrt.builder" in users


def test_wrong_calls_are_caught(bindings):
    source = STUBS / "usage_bad.py"
    wanted = set()
    for number, line in enumerate(source.read_text().splitlines(), 1):
        marked = re.search(r"# ERROR ?(\d*)", line)
        if marked and (not marked[1] or bindings.major >= int(marked[1])):
            wanted.add(number)
    assert len(wanted) >= 16
    found = {int(number) for number in re.findall(r"usage_bad\.py:(\d+): error", mypy(bindings, str(source)).stdout)}
    assert found == wanted


@pytest.mark.parametrize(
    ("module", "right", "wrong"),
    [
        (BUILDER, "", ""),  # as it is: no error
        (BUILDER, "trt.BuilderFlag.TF32", "trt.BuilderFlag.FP15"),
        (BUILDER, "create_network(1 << int(", "create_network(1 << str("),
        (BUILDER, "parser.parse_from_file(str(graph))", "parser.parse_from_file(graph)"),
        (BUILDER, "serialized_network(network, config)", "serialized_network(config, network)"),
        (BUILDER, "if plan is None:", "if False:"),
        (CONTEXT, "", ""),
        (CONTEXT, "execute_async_v3(", "execute_async_v2("),
        (CONTEXT, "set_tensor_address(name, pointer)", "set_tensor_address(pointer, name)"),
        (CONTEXT, "get_device_memory_size_for_profile_v2(", "device_memory_size("),
        (CONTEXT, "if context is None:", "if False:"),
        (ENGINE, "", ""),
        (ENGINE, "tensor_profile_shape(name, index)", "tensor_profile_shape(index, name)"),
        (ENGINE, "if engine is None:", "if False:"),
    ],
)
def test_a_mistake_in_our_own_calls_is_caught(newest, tmp_path, module, right, wrong):
    text = (REPOSITORY / module).read_text()
    assert right in text
    changed = tmp_path / "changed.py"
    changed.write_text(text.replace(right, wrong) if right else text)
    result = mypy(newest, str(changed))
    assert (result.returncode, "changed.py" in result.stdout) == ((1, True) if right else (0, False)), result.stdout


# The double


def members(kind):
    """What the double offers of a class, by name: parameters of methods, None for the rest."""
    found = {}
    for name, member in vars(kind).items():
        if not name.startswith("_") and name != "Severity":
            found[name] = list(inspect.signature(member).parameters)[1:] if inspect.isfunction(member) else None
    return found


def genuine(bindings, names):
    """Class -> member -> docstring, out of the bindings in a process of their own."""
    program = f"import {bindings.name}_bindings as trt"
    program += """
import json, sys
classes = {name: getattr(trt, name) for name in sys.argv[1:]}
documentation = {name: {key: getattr(kind, key).__doc__ for key in dir(kind)} for name, kind in classes.items()}
print(json.dumps(documentation))
"""
    result = bindings.run("-c", program, *names)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def signatures(name, documentation):
    """Names of the parameters of each overload in a docstring of pybind11."""
    lines = re.findall(rf"^(?:\d+\. )?{name}\((.*)\) ->", documentation or "", flags=re.M)
    return [[part.split(":")[0] for part in re.split(r", (?=\w+: )", line)][1:] for line in lines]


def test_the_double_offers_nothing_that_tensorrt_does_not(bindings):
    modules = [tensorrt_double, *([rtx_double] if bindings.name == "tensorrt_rtx" else [])]
    doubles = {
        name: kind
        for module in modules
        for name, kind in vars(module).items()
        if isinstance(kind, type) and kind.__module__ == module.__name__
    }
    real = genuine(bindings, sorted(doubles))
    checked = 0
    for name, kind in doubles.items():
        for member, parameters in members(kind).items():
            assert member in real[name], f"{name}.{member}"
            if parameters is not None:
                overloads = signatures(member, real[name][member])
                assert parameters in overloads, f"{name}.{member}({parameters}) is none of {overloads}"
                checked += 1
    assert checked > (15 if bindings.name == "tensorrt_rtx" else 35)  # the double for RTX has what is not TensorRT's
    for name in {"Builder", "OnnxParser", "Runtime"} & doubles.keys():
        parameters = list(inspect.signature(doubles[name].__init__).parameters)[1:]
        assert parameters in signatures("__init__", real[name]["__init__"])


# The bindings themselves


def test_without_a_gpu_the_genuine_bindings_refuse_in_one_line(bindings, tmp_path):
    """Logger and progress monitor are accepted as they are; TensorRT's builder and runtime cannot be made."""
    program = f"import {bindings.name}_bindings as tensorrt, sys; sys.modules['{bindings.name}'] = tensorrt"
    program += """
import contextlib, pathlib
from vocabseg.export.tensorrt.builder import BuildOptions, build_plan, progress_monitor
from vocabseg.export.tensorrt.monitor import Monitor
from vocabseg.runtime.engines.tensorrt.graph import DTYPES, open_runtime
from vocabseg.runtime.engines.tensorrt.jit import check_validity
from vocabseg.runtime.engines.tensorrt.messages import make_logger
from vocabseg.runtime.engines.tensorrt.package import load_package
from vocabseg.export.tensorrt.target import PlanTarget
from vocabseg.runtime.errors import EngineError
package = load_package(tensorrt.__name__.removesuffix("_bindings").replace("_", "-"))
logger, messages = make_logger(package.trt)
logger.log(tensorrt.ILogger.Severity.ERROR, "as TensorRT\\ncalls it")
assert messages.reason() == "as TensorRT calls it"
monitor = progress_monitor(package.trt, Monitor("x", print))
monitor.phase_start("a", None, 2); assert monitor.step_complete("a", 0); monitor.phase_finish("a")
assert DTYPES.keys() <= set(tensorrt.DataType.__members__)
class Device:
    activate = contextlib.nullcontext
def use_runtime(runtime):
    if package.rtx:
        check_validity(runtime, package.rtx, messages, bytes(1000), "no plan", "the command")
for call in (
    lambda: package.rtx or build_plan(pathlib.Path(sys.argv[1]), [], BuildOptions(), PlanTarget(package, Device())),
    lambda: use_runtime(open_runtime(package, logger, messages)),
):
    try:
        call()
    except EngineError as error:
        print(error)
print(package.info)
"""
    graph = REPOSITORY / "src" / "vocabseg" / "demo" / "text_encoder.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(package_tree(tmp_path)), os.environ.get("PYTHONPATH", "")]))
        result = bindings.run("-c", program, str(graph))
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith(("Tens", "Package"))]
    engine, title = bindings.name.replace("_", "-"), "TensorRT" if bindings.name == "tensorrt" else "TensorRT for RTX"
    assert lines.pop().startswith(f"PackageInfo(engine='{engine}', kind='full', version='")
    if bindings.name == "tensorrt":
        assert lines.pop(0).startswith("TensorRT's builder does not start: ")
        assert lines.pop().startswith("TensorRT's runtime does not start: ")
    else:  # the runtime starts, and reads what a plan says of itself
        assert lines.pop().startswith(f"{title} cannot run no plan here (malformed engine): run `the command`")
    assert lines == []


def test_the_genuine_lean_runtime_is_not_touched_where_it_cannot_start(tmp_path):
    """Without a driver it logs an error and hands out a runtime all the same, whose first use crashes the process."""
    if os.path.exists("/dev/nvidia0"):
        pytest.skip("there is a GPU, on which the runtime starts")
    lean = fetched("lean", get_lean)
    program = """
from vocabseg.runtime.engines.tensorrt.graph import open_runtime
from vocabseg.runtime.engines.tensorrt.messages import make_logger
from vocabseg.runtime.engines.tensorrt.package import load_package
from vocabseg.runtime.errors import EngineError
package = load_package()
assert package.info.kind == "lean"
try:
    open_runtime(package, *make_logger(package.trt))
except EngineError as error:
    print(error)
"""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(package_tree(tmp_path)))
        result = lean.run("-c", program)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("TensorRT's runtime does not start: createInferRuntime")
    assert result.stdout.count("\n") == 1
