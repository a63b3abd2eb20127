"""The command line as a user meets it: what it writes, what it says, and how it ends."""

import json
import os
import shutil
import stat
import struct
import zlib
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
from PIL import Image

from tests.bundles import bundle_for_case, copy_bundle_with
from tests.golden import load_golden
from vocabseg.benchmarks.scenes.world import CLASSES, render_scene
from vocabseg.cli import main
from vocabseg.runtime.bundle.folder import demo_folder, open_bundle
from vocabseg.runtime.bundle.manifest import write_manifest

CASE = "c_r50_tiny16_vild"


@pytest.fixture(scope="module")
def bundle():
    return bundle_for_case(CASE)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(load_golden(CASE)[0]["image_0"]).save(path)
    return path


@pytest.fixture
def run(capsys):
    """Run the command line: exit code, standard output, standard error."""

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        return stop.value.code, output.out, output.err

    return run


@pytest.fixture
def refused(run, tmp_path):
    """Run the command line on input it must refuse: exit code 2, one line with the words, nothing written."""

    def refused(*arguments, told):
        before = sorted(tmp_path.rglob("*"))
        code, out, err = run(*arguments)
        assert code == 2, err
        assert out == ""
        lines = [line for line in err.splitlines() if not line.startswith(("Segmenting", "Exporting", "  "))]
        assert len(lines) == 1, err
        assert lines[0].startswith("vocabseg: ")
        for word in [told] if isinstance(told, str) else told:
            assert word in lines[0]
        assert sorted(tmp_path.rglob("*")) == before

    return refused


def test_one_image(run, bundle, photo, tmp_path):
    output = tmp_path / "overlay.png"
    code, out, err = run("segment", photo, "-b", bundle, "-c", "person, tree, sky", "-o", output)
    assert code == 0
    assert out.strip() == str(output)
    assert "encoding regions" in err
    with Image.open(output) as picture:
        assert picture.width >= 320
        assert picture.height >= 240


def test_every_kind_of_output(run, bundle, photo, tmp_path):
    kinds = ("overlay", "labels", "json", "panoptic")
    options = [option for kind in kinds for option in ("--write", kind)]
    code, out, _ = run(
        "segment", photo, "-b", bundle, "-c", "person,tree,sky", "-o", f"{tmp_path}/out.png", *options, "-q"
    )
    assert code == 0
    written = [line.rsplit("/", 1)[1] for line in out.splitlines()]
    assert written == ["out.png", "out_labels.png", "out.json", "out_panoptic.json"]
    labels = np.asarray(Image.open(tmp_path / "out_labels.png"))
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["classes"] == ["person", "tree", "sky"]
    for segment in report["segments"]:
        assert segment["area"] == np.count_nonzero(labels == segment["category_id"])
    assert sum(segment["area"] for segment in report["segments"]) == labels.size
    assert json.loads((tmp_path / "out_panoptic.json").read_text())["image_size"] == list(labels.shape)


def test_several_images_go_to_a_folder(run, bundle, photo, tmp_path):
    second = tmp_path / "second.png"
    second.write_bytes(photo.read_bytes())
    folder = tmp_path / "results"
    folder.mkdir()
    code, out, _ = run("segment", photo, second, "-b", bundle, "-c", "a,b", "-o", folder, "-w", "labels", "-q")
    assert code == 0
    assert out.split() == [f"{folder}/photo_labels.png", f"{folder}/second_labels.png"]
    assert (folder / "photo_labels.png").read_bytes() == (folder / "second_labels.png").read_bytes()


def test_without_a_bundle_the_demo_model_segments_into_its_own_classes(run, tmp_path):
    scene = render_scene(2026, "test", 7, size=(360, 480), objects=5)
    picture = Path(__file__).parents[2] / "examples" / "scene.png"
    np.testing.assert_array_equal(np.asarray(Image.open(picture)), scene.image)
    code, out, err = run("segment", picture, "-o", f"{tmp_path}/out.png", "-w", "labels", "-w", "json")
    assert code == 0, err
    assert len(out.split()) == 2
    assert "into 108 classes with demo" in err
    labels = np.asarray(Image.open(tmp_path / "out_labels.png"))
    assert np.mean(labels == scene.labels) > 0.9
    described = json.loads((tmp_path / "out.json").read_text())
    assert described["classes"] == list(CLASSES)


def test_the_demo_model_is_asked_for_other_names(run, tmp_path):
    picture = Path(__file__).parents[2] / "examples" / "scene.png"
    code, _, err = run("segment", picture, "-c", "cloudy sky, yellow cross, water", "-o", tmp_path / "labels.png",
                       "-w", "labels")  # fmt: skip
    assert code == 0, err
    scene = render_scene(2026, "test", 7, size=(360, 480), objects=5)
    labels = np.asarray(Image.open(tmp_path / "labels.png"))
    for index, name in enumerate(("cloudy sky", "yellow cross", "water")):
        assert np.mean(labels[scene.labels == CLASSES.index(name)] == index) > 0.9, name


def test_settings_and_seen_change_the_outcome(run, bundle, photo, tmp_path):
    def labels(*options):
        code, _, err = run(
            "segment",
            photo,
            "-b",
            bundle,
            "-c",
            "person,tree",
            "-o",
            f"{tmp_path}/l.json",
            "-w",
            "json",
            "-q",
            *options,
        )
        assert code == 0, err
        return json.loads((tmp_path / "l.json").read_text())["segments"]

    usual = labels()
    assert labels() == usual
    assert labels("--set", "ensemble.weight=0.1") != usual
    assert labels("--set", "region.mask_threshold=0.9") != usual
    assert labels("--seen", "tree") != usual
    assert labels("--template", "a drawing of a {}.") != usual


def test_names_from_a_file_and_ten_thousand_of_them(run, bundle, photo, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(["person", "tree", "Straße", "日本"]) + "\n", encoding="utf-8")
    code, _, err = run("segment", photo, "-b", bundle, "-c", f"@{names}", "-o", f"{tmp_path}/o.png", "-q")
    assert code == 0, err


def test_the_bundles_own_vocabulary_serves_when_no_classes_are_given(run, bundle, photo, tmp_path, refused):
    refused("segment", photo, "-b", bundle, "-o", tmp_path / "o.png", told="declares no vocabulary")
    own = copy_bundle_with(bundle, bundle.parent / "with-vocabulary", vocabulary=["person", "tree"])
    code, _, _ = run("segment", photo, "-b", own, "-o", f"{tmp_path}/o.json", "-w", "json", "-q")
    assert code == 0
    assert json.loads((tmp_path / "o.json").read_text())["classes"] == ["person", "tree"]


def test_pictures_of_other_kinds_work(run, bundle, tmp_path):
    rgb = load_golden(CASE)[0]["image_0"]
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(np.dstack([rgb, grey])).save(tmp_path / "rgba.png")
    cv2.imwrite(str(tmp_path / "sixteen.png"), rgb[:, :, ::-1].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees when shown
    Image.fromarray(np.rot90(rgb).copy()).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(rgb).save(tmp_path / "plain.png")
    labels = {}
    for name in ("grey", "rgba", "sixteen", "turned", "plain"):
        target = tmp_path / f"{name}_labels.png"
        code, _, err = run(
            "segment", tmp_path / f"{name}.png", "-b", bundle, "-c", "a,b,c", "-o", target, "-w", "labels", "-q"
        )
        assert code == 0, err
        labels[name] = np.asarray(Image.open(target))
    for same in ("rgba", "sixteen", "turned"):
        np.testing.assert_array_equal(labels[same], labels["plain"])
    assert labels["grey"].shape == rgb.shape[:2]


def bomb(path, width=20_000, height=15_000):
    """A PNG whose header claims 300 megapixels."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize("kind", ["missing", "text", "truncated", "empty", "bomb", "folder", "no pixels"])
def test_images_that_cannot_be_used(refused, bundle, photo, tmp_path, kind):
    path = tmp_path / "bad.jpg"
    if kind == "text":
        path.write_text("I am no image")
    elif kind == "truncated":
        Image.open(photo).save(path, quality=95)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "bomb":
        bomb(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "no pixels":
        bomb(path, 0, 0)
    told = ["bad.jpg", "20000 x 15000", "megapixels"] if kind == "bomb" else "bad.jpg"
    refused("segment", path, "-b", bundle, "-c", "a,b", "-o", tmp_path / "out.png", told=told)


@pytest.mark.parametrize(
    ("classes", "told"),
    [
        ("", "empty"),
        ("cat,,dog", "empty"),
        ("cat, dog, cat", "cat"),
        (" ".join(["word"] * 200), "tokens"),
        ("@no-such-file.txt", "no-such-file.txt"),
    ],
)
def test_names_that_cannot_be_used(refused, bundle, photo, tmp_path, classes, told):
    refused("segment", photo, "-b", bundle, "-c", classes, "-o", tmp_path / "out.png", told=told)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--set", "region.mask_treshold=0.4"], "mask_threshold"),
        (["--set", "region.mask_threshold=high"], "mask_threshold"),
        (["--engine", "caffe"], "openvino"),
        (["--device", "cuda"], "cuda"),
        (["--precision", "float8"], "float8"),
        (["--seen", "cow"], "cow"),
        (["--template", "no place for a name"], "{}"),
        (["--write", "video"], "video"),
        (["--no-such-option"], "no-such-option"),
    ],
)
def test_options_that_cannot_be_used(refused, bundle, photo, tmp_path, options, told):
    refused("segment", photo, "-b", bundle, "-c", "a,b", "-o", tmp_path / "out.png", *options, told=told)


def test_places_that_cannot_be_written(refused, bundle, photo, tmp_path, monkeypatch):
    common = ["segment", photo, "-b", bundle, "-c", "a,b"]
    refused(*common, "-o", tmp_path / "none" / "out.png", told="none")
    refused(*common, "-o", tmp_path / "out.gif", told=".gif")
    refused(*common, "-w", "labels", "-o", tmp_path / "out.jpg", told=".jpg")
    refused("segment", photo, photo, "-b", bundle, "-c", "a,b", "-o", tmp_path, told="photo.png")
    if os.geteuid() == 0:
        monkeypatch.setattr(os, "access", lambda path, mode, **options: not mode & os.W_OK)  # root may write anywhere
    else:
        tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        refused(*common, "-o", tmp_path / "out.png", told="permission")
    finally:
        tmp_path.chmod(stat.S_IRWXU)


def test_a_bundle_that_was_changed(refused, bundle, photo, tmp_path):
    copy = copy_bundle_with(bundle, bundle.parent / "changed")
    data = bytearray((bundle / "tokenizer.json").read_bytes())
    data[1000] ^= 1
    (copy / "tokenizer.json").unlink()  # a hard link: the original must stay
    (copy / "tokenizer.json").write_bytes(data)
    refused("segment", photo, "-b", copy, "-c", "a", "-o", tmp_path / "o.png", told=["tokenizer.json", "SHA-256"])
    refused("segment", photo, "-b", tmp_path / "none", "-c", "a", "-o", tmp_path / "o.png", told="no such folder")


def test_export_tells_what_is_wrong(refused, tmp_path):
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"no weights")
    common = ["export", "--output", tmp_path / "bundle"]
    refused(*common, "--config", "zsseg-r50-vitb16-vlid", "--random", told="zsseg-r50-vitb16-vild")
    refused(*common, "--config", "zsseg-r50-vitb16-vild", told="--random")
    refused(*common, "--config", "zsseg-r50-vitb16-vild", "--random", "--set", "region.foo=1", told="foo")
    refused(*common, told="--config")
    Image.new("RGB", (8, 8)).save(tmp_path / "logo.png")
    (tmp_path / "shown.json").write_text('[{"name": "logo", "images": ["logo.png"]}, {"name": "sky"}]')
    shown = ("--config", "zsseg-r50-vitb16-vild", "--random", "--classes", f"@{tmp_path / 'shown.json'}")
    refused(*common, *shown, told="has example images, which no bundle can hold: name them")
    held = tmp_path / "held"
    held.mkdir()
    (held / "manifest.json").touch()
    (held / "w.pth").touch()
    common = ["export", "--config", "zsseg-r50-vitb16-vild", "--output", held, "--overwrite"]
    refused(*common, "--checkpoint", held / "w.pth", told=["would replace the input", "w.pth"])
    # The place is looked at before the weights are.
    common = ["export", "--config", "zsseg-r50-vitb16-vild", "--checkpoint", weights, "--output"]
    refused(*common, held, told="there is a bundle at")
    refused(*common, tmp_path / "none" / "bundle", told="does not exist")
    code, _, err = _run_export(tmp_path, weights)
    assert code == 2
    assert "weights.pth" in err.splitlines()[-1]
    assert not (tmp_path / "bundle").exists()


def _run_export(tmp_path, weights):
    import contextlib
    import io

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stop:
        main(
            [
                "export",
                "--output",
                f"{tmp_path}/bundle",
                "--config",
                "zsseg-r50-vitb16-vild",
                "--checkpoint",
                str(weights),
            ]
        )
    return stop.value.code, out.getvalue(), err.getvalue()


def test_export_lists_the_configurations(run):
    code, out, _ = run("export", "--list")
    assert code == 0
    assert "zsseg-r101c-vitb16-learned" in out.split()
    assert len(out.split()) == 24


def test_doctor_says_which_engine_runs_and_why(run):
    code, out, _ = run("doctor")
    assert code == 0
    assert "engine used here" in out
    assert "because" in out


def test_the_licence_of_weights_is_told(run, tmp_path):
    folder = tmp_path / "licensed"
    shutil.copytree(demo_folder(), folder)
    manifest = open_bundle(folder, verify=False).manifest
    write_manifest(msgspec.structs.replace(manifest, name="licensed", weights_license="CC BY-NC 4.0"), folder)
    Image.fromarray(render_scene(0).image[:64, :64]).save(tmp_path / "scene.png")
    files = ["-o", tmp_path / "overlay.png", "-w", "json", "-w", "overlay"]
    code, _, err = run("segment", tmp_path / "scene.png", "-b", folder, "-c", "red disc, grass", *files)
    assert code == 0
    assert "The weights of licensed are under CC BY-NC 4.0" in err
    assert json.loads((tmp_path / "overlay.json").read_text())["info"]["weights_license"] == "CC BY-NC 4.0"
    code, out, _ = run("doctor", "--bundle", folder)
    assert code == 0
    lines = {line.split("  ")[1]: line for line in out.splitlines()}
    assert lines["weights of licensed"].endswith("under CC BY-NC 4.0")
    assert "because" in lines["engine of licensed"]
    assert run("doctor", "--bundle", tmp_path / "none")[0] == 2


@pytest.mark.parametrize("verb", ["segment", "explain", "export", "evaluate", "bench", "doctor"])
def test_help_shows_an_example(run, verb):
    code, out, _ = run(verb, "--help")
    assert code == 0
    assert f"vocabseg {verb}" in out.split("Example")[1]


def test_a_traceback_only_on_request(bundle, photo, run):
    from vocabseg.runtime.errors import BundleError

    with pytest.raises(BundleError):
        main(["segment", str(photo), "-b", "/none", "-c", "a", "-o", "x.png", "--debug"])
