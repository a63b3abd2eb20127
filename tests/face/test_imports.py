"""What importing costs and needs: no torch, no onnx, and little time."""

import subprocess
import sys

import pytest

from tests.bundles import bundle_for_case
from tests.golden import load_golden

# What `vocabseg segment` can do without when the embeddings of the names are on disk.
UNNEEDED = (
    "torch", "onnx", "openvino", "rich", "http", "ssl", "regex", "ftfy", "tokenizers", "pycocotools", "multiprocessing",
    "vocabseg.batch", "vocabseg.export", "vocabseg.serving", "vocabseg.calibration", "vocabseg.benchmarks",
    "vocabseg.commands.export", "vocabseg.runtime.segmenter.pixels", "vocabseg.runtime.segmenter.cuda_stages",
)  # fmt: skip
BLOCK = "import sys\nfor name in ('torch', 'onnx', 'onnxscript', 'open_clip'): sys.modules[name] = None\n"


def python(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=300
    )


def test_importing_is_light():
    code = (
        "import sys, vocabseg; from vocabseg import load, Segmenter, Vocabulary\n"
        "heavy = ['torch', 'onnx', 'openvino', 'onnxruntime', 'cv2', 'matplotlib', 'rich', 'supervision', 'scipy']\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_segmenting_works_without_torch(tmp_path):
    case = "c_r50_tiny16_vild"
    image = load_golden(case)[0]["image_0"]
    from PIL import Image

    Image.fromarray(image).save(tmp_path / "photo.png")
    code = BLOCK + (
        "import vocabseg\n"
        "result = vocabseg.load(sys.argv[1])(sys.argv[2], ['person', 'tree'])\n"
        "print(result.labels.shape)\n"
    )
    done = python(code, bundle_for_case(case), tmp_path / "photo.png")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(image.shape[:2])


@pytest.mark.parametrize("name", ["Regions", "Result", "Segmenter", "Vocabulary", "VocabsegError", "load"])
def test_the_public_names_are_there(name):
    import vocabseg

    assert name in dir(vocabseg)
    assert getattr(vocabseg, name).__doc__


def test_other_names_are_not():
    import vocabseg

    with pytest.raises(AttributeError, match="frobnicate"):
        vocabseg.frobnicate  # noqa: B018


def test_segmenting_with_known_names_loads_and_opens_no_more_than_it_needs(tmp_path, monkeypatch):
    """The demo model on a scene: two sessions, since the names' embeddings are on disk, and nothing for other verbs."""
    from PIL import Image

    from vocabseg.benchmarks.scenes.world import render_scene

    monkeypatch.setenv("VOCABSEG_CACHE_DIR", str(tmp_path / "cache"))
    Image.fromarray(render_scene(3, "test", 0, size=(96, 120), objects=2).image).save(tmp_path / "scene.png")
    code = (
        "import sys, onnxruntime\n"
        "from vocabseg.cli import main\n"
        "opened, Session = [], onnxruntime.InferenceSession\n"
        "def opening(path, *rest, **more):\n"
        "    opened.append(path.rpartition('/')[2])\n"
        "    return Session(path, *rest, **more)\n"
        "onnxruntime.InferenceSession = opening\n"
        "try: main(['segment', sys.argv[1], '--output', sys.argv[2], '--engine', 'onnxruntime'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "print(sorted(opened))\n"
        "print([name for name in sys.argv[3:] if name in sys.modules])\n"
    )
    scene = (tmp_path / "scene.png", tmp_path / "out.png")
    first, second = (python(code, *scene, *UNNEEDED) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    graphs = "['image_encoder.onnx', 'proposal.onnx'"
    assert first.stdout.splitlines()[1] == f"{graphs}, 'text_encoder.onnx']"
    assert second.stdout.splitlines()[1:] == [f"{graphs}]", "[]"]
