"""TritonPythonModel: the runtime as a model of Triton's Python backend; it runs inside Triton's stub only.

https://github.com/triton-inference-server/python_backend describes what the backend expects of the class. Repositories
that `vocabseg triton` has written import it from here.
"""

import json
import os
import subprocess
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import triton_python_backend_utils as triton

from vocabseg.runtime.errors import VocabsegError
from vocabseg.serving.answering.answers import Tensors, stack
from vocabseg.serving.answering.requests import RequestReader
from vocabseg.serving.answering.responder import Responder
from vocabseg.serving.answering.triton_metrics import TritonMetrics
from vocabseg.serving.answering.watchdog import Watchdog
from vocabseg.serving.answering.workers import Job, Workers
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
        labels = {"model": args["model_name"], "instance": args["model_instance_name"]}
        self._metrics = TritonMetrics(_family, labels)
        watchdog = Watchdog(limits.max_step_seconds)
        self._workers = Workers(self._responder, watchdog, self._metrics.running, self._show)
        self._watcher = None if os.environ.get(SUPERVISED) else _watch()
        triton.Logger.log_info(f"{labels['instance']}: {segmenter.bundle.manifest.name} on {segmenter.choice.key}")

    def execute(self, requests: list[Any]) -> None:
        """Take a batch of requests; each is answered for itself through its response sender, most after the return."""
        statistics = self._responder.statistics
        statistics.add(batches=1)
        jobs = []
        for request in requests:
            try:
                images = self._reader.read(*_contents(request))
            except Exception as error:
                statistics.add(rejected=1)
                _send(request, error)
            else:
                jobs.append(Job(images, request.is_cancelled, partial(_send, request)))
        self._show()
        self._workers.put(jobs)

    def _show(self) -> None:
        self._metrics.show(self._responder)

    def finalize(self) -> None:
        """Called when the server unloads the model, after the last answer."""
        self._workers.close()
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


def _send(request: Any, answer: list[Tensors] | Exception) -> None:
    """Send the answer for a request, or why there is none.

    Where nothing can be sent this process ends, so that whoever supervises it starts another and the client is told.
    """
    try:
        final = triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        request.get_response_sender().send(_response(answer), flags=final)
    except Exception:  # the sender is closed by now, and the client would wait for ever: end, as if stuck
        try:
            traceback.print_exc()  # not through Triton: without shared memory nothing reaches it
        finally:
            os._exit(1)


def _response(answer: list[Tensors] | Exception) -> Any:
    try:
        if isinstance(answer, Exception):
            raise answer
        outputs = [triton.Tensor(name, array) for name, array in stack(answer).items()]
        return triton.InferenceResponse(output_tensors=outputs)
    except VocabsegError as error:
        return _refusal(str(error), triton.TritonError.INVALID_ARG)
    except Exception as error:
        triton.Logger.log_error("".join(traceback.format_exception(error)))
        return _refusal(f"{type(error).__name__}: {error} (a fault of the server)", triton.TritonError.INTERNAL)


def _refusal(message: str, code: Any) -> Any:
    line = " ".join(message.encode("utf-8", "backslashreplace").decode().split())
    return triton.InferenceResponse(output_tensors=[], error=triton.TritonError(line, code))


def _family(name: str, description: str, gauge: bool) -> Any:
    kind = triton.MetricFamily.GAUGE if gauge else triton.MetricFamily.COUNTER
    return triton.MetricFamily(name=name, description=description, kind=kind)
