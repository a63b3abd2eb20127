"""What every command line is expected to do: help on its own, short options, being stopped, short names."""

import signal
import subprocess
import sys
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pytest

import vocabseg
from vocabseg import cli
from vocabseg.commands import export as export_command
from vocabseg.commands import segment as segment_command
from vocabseg.commands import terminal
from vocabseg.runtime.bundle.folder import demo_folder
from vocabseg.runtime.progress import counted

VERBS = (
    "segment",
    "explain",
    "demo",
    "export",
    "build",
    "evaluate",
    "batch",
    "bench",
    "calibrate",
    "serve",
    "triton",
    "doctor",
)
SCENE = Path(__file__).parents[2] / "examples" / "scene.png"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        return int(stop.value.code or 0), output.out, output.err

    return run


def test_without_arguments_there_is_help(run) -> None:
    for arguments in ((), ("--debug",), ("-h",)):
        code, out, err = run(*arguments)
        assert (code, err) == (0, "")
        assert len(out.splitlines()) > 15
        assert all(f"\n  {verb} " in out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_the_short_help(run, verb: str) -> None:
    assert run(verb, "-h") == run(verb, "--help")
    assert run(verb, "-h")[0] == 0


def test_completion_for_shells(run) -> None:
    assert "--install-completion" in run("--help")[1]


@pytest.mark.parametrize(("verb", "told"), [("evaluate", "stopped; the same command goes on"), ("segment", "stopped")])
def test_being_stopped_is_told(run, monkeypatch: pytest.MonkeyPatch, verb: str, told: str) -> None:
    def interrupted(*given: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vocabseg.benchmarks.scenes.files.rendered_world", interrupted)
    monkeypatch.setattr(segment_command, "planned", interrupted)
    arguments = {"evaluate": (), "segment": (SCENE,)}[verb]
    assert run(verb, *arguments) == (130, "", f"vocabseg: {told}\n")


def test_a_real_interrupt_ends_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vocabseg", "evaluate", "-n", "500", "-o", str(tmp_path / "report")]
    # Shells start background commands with the signal ignored, and their children inherit that.
    obey = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=obey) as process:
        assert process.stderr is not None
        lines = [process.stderr.readline()]
        while "of 500 images" not in lines[-1] and lines[-1]:
            lines.append(process.stderr.readline())
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        code = process.wait(60)
    assert (code, rest.splitlines()[-1]) == (130, "vocabseg: stopped; the same command goes on"), lines
    assert "Traceback" not in rest


@pytest.mark.parametrize("name", ["fp32", "FP32", "float32"])
def test_precisions_have_short_names_everywhere(run, tmp_path: Path, name: str) -> None:
    common = (SCENE, "-q", "-c", "sky", "-w", "json", "-o", tmp_path / "out.json")
    code, _, err = run("segment", *common, "--precision", name, "--device", "cpu")
    assert code == 0, err
    assert '"engine": "onnxruntime-cpu-float32"' in (tmp_path / "out.json").read_text()
    assert "in float16" in run("segment", *common, "--precision", "fp16", "--engine", "onnxruntime")[2]
    assert "'fp17'" in run("segment", *common, "--precision", "fp17")[2]


def test_numbers_go_with_their_nouns() -> None:
    assert [counted(*pair) for pair in ((0, "image"), (1, "image"), (2_000, "image"), (1, "class"), (3, "class"))] == [
        "0 images", "1 image", "2,000 images", "1 class", "3 classes"
    ]  # fmt: skip


def test_the_version_is_that_of_the_package(run) -> None:
    assert vocabseg.__version__ == version("vocabseg")
    assert run("--version") == (0, f"vocabseg {vocabseg.__version__}\n", "")


def test_a_long_silence_is_broken(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "SILENCE", 0.2)
    with terminal.counting(False, "opening the model") as report:
        time.sleep(0.5)
        report("segmenting", 3, 100)
        time.sleep(0.5)
        report("segmenting", 100, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "  opening the model ... 0 s so far"
    assert any(line.startswith("  3 of 100 images, segmenting ... ") for line in lines)
    assert lines[-1] == "  100 of 100 images, segmenting"
    monkeypatch.setattr(terminal, "SILENCE", 60)
    with terminal.counting(False, "opening the model") as report:
        report("segmenting", 10, 10)
    assert capsys.readouterr().err == "  10 of 10 images, segmenting\n"
    with terminal.counting(True, "opening the model"):
        pass
    assert capsys.readouterr().err == ""


def test_what_is_opened_tells_what_it_is() -> None:
    segmenter = vocabseg.load(engine="onnxruntime", device="cpu")
    assert repr(segmenter) == "Segmenter('demo', onnxruntime-cpu-float32)"
    assert repr(segmenter.bundle).startswith("Bundle('demo' in '")
    assert repr(segmenter.bundle).endswith("/demo', float32)")


def test_an_export_ends_with_its_parity(capsys: pytest.CaptureFixture[str]) -> None:
    export_command._summary(demo_folder())
    *_, verdict, folder = capsys.readouterr().out.splitlines()
    assert verdict == "  parity with PyTorch holds: the graphs' worst cosine is 1, the limit 0.99999"
    assert folder == str(demo_folder())
