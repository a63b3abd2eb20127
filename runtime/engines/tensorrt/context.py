"""One TensorRT execution context: one stream, profile and set of shapes, and the CUDA graphs captured from it."""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from vocabseg.runtime.cuda.streams import CAPTURE_ATTEMPTS, Graph, Stream
from vocabseg.runtime.engines.tensorrt.messages import Messages
from vocabseg.runtime.engines.tensorrt.scratch import Block
from vocabseg.runtime.errors import DeviceMemoryError, EngineError

if TYPE_CHECKING:
    import tensorrt

Shape = tuple[int, ...]
Shapes = dict[str, Shape]
# Tensor name -> address, as a key.
Addresses = tuple[tuple[str, int], ...]

# A pipeline that keeps two sets of buffers in flight needs two.
GRAPHS_KEPT = 8
ADDRESSES_REMEMBERED = 64


class _NotCapturable(Exception):
    """TensorRT's work could not be captured as a CUDA graph; the text says why, as far as it is known."""


class ShapedContext:
    """A context whose stream and shapes never change, so that what was captured from it stays valid.

    Scratch memory is the caller's; `need` says how many bytes. `make` makes a context of the engine whose memory is
    managed so. Raises EngineError where TensorRT refuses the shapes, and DeviceMemoryError (which is one) where its own
    memory runs out.
    """

    def __init__(
        self,
        name: str,
        engine: "tensorrt.ICudaEngine",
        make: "Callable[[], tensorrt.IExecutionContext | None]",
        profile: int,
        shapes: Mapping[str, Shape],
        outputs: list[str],
        stream: Stream,
        messages: Messages,
    ):
        self._what = f"{name} on {', '.join(f'{key} {shape}' for key, shape in shapes.items())}"
        self._name, self._messages, self._stream = name, messages, stream
        messages.clear()
        context = make()
        if context is None:
            raise self._error("cannot make an execution context of")
        self._context = context
        ready = context.set_optimization_profile_async(profile, stream.handle)
        for key, shape in shapes.items():
            ready = ready and context.set_input_shape(key, shape)
        missing = context.infer_shapes() if ready else []
        if not ready or missing:
            raise self._error("cannot take the shapes of")
        self.outputs: Shapes = {key: tuple(context.get_tensor_shape(key)) for key in outputs}
        # 0 where it cannot say; without the runtime resizing of activations it is the profile's largest need.
        self.need: int = context.update_device_memory_size_for_shapes()
        self.need = self.need or engine.get_device_memory_size_for_profile_v2(profile)
        self._warm = False
        self._graphs: OrderedDict[Addresses, Graph] = OrderedDict()
        self._seen: OrderedDict[Addresses, None] = OrderedDict()
        self._generation = -1
        self._failed_captures = 0  # in a row

    def run(self, addresses: Addresses, scratch: Block) -> bool:
        """Enqueue one execution; `scratch` has the bytes that it needs. Returns whether it was the first.

        The first one goes out as it is and is waited for, which settles what TensorRT initialises late. Addresses that
        come for the second time are captured and replayed from then on; where that fails, this execution goes out as it
        is, and the next one tries again, up to CAPTURE_ATTEMPTS times. Raises EngineError when TensorRT cannot run.
        """
        if self._generation != scratch.generation:
            self._graphs.clear()
            self._seen.clear()
            self._generation = scratch.generation
        graph = self._graphs.get(addresses)
        if graph is None and self._warm and addresses in self._seen and self._failed_captures < CAPTURE_ATTEMPTS:
            graph = self._captured(addresses, scratch)
        if graph is not None:
            self._graphs.move_to_end(addresses)
            graph.launch(self._stream)
            return False
        self._bind(addresses, scratch)
        if not self._context.execute_async_v3(self._stream.handle):
            raise self._error("cannot run")
        self._seen[addresses] = None
        if len(self._seen) > ADDRESSES_REMEMBERED:
            self._seen.popitem(last=False)
        first, self._warm = not self._warm, True
        if first:
            self._stream.synchronize()
        return first

    def close(self) -> None:
        """Wait for what was enqueued, and free the captured graphs."""
        self._stream.synchronize()
        self._graphs.clear()

    def _bind(self, addresses: Addresses, scratch: Block) -> None:
        self._messages.clear()
        self._context.set_device_memory(scratch.pointer, scratch.size)
        for name, pointer in addresses:
            if not self._context.set_tensor_address(name, pointer):
                raise self._error(f"does not take the address of {name} for")

    def _captured(self, addresses: Addresses, scratch: Block) -> Graph | None:
        """A new graph, which is kept; None where it cannot be captured."""
        try:
            graph = self._capture(addresses, scratch)
        except _NotCapturable as error:
            self._failed_captures += 1
            if self._failed_captures == CAPTURE_ATTEMPTS:
                text = f"{self._name} runs without CUDA graphs, which is slower: {error}"
                warnings.warn(text, RuntimeWarning, stacklevel=4)
            return None
        self._failed_captures = 0
        self._graphs[addresses] = graph
        if len(self._graphs) > GRAPHS_KEPT:
            self._stream.synchronize()  # the oldest may still be running
            self._graphs.popitem(last=False)
        return graph

    def _capture(self, addresses: Addresses, scratch: Block) -> Graph:
        self._bind(addresses, scratch)
        capturable = getattr(self._context, "is_stream_capturable", None)  # of TensorRT for RTX alone
        if capturable is not None and not capturable(self._stream.handle):
            raise _NotCapturable("TensorRT for RTX cannot capture this model")
        enqueued = False

        def enqueue() -> None:
            nonlocal enqueued
            enqueued = self._context.execute_async_v3(self._stream.handle)

        graph = self._stream.capture(enqueue)
        if graph is None or not enqueued:
            raise _NotCapturable(self._messages.reason("the driver could not capture it"))
        return graph

    def _error(self, what: str) -> EngineError:
        reason = self._messages.reason()
        out = "out of memory" in reason.lower() or "outofmemory" in reason.lower()
        return (DeviceMemoryError if out else EngineError)(f"TensorRT {what} {self._what}: {reason}")
