"""What of a stranger's bundle gets into a model repository."""

import os
import shutil
from pathlib import Path

import pytest

from vocabseg.runtime.bundle.folder import demo_folder, open_bundle
from vocabseg.runtime.bundle.settings import open_adjusted
from vocabseg.runtime.errors import BundleError
from vocabseg.serving.model_repository.model_configuration import Serving
from vocabseg.serving.model_repository.writer import write_repository

ENGINE = "engines/sm_90/engine.json"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A copy of the demo model with an engine's record, and with links and files that its manifest does not list."""
    folder = tmp_path / "bundle"
    shutil.copytree(demo_folder(), folder)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "file").write_text("secret")
    (folder / ENGINE).parent.mkdir(parents=True)
    (folder / ENGINE).write_text("{}")
    (folder / "engines" / "shadow").symlink_to(tmp_path / "secret" / "file")
    (folder / "engines" / "folder").symlink_to(tmp_path / "secret")
    (folder / "shadow").symlink_to(tmp_path / "secret" / "file")
    (folder / "again").symlink_to(".")
    (folder / "unlisted").write_text("secret")
    os.mkfifo(folder / "pipe")
    os.mkfifo(folder / "engines" / "pipe")
    return folder


def test_only_what_is_listed_and_engines_are_copied(bundle: Path, tmp_path: Path) -> None:
    model = write_repository(open_bundle(bundle), tmp_path / "models", Serving())
    copy = model / "1" / "bundle"
    found = {path.relative_to(copy).as_posix() for path in copy.rglob("*") if not path.is_dir()}
    manifest = open_bundle(copy).manifest
    listed = {record.file for record in (*manifest.files.values(), *manifest.graphs.values())}
    listed |= {external.file for graph in manifest.graphs.values() for external in graph.external}
    assert found == {*listed, "manifest.json", ENGINE}
    assert not any(path.is_symlink() for path in (tmp_path / "models").rglob("*"))


def test_a_folder_of_engines_that_is_elsewhere_is_left_out(bundle: Path, tmp_path: Path) -> None:
    shutil.rmtree(bundle / "engines")
    (bundle / "engines").symlink_to(tmp_path / "secret")
    model = write_repository(open_bundle(bundle), tmp_path / "models", Serving())
    assert not (model / "1" / "bundle" / "engines").exists()


def test_listed_files_that_are_links_to_elsewhere_are_refused(bundle: Path, tmp_path: Path) -> None:
    tokenizer = bundle / "tokenizer.json"
    shutil.move(tokenizer, tmp_path / "tokenizer.json")
    tokenizer.symlink_to(tmp_path / "tokenizer.json")
    with pytest.raises(BundleError, match="which lies outside it"):
        open_bundle(bundle)


def test_a_served_bundle_has_the_settings_that_were_given(tmp_path: Path) -> None:
    opened = open_adjusted(None, ["input.min_size=448"])
    model = write_repository(opened, tmp_path / "models", Serving())
    assert open_bundle(model / "1" / "bundle").manifest == opened.manifest
    assert opened.manifest.input.min_size == 448
