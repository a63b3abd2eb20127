"""A forked child of a process that has used its engines: it opens them anew, and ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vocabseg.runtime.engines.choose import ON_CPU

SCENE = Path(__file__).parents[3] / "examples" / "scene.png"

FORKED = """
import multiprocessing, os, sys, vocabseg
image, classes = sys.argv[1], ["sky", "water"]
segmenter = vocabseg.load(device="cpu", engine=sys.argv[2])
expected = segmenter(image, classes).labels

def same():
    found = [segmenter(image, classes), *segmenter.segment_many([image] * 3, classes)]
    return all((one.labels == expected).all() for one in found)

def work():
    sys.exit(0 if same() else 1)

child = multiprocessing.get_context("fork").Process(target=work, daemon=True)
child.start()
child.join(300)
print("pool", child.exitcode, flush=True)  # or the fork would print it, too
pid = os.fork()
if pid == 0:
    sys.exit(7 if same() else 1)  # frees everything on its way out
print("fork", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), "parent", same())
if child.is_alive():
    child.kill()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("engine", [offer.name for offer in ON_CPU])
def test_a_forked_child_opens_its_engines_anew(engine: str) -> None:
    environment = os.environ | {"VOCABSEG_THREADS": "2", "OMP_NUM_THREADS": "2"}  # one thread would not hang
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKED, str(SCENE), engine]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert found.stdout.split() == ["pool", "0", "fork", "7", "parent", "True"], found.stderr
