"""The device layer on an emulated GPU: memory, streams, events, graphs, foreign arrays, and its errors' texts."""

import gc
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum
from functools import partial

import numpy as np
import pytest

from tests.cuda_emulation.library import HERE, Emulation
from tests.fake_driver.machine import FATBIN, Machine, installed
from tests.golden import REPOSITORY
from vocabseg.runtime.cuda import dlpack
from vocabseg.runtime.cuda.arrays import DeviceArray
from vocabseg.runtime.cuda.device import open_device, parse_device
from vocabseg.runtime.cuda.driver import checked
from vocabseg.runtime.cuda.kernel import pack_arguments
from vocabseg.runtime.errors import DeviceMemoryError, EngineError

FAULTY = HERE / "faulty.cu"


@pytest.fixture
def machine():
    return Machine(2**22)


@pytest.fixture
def device(machine):
    with installed(machine):
        yield open_device(0)


def test_a_device_describes_itself(device):
    assert device.key == "nvidia-emulated-100-sm90"
    assert device.compute_capability == (9, 0)
    assert open_device(0) is device


@pytest.mark.parametrize(("text", "ordinal"), [("cuda", 0), ("cuda:0", 0), ("cuda:12", 12)])
def test_device_names(text, ordinal):
    assert parse_device(text) == ordinal


@pytest.mark.parametrize("text", ["gpu", "cuda:", "cuda:-1", "cuda:x", "CUDA"])
def test_names_that_are_no_device(text):
    with pytest.raises(EngineError, match=text):
        parse_device(text)


def test_copies_happen_in_order_and_only_when_waited_for(device):
    stream = device.stream()
    source, target = device.pinned((5, 3), np.float32), device.pinned((5, 3), np.float32)
    source[:] = np.arange(15).reshape(5, 3)
    first, second = device.empty((5, 3), np.float32), device.empty((5, 3), np.float32)
    stream.upload(first, source)
    stream.copy(second, first)
    stream.download(target, second)
    event = stream.record()
    assert not event.query()
    assert np.isnan(target).all()
    event.synchronize()
    np.testing.assert_array_equal(target, source)
    np.testing.assert_array_equal(second[1:3].to_host(), source[1:3])
    np.testing.assert_array_equal(second.reshape(3, 5).to_host(stream), source.reshape(3, 5))


@pytest.mark.parametrize("waits", [True, False])
def test_a_stream_that_does_not_wait_reads_what_is_not_there(device, waits):
    first, second = device.stream(), device.stream()
    array, target = device.empty((4,), np.int32), np.empty(4, np.int32)
    first.fill(array, 1)
    if waits:
        second.wait(first.record())
    second.download(target, array)
    second.synchronize()
    assert (target == (0x01010101 if waits else -1)).all()


def test_a_seed_interleaves_streams():
    seen = set()
    for seed in range(8):
        with installed(Machine(seed=seed)):
            device = open_device(0)
            streams, array, target = (
                [device.stream() for _ in range(2)],
                device.empty((1,), np.int32),
                np.empty(1, "i4"),
            )
            for byte, stream in enumerate(streams):
                stream.fill(array, byte)
            for stream in streams:
                stream.synchronize()
            streams[0].download(target, array)
            streams[0].synchronize()
            seen.add(int(target[0]))
    assert seen == {0, 0x01010101}


def test_graphs_repeat_what_was_captured(device):
    stream = device.stream()
    source, array = device.empty((3,), np.uint8), device.empty((3,), np.uint8)
    stream.fill(source, 7)
    graph = stream.capture(lambda: stream.copy(array, source))
    stream.fill(array, 0)
    np.testing.assert_array_equal(array.to_host(stream), [0, 0, 0])  # capturing ran nothing
    graph.launch(stream)
    np.testing.assert_array_equal(array.to_host(stream), [7, 7, 7])
    stream.fill(source, 9)
    graph.launch(stream)
    np.testing.assert_array_equal(array.to_host(stream), [9, 9, 9])
    graph.close()


def test_work_that_cannot_be_captured_leaves_the_stream_usable(device):
    stream = device.stream()

    def work():
        raise EngineError("not now")

    assert stream.capture(work) is None
    array = device.empty((3,), np.uint8)
    stream.fill(array, 5)
    np.testing.assert_array_equal(array.to_host(stream), [5, 5, 5])


def test_a_capture_that_does_what_no_graph_can_do_gives_none(device):
    stream = device.stream()
    reached = stream.record()
    assert stream.capture(reached.query) is None
    assert reached.query()


@pytest.mark.parametrize("call", ["query", "wait", "stream", "device", "memory"])
def test_a_library_that_captures_globally_is_not_disturbed_by_other_threads(device, call):
    """As ONNX Runtime captures, in a thread that holds the lock, while another thread waits for a result."""
    capturing, stream = device.stream(), device.stream()
    event = stream.record()
    calls = {
        "query": event.query, "wait": event.synchronize, "stream": stream.synchronize, "device": device.synchronize,
        "memory": partial(device.empty, (3000,), np.float32),
    }  # fmt: skip
    from cuda.bindings import driver

    everywhere = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL
    with ThreadPoolExecutor(1) as other, device.activate():
        assert driver.cuStreamBeginCapture(capturing.handle, everywhere) == (0,)
        other.submit(calls[call]).result()
        status, _ = driver.cuStreamEndCapture(capturing.handle)
    assert int(status) == 0


def test_without_bindings_nothing_is_captured_and_that_is_told(device):
    with pytest.MonkeyPatch.context() as patch:  # undone before the emulation ends, so that it does not stay
        patch.setitem(sys.modules, "cuda.bindings", None)
        with pytest.warns(RuntimeWarning, match="cuda-bindings"):
            assert device.stream().capture(lambda: None) is None


def test_memory_returns_to_the_pool(device):
    pointer = device.empty((1000,), np.float32).pointer
    before = device.memory()["managed"]
    for _ in range(100):
        assert device.empty((1000,), np.float32).pointer == pointer
    assert device.memory()["managed"] == before
    array = device.empty((1000,), np.float32)
    part = array[10:20]
    del array
    assert device.empty((1000,), np.float32).pointer != pointer  # a part keeps the whole
    assert part.pointer == pointer + 40
    device.free_held()


def test_an_array_without_elements_takes_no_copy(device):
    stream, array = device.stream(), device.empty((0, 4), np.float32)
    stream.upload(array, np.empty((0, 4), np.float32))
    assert array.to_host().shape == (0, 4)
    assert device.pinned((0, 2), np.int32).shape == (0, 2)


def test_out_of_memory_says_how_much(device):
    with pytest.raises(DeviceMemoryError, match=r"8\.4 MB were needed, 4\.2 MB of 4\.2 MB are free"):
        device.empty((2**21,), np.float32)


def test_wrong_sizes_are_refused(device):
    stream, array = device.stream(), device.empty((4,), np.float32)
    with pytest.raises(ValueError, match="20 bytes do not fit an array of 16"):
        stream.upload(array, np.zeros(5, np.float32))
    with pytest.raises(ValueError, match="contiguous"):
        stream.upload(array, np.zeros(8, np.float32)[::2])


def test_arguments_are_aligned_as_c_aligns_them(device):
    pair = np.zeros((), np.dtype([("pointer", "u8"), ("count", "i4")], align=True))[()]
    array = device.empty((1,), np.float32)
    data = pack_arguments([np.int32(1), pair, np.float32(2), array, np.uint8(3), None, np.int16(4)])
    assert len(data) == 58
    assert data[8 : 8 + 16] == pair.tobytes()
    assert np.frombuffer(data[24:28], np.float32)[0] == 2
    assert int.from_bytes(data[32:40], "little") == array.pointer
    assert int.from_bytes(data[48:56], "little") == 0
    with pytest.raises(TypeError, match="argument 1 is a int"):
        pack_arguments([np.int32(1), 5])


def test_launching(machine):
    kernels = Emulation(source=FAULTY)
    with installed(machine, kernels):
        device = open_device(0)
        module, stream = device.load_module(FATBIN), device.stream()
        given, out = device.empty((4, 8), np.int32), device.empty((4, 8), np.int32)
        stream.fill(out, 0)
        stream.upload(given, np.arange(32, dtype=np.int32))
        launched = [given, out, np.int32(1)]
        module.function("neighbours")((1,), (8, 4), launched, stream, 100_000)
        stream.synchronize()
        for refused in [((1, 65536), (8,), 0), ((1,), (2048,), 0), ((1,), (8,), 250_000)]:
            with pytest.raises(EngineError, match="invalid argument"):
                module.function("neighbours")(*refused[:2], launched, stream, refused[2])
        with pytest.raises(EngineError, match="named symbol not found"):
            module.function("neighbors")
        np.testing.assert_array_equal(out.to_host(stream)[0], [1, 2, 3, 4, 5, 6, 7, 0])


class Foreign:
    """Another library's array."""

    def __init__(self, array, **changes):
        self.__cuda_array_interface__ = {**array.__cuda_array_interface__, **changes}


def test_foreign_arrays_are_taken_without_a_copy(device):
    own = device.empty((4, 5), np.float16)
    own_stream = device.stream()
    own_stream.fill(own, 0)
    own_stream.synchronize()
    taken = DeviceArray.of(Foreign(own), device)
    assert (taken.pointer, taken.shape, taken.dtype) == (own.pointer, (4, 5), np.float16)
    assert DeviceArray.of(Foreign(own, strides=(10, 2)), device).shape == (4, 5)
    with pytest.raises(EngineError, match="not C-contiguous"):
        DeviceArray.of(Foreign(own, strides=(2, 8)), device)
    with pytest.raises(EngineError, match="not an array on a GPU"):
        DeviceArray.of(np.zeros(3), device) if not hasattr(np.zeros(3), "__dlpack__") else DeviceArray.of(3, device)


def test_a_foreign_stream_is_waited_for(device):
    array, stream = device.empty((4,), np.uint8), device.stream()
    stream.fill(array, 3)
    taken = DeviceArray.of(Foreign(array, stream=stream.handle), device)
    target, other = np.zeros(4, np.uint8), device.stream()
    other.download(target, taken)
    other.synchronize()
    np.testing.assert_array_equal(target, [3] * 4)


class Capsule:
    """A library that offers DLPack alone."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, stream=None):
        return self.array.__dlpack__(stream=stream)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_dlpack_there_and_back(device):
    array = device.empty((2, 3), np.int32)
    taken = DeviceArray.of(Capsule(array), device)
    assert (taken.pointer, taken.shape, taken.dtype) == (array.pointer, (2, 3), np.int32)
    pointer = array.pointer
    del array
    assert device.empty((2, 3), np.int32).pointer != pointer  # the capsule keeps the memory
    del taken
    assert not dlpack._given
    assert device.empty((2, 3), np.int32).pointer == pointer


def test_a_capsule_that_nobody_takes_frees_its_memory(device):
    capsule = device.empty((2, 3), np.int32).__dlpack__()
    assert len(dlpack._given) == 1
    del capsule
    assert not dlpack._given


def test_capsules_are_those_of_numpy():
    """The structure is NumPy's: what we give it reads, what it gives we read."""
    source = np.arange(12, dtype=np.float32).reshape(3, 4)

    class Ours:
        def __dlpack__(self, **_):
            return dlpack.give(source.ctypes.data, source.shape, source.dtype, dlpack.CPU, 0, source)

        def __dlpack_device__(self):
            return dlpack.CPU, 0

    np.testing.assert_array_equal(np.from_dlpack(Ours()), source)
    assert not dlpack._given
    shape, dtype, pointer, owner = dlpack.take(source.__dlpack__())
    assert (shape, dtype, pointer) == ((3, 4), np.float32, source.ctypes.data)
    del owner
    with pytest.raises(EngineError, match="not C-contiguous"):
        dlpack.take(source.T.__dlpack__())


def test_arrays_elsewhere_are_refused(device):
    with pytest.raises(EngineError, match="not on a GPU"):
        DeviceArray.of(np.zeros(3), device)
    assert not DeviceArray.offered_by(np.zeros(3))

    class Elsewhere(Capsule):
        def __dlpack_device__(self):
            return dlpack.CUDA, 1

    with pytest.raises(EngineError, match="on cuda:1, but the model on cuda:0"):
        DeviceArray.of(Elsewhere(device.empty((1,), np.uint8)), device)


@pytest.mark.parametrize(
    ("kind", "text", "broken"),
    [
        ("LogicError", "cuStreamSynchronize failed: an illegal memory access was encountered", True),
        ("LogicError", "cuStreamSynchronize failed: misaligned address", True),
        ("LogicError", "cuEventQuery failed: operation not supported on global/shared address space", True),
        ("LaunchError", "cuStreamSynchronize failed: unspecified launch failure", True),
        ("LogicError", "cuStreamSynchronize failed: invalid argument", False),
        ("LaunchError", "cuLaunchKernel failed: too many resources requested for launch", False),
    ],
)
def test_errors_after_which_nothing_runs_say_so(machine, kind, text, broken):
    with installed(machine):
        import pycuda.driver

        def call():
            raise getattr(pycuda.driver, kind)(text)

        with pytest.raises(EngineError) as caught:
            checked(call)
    assert text in str(caught.value)
    assert ("nothing can run on this GPU in this process any more" in str(caught.value)) == broken


@pytest.mark.parametrize(
    ("number", "name", "kind", "words"),
    [
        (2, "CUDA_ERROR_OUT_OF_MEMORY", DeviceMemoryError, "use smaller images"),
        (700, "CUDA_ERROR_ILLEGAL_ADDRESS", EngineError, "nothing can run on this GPU"),
        (719, "CUDA_ERROR_LAUNCH_FAILED", EngineError, "nothing can run on this GPU"),
        (1, "CUDA_ERROR_INVALID_VALUE", EngineError, "cuGraphLaunch failed: CUDA_ERROR_INVALID_VALUE"),
    ],
)
def test_errors_of_graphs_say_the_same(device, monkeypatch, number, name, kind, words):
    def cuGraphLaunch(*_):
        return (IntEnum("Result", {name: number})(number),)

    stream = device.stream()
    graph = stream.capture(lambda: None)
    monkeypatch.setattr(graph._driver, "cuGraphLaunch", cuGraphLaunch)
    with pytest.raises(kind, match=words) as caught:
        graph.launch(stream)
    assert name in str(caught.value)
    assert ("nothing can run" in str(caught.value)) == (number >= 700)


def test_everything_is_freed_in_the_context(machine):
    """The emulation fails this test where PyCUDA would abort the process, or warn."""
    with installed(machine):
        device = open_device(0)
        stream, array = device.stream(), device.empty((4,), np.float32)
        things = [stream, array, device.pinned((4,), np.float32), stream.record(), device.load_module(FATBIN)]
        things += [things[2][1:], array[1:], stream.capture(partial(stream.fill, array, 0))]
        del stream, array
        while things:
            things.pop(0)
        gc.collect()
        assert device.memory()["active"] == 0


def test_what_is_freed_outside_of_the_context_is_noticed():
    """In a process of its own, as PyCUDA ends it."""
    source = """
from tests.fake_driver.machine import installed
from vocabseg.runtime.cuda.device import open_device
with installed():
    device = open_device(0)
    with device.activate():
        raw = device._pool.allocate(1000)
    del raw
print("nothing happened")
"""
    run = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert run.returncode == -signal.SIGABRT, run.stdout + run.stderr
    assert "invalid device context" in run.stderr


def write_freed(driver, stream, machine):
    memory = driver.mem_alloc(1000)
    view = machine.bytes(int(memory), 1000)
    memory.free()
    view[3] = 1


def free_early(driver, stream, machine):
    memory = driver.mem_alloc(1000)
    driver.memset_d8_async(int(memory), 1, 1000, stream.raw)
    memory.free()
    with pytest.raises(driver.LogicError, match="illegal memory access"):
        stream.raw.synchronize()
    with pytest.raises(driver.LogicError, match="illegal memory access"):
        driver.mem_get_info()  # nor anything else


def use_the_default_stream(driver, stream, machine):
    memory = driver.mem_alloc(1000)
    with pytest.raises(driver.LogicError, match="invalid resource handle"):
        driver.memset_d8_async(int(memory), 1, 1000)


@pytest.mark.parametrize(
    ("careless", "fault"),
    [
        (write_freed, "memory was written after it was freed"),
        (free_early, "freed before its turn came"),
        (use_the_default_stream, "cuMemsetD8Async on the default stream"),
    ],
)
def test_what_no_correct_program_does_fails_its_test(machine, careless, fault):
    def run():
        with installed(machine):
            device = open_device(0)
            with device.activate():
                careless(device.driver, device.stream(), machine)

    with pytest.raises(AssertionError, match=fault):
        run()


def test_copies_out_of_bounds_are_refused(device):
    array, stream = device.empty((300,), np.uint8), device.stream()
    beyond = DeviceArray(device, (400,), np.uint8, array.pointer, array.owner)
    for copy in (stream.upload, lambda target, source: stream.download(source, target)):
        with pytest.raises(EngineError, match="invalid argument"):
            copy(beyond, np.zeros(400, np.uint8))
    with pytest.raises(EngineError, match="invalid argument"):
        stream.copy(beyond, device.empty((400,), np.uint8))


def test_the_end_of_the_process_is_silent_whatever_is_still_held(machine, monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda event: told.append(str(event.exc_value)))
    with installed(machine):
        device = open_device(0)
        stream, array = device.stream(), device.empty((4,), np.float32)
        things = [array, device.pinned((4,), np.float32), stream.record(), device.load_module(FATBIN)]
        things += [stream, stream.capture(partial(stream.fill, array, 0)), DeviceArray.of(Capsule(array), device)]
        device.close()
        with pytest.raises(EngineError, match="was closed, as the process is ending"):
            stream.synchronize()
        del stream, array, things
        gc.collect()
    assert not told


# What is told when there is no GPU to be had


def test_no_pycuda(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with pytest.raises(EngineError, match="pip install"):
        open_device(0)


def test_no_driver(monkeypatch, tmp_path):
    folder = tmp_path / "pycuda"
    folder.mkdir()
    (folder / "__init__.py").touch()
    text = "libcuda.so.1: cannot open shared object file: No such file or directory"
    (folder / "driver.py").write_text(f"raise ImportError({text!r})")
    for name in ("pycuda", "pycuda.driver"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(EngineError, match="no NVIDIA driver"):
        open_device(0)
    for name in ("pycuda", "pycuda.driver"):
        sys.modules.pop(name, None)


def test_no_device(machine):
    machine.init_error = 100
    with installed(machine), pytest.raises(EngineError, match="no CUDA-capable device is detected"):
        open_device(0)


def test_no_such_ordinal(machine):
    machine.devices = 2
    with installed(machine), pytest.raises(EngineError, match="no GPU cuda:2: this process sees 2"):
        open_device(2)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (209, r"capability 9\.0\).*VOCABSEG_SM=90"),
        (222, r"too old.*CUDA 12\.4"),
        (200, "too old"),
        (1, "CUDA LogicError: cuModuleLoadDataEx failed: invalid argument"),
    ],
)
def test_kernels_that_do_not_fit(machine, error, told):
    machine.module_error, machine.driver_version = error, 12040
    with installed(machine):
        device = open_device(0)
        with pytest.raises(EngineError, match=told) as caught:
            device.load_module(FATBIN)
        assert "\n" not in str(caught.value)
