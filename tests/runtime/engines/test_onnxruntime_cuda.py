"""ONNX Runtime's CUDA engine, as far as it can be checked without a GPU: the same binding code on host memory."""

import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vocabseg.runtime.engines import onnxruntime_cuda as cuda
from vocabseg.runtime.engines import onnxruntime_session as bound_sessions
from vocabseg.runtime.engines.onnxruntime_cuda import check_assignments, open_session, provider_options
from vocabseg.runtime.engines.onnxruntime_session import BoundSession
from vocabseg.runtime.errors import DeviceMemoryError, EngineError

OPTIONS = Path(__file__).parents[2] / "data" / "onnxruntime_gpu_options.txt"


class HostArray:
    """What a DeviceArray is to the binding, in host memory."""

    def __init__(self, array):
        self.array = array
        self.shape, self.dtype, self.pointer = array.shape, array.dtype, array.ctypes.data


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """y = x @ w in FP16, and twice = x + x in float32, with a dynamic batch."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    weights = np.arange(12, dtype=np.float16).reshape(3, 4)
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("MatMul", ["x", "w"], ["y"]),
                helper.make_node("Cast", ["x"], ["x32"], to=TensorProto.FLOAT),
                helper.make_node("Add", ["x32", "x32"], ["twice"]),
            ],
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["batch", 3])],
            [
                helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["batch", 4]),
                helper.make_tensor_value_info("twice", TensorProto.FLOAT, ["batch", 3]),
            ],
            [onnx.numpy_helper.from_array(weights, "w")],
        ),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    path = tmp_path_factory.mktemp("graph") / "graph.onnx"
    onnx.save(model, path)
    return path


def open_on_cpu(path, **settings):
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    for name, value in settings.items():
        options.add_session_config_entry(name.replace("__", "."), value)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def arrays(batch):
    x = HostArray(np.zeros((batch, 3), np.float16))
    y, twice = HostArray(np.zeros((batch, 4), np.float16)), HostArray(np.zeros((batch, 3), np.float32))
    return {"x": x}, {"y": y, "twice": twice}


def test_results_appear_at_the_given_addresses(graph):
    session = BoundSession(open_on_cpu(graph), "cpu", 0, cuda_graphs=False)
    assert session.input_dtypes == {"x": np.float16}
    assert session.output_dtypes == {"y": np.float16, "twice": np.float32}
    weights = np.arange(12, dtype=np.float32).reshape(3, 4)
    generator = np.random.default_rng(0)
    for batch in (1, 5, 5, 1):  # new shapes, and shapes that were bound before
        inputs, outputs = arrays(batch)
        for _ in range(2):  # the same addresses with other contents
            x = generator.integers(-8, 8, (batch, 3)).astype(np.float16)
            inputs["x"].array[:] = x
            session.run(inputs, outputs)
            np.testing.assert_array_equal(outputs["y"].array, (x.astype(np.float32) @ weights).astype(np.float16))
            np.testing.assert_array_equal(outputs["twice"].array, 2 * x.astype(np.float32))


class FakeSession:
    """Keeps the options of each run; the members used here are those of InferenceSession (checked below)."""

    def __init__(self, path):
        self.real = open_on_cpu(path)
        self.ids = []

    def get_inputs(self):
        return self.real.get_inputs()

    def get_outputs(self):
        return self.real.get_outputs()

    def io_binding(self):
        return self.real.io_binding()

    def run_with_iobinding(self, binding, options):
        self.ids.append(options.get_run_config_entry("gpu_graph_id"))
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        self.real.run_with_iobinding(binding, options)


def test_a_graph_is_captured_for_shapes_and_addresses_that_come_again(graph, monkeypatch):
    monkeypatch.setattr(bound_sessions, "MOST_GRAPHS", 2)
    session = FakeSession(graph)
    bound = BoundSession(session, "cpu", 0, cuda_graphs=True)
    first, second, third = arrays(1), arrays(2), arrays(2)  # the third has the second's shapes at other addresses
    for given in (first, first, first, second, second, third, third, first):
        bound.run(*given)
    assert session.ids == ["-1", "1", "1", "-1", "2", "-1", "-1", "1"]


class Uncapturable(FakeSession):
    """Runs with these graphs fail."""

    failing = ()

    def run_with_iobinding(self, binding, options):
        super().run_with_iobinding(binding, options)
        if self.ids[-1] in self.failing:
            raise RuntimeError("CUDA error 901: operation failed due to a previous error during capture\nmore")


def test_a_failed_capture_costs_nothing_but_time_and_is_tried_again(graph):
    session = Uncapturable(graph)
    session.failing = ("1", "2")
    bound, given = BoundSession(session, "cpu", 0, cuda_graphs=True), arrays(2)
    given[0]["x"].array[:] = 1
    for _ in range(5):
        given[1]["twice"].array[:] = 0
        bound.run(*given)
        assert (given[1]["twice"].array == 2).all()
    assert session.ids == ["-1", "1", "-1", "2", "-1", "3", "3"]


def test_what_can_never_be_captured_runs_without_and_says_so_once(graph):
    session = Uncapturable(graph)
    session.failing = tuple(map(str, range(1, 9)))
    bound = BoundSession(session, "cpu", 0, cuda_graphs=True)
    given = arrays(2)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(7):
            bound.run(*given)
    assert session.ids == ["-1", "1", "-1", "2", "-1", "3", "-1", "-1", "-1", "-1"]
    assert [str(warning.message) for warning in told] == [
        "a graph runs without CUDA graphs, which is slower: "
        "CUDA error 901: operation failed due to a previous error during capture"
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda given: given[0].pop("x"), "the graph has the inputs x, but was given none"),
        (lambda given: given[1].pop("y"), "the graph has the outputs y, twice, but was given twice"),
        (lambda given: given[0].update(x=HostArray(np.zeros((1, 3), np.float32))), "float16, but float32 was given"),
        (lambda given: given[0].update(x=HostArray(np.zeros((1, 7), np.float16))), "cannot run on x (1, 7)"),
    ],
)
def test_what_does_not_fit_the_graph_is_told_in_one_line(graph, change, words):
    given = arrays(1)
    change(given)
    with pytest.raises(EngineError) as caught:
        BoundSession(open_on_cpu(graph), "cpu", 0, cuda_graphs=False).run(*given)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_full_memory_has_an_error_of_its_own():
    class Full(FakeSession):
        def run_with_iobinding(self, binding, options):
            raise RuntimeError("BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer\nmore")

    pytest.importorskip("onnxruntime")
    full = Full.__new__(Full)
    full.real = SimpleNamespace(get_inputs=list, get_outputs=list, io_binding=SimpleNamespace)
    full.ids = []
    with pytest.raises(DeviceMemoryError, match="smaller batches"):
        BoundSession(full, "cpu", 0, cuda_graphs=False).run({}, {})


def test_options_are_spelt_as_in_the_genuine_binaries():
    known = {}
    for line in OPTIONS.read_text().splitlines():
        if not line.startswith("#"):
            kind, name = line.split()
            known.setdefault(kind, set()).add(name)
    options = provider_options(3, 1234, cuda_graphs=True)
    assert options.keys() <= known["provider"]
    assert {value for value in options.values() if not value.isdigit()} <= known["value"]
    assert cuda.SESSION_OPTIONS.keys() | {cuda.ASSIGNMENTS} == known["session"]
    assert bound_sessions.RUN_OPTIONS.keys() | {bound_sessions.GRAPH_ID} == known["run"]
    assert (options["device_id"], options["user_compute_stream"], options["enable_cuda_graph"]) == ("3", "1234", "1")
    assert all(isinstance(value, str) for value in options.values())


def test_nothing_but_sizes_may_be_left_to_the_cpu(graph):
    session = open_on_cpu(graph, session__record_ep_graph_assignment_info="1")
    with pytest.raises(EngineError, match=r"would run MatMul of .* on the CPU"):
        check_assignments(graph, session.get_provider_graph_assignment_info())

    def part(provider, *operations):
        return SimpleNamespace(ep_name=provider, get_nodes=lambda: [SimpleNamespace(op_type=one) for one in operations])

    check_assignments(graph, [part(cuda.CUDA, "Conv", "MatMul"), part("CPUExecutionProvider", "Shape", "Concat")])


def test_without_a_gpu_provider_the_error_says_what_to_install(graph):
    onnxruntime = pytest.importorskip("onnxruntime")
    if cuda.CUDA in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has the CUDA provider")
    with pytest.raises(EngineError, match=r"pip install 'vocabseg\[gpu\]'"):
        open_session(graph, 0, 0, cuda_graphs=False)


def test_nothing_is_logged_for_what_is_raised(tmp_path, monkeypatch, capfd):
    """A session of the CPU's provider, opened as those for CUDA are, and a run that fails inside of it."""
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    float32 = TensorProto.FLOAT
    values = [helper.make_tensor_value_info(name, float32, [size]) for name, size in zip("abc", "nmk", strict=True)]
    node = helper.make_node("Add", ["a", "b"], ["c"])
    model = helper.make_model(
        helper.make_graph([node], "graph", values[:2], values[2:]),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    onnx.save(model, tmp_path / "add.onnx")
    levels = []
    monkeypatch.setattr(onnxruntime, "set_default_logger_severity", levels.append)
    monkeypatch.setattr(cuda, "CUDA", "CPUExecutionProvider")
    monkeypatch.setattr(cuda, "check_provider", lambda: None)
    session = BoundSession(open_session(tmp_path / "add.onnx", 0, 0, False), "cpu", 0, cuda_graphs=False)
    arrays = {name: HostArray(np.zeros(size, np.float32)) for name, size in (("a", 2), ("b", 3), ("c", 3))}
    with pytest.raises(EngineError, match=r"cannot run on a \(2,\), b \(3,\)"):
        session.run({name: arrays[name] for name in "ab"}, {"c": arrays["c"]})
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(EngineError, match="cannot open"):
        open_session(tmp_path / "broken.onnx", 0, 0, False)
    assert capfd.readouterr().err == ""
    assert levels == [cuda.ERRORS] * 2
