"""The model as Triton's stub calls it, without a server: only for what a real server cannot be made to do."""

import subprocess
import sys

# What Triton's stub does when shared memory is full: it closes the sender, and then it cannot copy the answer.
FULL = """
import sys
from types import SimpleNamespace

def send(response, flags):
    raise RuntimeError("no room in /dev/shm")

def log(message):
    pass

sys.modules["triton_python_backend_utils"] = SimpleNamespace(
    TRITONSERVER_RESPONSE_COMPLETE_FINAL=1, Logger=SimpleNamespace(log_error=log),
    Tensor=lambda name, array: None, InferenceResponse=lambda output_tensors: None,
)
import numpy as np
from vocabseg.serving import model

request = SimpleNamespace(get_response_sender=lambda: SimpleNamespace(send=send))
model._send(request, [{"LABELS": np.zeros((2, 2), np.int32)}])
print("the client waits for ever")
"""


def test_a_process_that_cannot_send_an_answer_ends() -> None:
    done = subprocess.run([sys.executable, "-c", FULL], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.endswith("RuntimeError: no room in /dev/shm\n")
