"""`vocabseg demo`: which models it offers, and how it starts and ends."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.attack.broken import edit
from vocabseg import cli
from vocabseg.commands import demo as command
from vocabseg.runtime.bundle.folder import demo_folder
from vocabseg.runtime.errors import BundleError, ConfigurationError
from vocabseg.web import models as module
from vocabseg.web.listening import listen
from vocabseg.web.models import Models, find_bundles


def test_a_folder_of_bundles(tmp_path: Path) -> None:
    for name in ("one", "two", "broken"):
        shutil.copytree(demo_folder(), tmp_path / name)
    edit(tmp_path / "broken", "format", 99)
    (tmp_path / "notes").mkdir()
    bundles, left_out = find_bundles(tmp_path)
    assert list(bundles) == ["one", "two"]
    assert len(left_out) == 1
    assert "99" in left_out[0]
    models = Models(bundles, "cpu", "onnxruntime")
    assert models.listed() == [{"name": name, "precisions": ["float32"]} for name in ("one", "two")]
    assert list(find_bundles(tmp_path / "one")[0]) == ["demo"]
    shutil.rmtree(tmp_path / "one")
    shutil.rmtree(tmp_path / "two")
    with pytest.raises(BundleError, match=r"no folder in it is one that can be used: .*99"):
        find_bundles(tmp_path)
    for missing in (tmp_path / "notes", tmp_path / "nowhere"):
        with pytest.raises(BundleError, match=r"no bundle"):
            find_bundles(missing)


def test_the_last_models_used_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    genuine = module.Segmenter

    def counted(bundle, *how):
        opened.append(bundle.folder.name)
        return genuine(bundle, *how)

    for name in ("one", "two", "three"):
        shutil.copytree(demo_folder(), tmp_path / name)
    models = Models(find_bundles(tmp_path)[0], "cpu", "onnxruntime")
    monkeypatch.setattr(module, "Segmenter", counted)
    for name in ("one", "two", "one", "three", "one", "two"):
        models.segmenter(name, "float32")
    assert opened == ["one", "two", "three", "two"]
    with pytest.raises(ConfigurationError, match="there is no model 'four'"):
        models.segmenter("four", "float32")


def test_a_taken_port_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as stop:
            cli.main(["demo", "--port", str(port)])
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"vocabseg: port {port} is taken: give another with --port, or 0 for a free one\n"


def test_an_address_of_another_machine_is_told() -> None:
    with pytest.raises(ConfigurationError, match=r"cannot listen on '192.0.2.1' .*: give an address of this machine"):
        listen("192.0.2.1", 0)


def test_examples_hold_what_their_names_say() -> None:
    found = command.examples()
    assert [example.image.shape for example in found] == [(command.HEIGHT, command.WIDTH, 3)] * len(command.SCENES)
    assert "orange arrow" in found[0].classes.split(", ")  # the one of examples/scene.png


def test_from_the_start_to_ctrl_c(tmp_path: Path) -> None:
    # Shells start background commands with the signal ignored, and their children inherit that.
    obey = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    words = [sys.executable, "-m", "vocabseg", "demo", "--port", "0", "--engine", "onnxruntime"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, preexec_fn=obey, **pipes) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        address = re.fullmatch(r"Ready: 1 model at (http://127\.0\.0\.1:\d+/) \(Ctrl-C stops it\)\n", line)
        assert address, line + process.stderr.read()
        with urlopen(address[1] + "api/start", timeout=30) as answer:
            assert len(json.load(answer)["examples"]) == len(command.SCENES)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(30) == 0
    assert rest.splitlines()[-1] == "Stopped"
    assert "Traceback" not in rest
