"""A command hashes a file of its bundle once, however many of its steps read the bundle."""

import pytest

from tests.bundles import bundle_for_case, copy_bundle_with, files_hashed
from vocabseg.cli import main

SCENE, PHOTO = "examples/scene.png", "examples/cat.jpg"


@pytest.fixture
def bundle(tmp_path):
    return copy_bundle_with(bundle_for_case("c_r50_tiny16_vild"), tmp_path / "bundle")


@pytest.mark.parametrize(
    "arguments",
    [
        ("segment", SCENE, "--bundle", "BUNDLE", "--classes", "sky", "--output", "OUT/a.png"),
        ("segment", SCENE, PHOTO, "--bundle", "BUNDLE", "--classes", "sky", "--output", "OUT"),
        ("build", "BUNDLE", "--precision", "fp16"),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_each_file_once(bundle, tmp_path, arguments):
    (tmp_path / "out").mkdir()
    with files_hashed() as hashed, pytest.raises(SystemExit) as stop:
        main([text.replace("BUNDLE", str(bundle)).replace("OUT", str(tmp_path / "out")) for text in arguments])
    assert not stop.value.code
    assert (bundle / "image_encoder.onnx").resolve() in {path.resolve() for path in hashed}
    assert set(hashed.values()) == {1}, hashed
