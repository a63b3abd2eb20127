"""What importing costs and needs: no torch, no onnx, and little time."""

import subprocess
import sys

import pytest

from tests.bundles import bundle_for_case
from tests.golden import load_golden

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
