"""TritonPythonModel: the runtime as a model of Triton's Python backend; it runs inside Triton's stub only.

https://github.com/triton-inference-server/python_backend describes what the backend expects of the class. Repositories
that `vocabseg triton` has written import it from here.
"""

import json
import os
import subprocess
import traceback
from pathlib import Path
from typing import Any

import msgspec
import triton_python_backend_utils as triton

from vocabseg.runtime.errors import VocabsegError
from vocabseg.serving.answering.answers import stack
from vocabseg.serving.answering.requests import ImageRequest, RequestReader
from vocabseg.serving.answering.responder import Responder
from vocabseg.serving.answering.triton_metrics import TritonMetrics
from vocabseg.serving.answering.watchdog import Watchdog
from vocabseg.serving.protocol import EVIDENCE, INPUTS, OUTPUTS, SUPERVISED, NamedVocabulary, RequestLimits

BUNDLE = "bundle"
VOCABULARIES = "vocabularies.json"


class TritonPythonModel:
    """One instance: a process with a segmenter on a GPU, or on some of the CPU's cores."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the bundle beside the model file. An exception here keeps the server from becoming ready."""
        given = json.loads(args["model_config"]).get("parameters", {})
        settings = {name: entry["string_value"] for name, entry in given.items()}
        if settings.get("threads"):
            os.environ["VOCABSEG_THREADS"] = settings["threads"]
        on_gpu = args["model_instance_kind"] == "GPU"
        device = f"cuda:{args['model_instance_device_id']}" if on_gpu else "cpu"
        folder = Path(args["model_repository"]) / args["model_version"]

        from vocabseg.runtime.segmenter.opening import load

        segmenter = load(folder / BUNDLE, device, settings.get("engine") or None, settings.get("precision") or None)
        given_limits = {name: settings[name] for name in RequestLimits.__struct_fields__ if name in settings}
        limits = msgspec.convert(given_limits, RequestLimits, strict=False)
        named = msgspec.json.decode((folder / VOCABULARIES).read_bytes(), type=dict[str, NamedVocabulary])
        self._responder = Responder(segmenter, limits)
        prompts = segmenter.bundle.manifest.prompts
        self._reader = RequestReader(limits, named, (prompts.query, prompts.region))
        self._watchdog = Watchdog(limits.max_step_seconds)
        labels = {"model": args["model_name"], "instance": args["model_instance_name"]}
        self._metrics = TritonMetrics(_family, labels)
        self._watcher = None if os.environ.get(SUPERVISED) else _watch()
        triton.Logger.log_info(f"{labels['instance']}: {segmenter.bundle.manifest.name} on {segmenter.choice.key}")

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer a batch of requests, each for itself."""
        self._metrics.running(len(requests))
        try:
            with self._watchdog:
                return self._execute(requests)
        finally:
            self._metrics.running(0)

    def _execute(self, requests: list[Any]) -> list[Any]:
        images: list[ImageRequest] = []
        owners: list[int] = []
        errors: dict[int, Exception] = {}
        statistics = self._responder.statistics
        for number, request in enumerate(requests):
            if request.is_cancelled():
                errors[number] = Cancelled("the client has gone")
                continue
            try:
                found = self._reader.read(*_contents(request))
            except Exception as error:
                errors[number] = error
                statistics.rejected += 1
                continue
            images += found
            owners += [number] * len(found)

        def gone(index: int) -> bool:
            self._watchdog.moved()
            return bool(requests[owners[index]].is_cancelled())

        answers = self._responder.answer(images, gone)
        parts: dict[int, list[Any]] = {number: [] for number in range(len(requests))}
        for owner, answer in zip(owners, answers, strict=True):
            if isinstance(answer, Exception):
                errors.setdefault(owner, answer)
            else:
                parts[owner].append(answer)
        responses = [_response(parts[number], errors.get(number)) for number in parts]
        statistics.batches += 1
        self._metrics.show(self._responder)
        return responses

    def finalize(self) -> None:
        """Called when the server unloads the model, after the last answer."""
        self._responder.close()
        del self._metrics  # Triton's metrics must go before the stub's connection does, or the stub crashes at its end
        if self._watcher is not None and self._watcher.stdin is not None:
            self._watcher.stdin.write(b"ended well\n")
            self._watcher.stdin.close()
            self._watcher.wait()


def _watch() -> "subprocess.Popen[bytes]":
    """A process that ends the server when this one dies; whatever started the server can then restart it.

    Triton 2.51 does not react when a model process dies: the server stays ready, and its requests fail.
    """
    script = 'read word || { echo "a model process has died: ending the server" >&2; kill -TERM "$0"; }'
    return subprocess.Popen(["/bin/sh", "-c", script, str(os.getppid())], stdin=subprocess.PIPE, start_new_session=True)


class Cancelled(Exception):
    """The client no longer waits for the answer."""


def _contents(request: Any) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Tensors, parameters and wanted outputs of a request."""
    inputs = {}
    for name in INPUTS:
        tensor = triton.get_input_tensor_by_name(request, name)
        if tensor is not None:
            inputs[name] = tensor.as_numpy()
    wanted = list(request.requested_output_names())
    if set(OUTPUTS).issubset(wanted):  # a client that names none gets all except the megabytes of evidence
        wanted = [name for name in wanted if name not in EVIDENCE]
    return inputs, json.loads(request.parameters() or "{}"), wanted


def _response(parts: list[Any], error: Exception | None) -> Any:
    if error is None:
        try:
            outputs = [triton.Tensor(name, array) for name, array in stack(parts).items()]
            return triton.InferenceResponse(output_tensors=outputs)
        except Exception as failure:
            error = failure
    if isinstance(error, Cancelled):
        return _refusal(str(error), triton.TritonError.CANCELLED)
    if isinstance(error, VocabsegError):
        return _refusal(str(error), triton.TritonError.INVALID_ARG)
    triton.Logger.log_error("".join(traceback.format_exception(error)))
    return _refusal(f"{type(error).__name__}: {error} (a fault of the server)", triton.TritonError.INTERNAL)


def _refusal(message: str, code: Any) -> Any:
    line = " ".join(message.encode("utf-8", "backslashreplace").decode().split())
    return triton.InferenceResponse(output_tensors=[], error=triton.TritonError(line, code))


def _family(name: str, description: str, gauge: bool) -> Any:
    kind = triton.MetricFamily.GAUGE if gauge else triton.MetricFamily.COUNTER
    return triton.MetricFamily(name=name, description=description, kind=kind)
