"""Hashes kept between runs: only while nothing has touched the file, and only of files out of others' reach."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.manifests import write_small_bundle
from vocabseg.runtime.bundle import folder as bundles
from vocabseg.runtime.bundle import hash_memory
from vocabseg.runtime.bundle.folder import Bundle, listed_files, open_bundle
from vocabseg.runtime.bundle.manifest import read_manifest
from vocabseg.runtime.engines import host_engines
from vocabseg.runtime.engines.choose import choose
from vocabseg.runtime.errors import BundleError

# Longer than the tick of a file system's clock.
TICK = 0.05


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle all of whose files are remembered, on whatever file system the tests run."""
    monkeypatch.setattr(hash_memory, "SMALLEST", 0)
    monkeypatch.setattr(hash_memory, "SETTLED", TICK * 1e9)
    monkeypatch.setattr(hash_memory, "_file_system", lambda device: "ext4")
    made = write_small_bundle(tmp_path / "bundle")
    time.sleep(2 * TICK)
    return made


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were hashed."""
    names: list[str] = []
    real = bundles.sha256_file
    monkeypatch.setattr(bundles, "sha256_file", lambda path: names.append(path.name) or real(path))
    return names


def files(folder: Path) -> list[str]:
    return [record.file for record in listed_files(read_manifest(folder / "manifest.json"))]


def record() -> Path:
    return Path(os.environ["VOCABSEG_CACHE_DIR"]) / hash_memory.FILE


def flipped(path: Path) -> bytes:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    return bytes(content)


def write(path: Path) -> None:
    content = flipped(path)
    with path.open("r+b") as file:
        file.write(content)


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(flipped(path))
    os.replace(other, path)


def put_back(path: Path, change: Callable[[Path], None]) -> None:
    """Change a byte, and give the file the times that it had."""
    before = path.stat()
    change(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def test_what_was_hashed_is_not_read_again(folder: Path, hashed: list[str]) -> None:
    open_bundle(folder)
    assert sorted(hashed) == sorted(files(folder))
    assert record().stat().st_mode & 0o777 == 0o600
    hashed.clear()
    open_bundle(folder)
    assert hashed == []
    os.link(folder / "proposal.onnx.data", folder / "link")  # touches the file and nothing in it
    open_bundle(folder)
    assert hashed == ["proposal.onnx.data"]


@pytest.mark.parametrize("change", [write, replace])
@pytest.mark.parametrize("remembered", [False, True], ids=["cold", "remembered"])
def test_a_changed_byte_in_any_file_is_refused(folder: Path, remembered: bool, change: Callable[[Path], None]) -> None:
    names = files(folder)
    assert len(names) > 4
    for name in names:
        if remembered:
            open_bundle(folder)
            assert record().is_file()
        path = folder / name
        right = path.read_bytes()
        put_back(path, change)
        with pytest.raises(BundleError, match=f"{name} does not match its SHA-256"):
            open_bundle(folder)
        path.write_bytes(right)
        time.sleep(2 * TICK)


@pytest.mark.parametrize("change", [write, replace])
def test_a_change_after_opening_is_refused(folder: Path, change: Callable[[Path], None]) -> None:
    bundle = open_bundle(folder)
    put_back(folder / "proposal.onnx.data", change)
    with pytest.raises(BundleError, match="changed after the bundle was opened"):
        bundle.check_unchanged(bundle.manifest.graphs["proposal"])


def test_what_is_swapped_while_it_is_loaded_is_not_used(folder: Path) -> None:
    bundle = open_bundle(folder)
    path, right = folder / "proposal.onnx.data", (folder / "proposal.onnx.data").read_bytes()
    seen: list[bool] = []

    def read() -> bytes:
        if not seen:  # another file takes the place of the one that was checked, and goes again
            os.rename(path, folder / "kept")
            path.write_bytes(flipped(folder / "kept"))
        content = path.read_bytes()
        seen.append(content == right)
        if len(seen) == 1:
            os.replace(folder / "kept", path)
        return content

    assert bundle.load(bundle.manifest.graphs["proposal"], read) == right
    assert seen == [False, True]


def test_what_keeps_changing_is_refused(folder: Path) -> None:
    bundle = open_bundle(folder)
    path = folder / "proposal.onnx.data"
    with pytest.raises(BundleError, match="keeps changing"):
        bundle.load(bundle.manifest.graphs["proposal"], lambda: (time.sleep(TICK), os.utime(path)))
    with pytest.raises(BundleError, match="can no longer be read"):
        bundle.load(bundle.manifest.graphs["proposal"], path.unlink)


@pytest.mark.parametrize("remembered", [False, True], ids=["cold", "remembered"])
def test_an_engine_that_loaded_other_bytes_is_not_run(
    folder: Path, remembered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = open_bundle(folder)
    if remembered:
        bundle = open_bundle(folder)
    path = folder / "image_encoder.onnx"

    def opened(*given: object) -> None:
        put_back(path, replace)

    monkeypatch.setattr(host_engines, "_open", opened)
    graph = bundle.manifest.graphs["image_encoder"]
    with pytest.raises(BundleError, match="changed after the bundle was opened"):
        host_engines.graph_engine(bundle, graph, choose("onnxruntime", "cpu")).run({})


def remembered_after(folder: Path, hashed: list[str]) -> bool:
    """Whether a second opening finds the hashes of the first."""
    open_bundle(folder)
    hashed.clear()
    open_bundle(folder)
    assert set(hashed) in (set(), set(files(folder)))
    return not hashed


def test_files_in_reach_of_others_are_hashed_every_time(
    folder: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for mode in (0o664, 0o646):
        for name in files(folder):
            (folder / name).chmod(mode)
        time.sleep(2 * TICK)
        assert not remembered_after(folder, hashed)
    for name in files(folder):
        (folder / name).chmod(0o644)
    with monkeypatch.context() as patch:
        patch.setattr(hash_memory, "SETTLED", 60e9)
        assert not remembered_after(folder, hashed)
    time.sleep(2 * TICK)
    for name, value in (("SMALLEST", 1 << 20), ("_file_system", lambda device: "nfs4")):
        with monkeypatch.context() as patch:
            patch.setattr(hash_memory, name, value)
            assert not remembered_after(folder, hashed)
    with monkeypatch.context() as patch:
        patch.setenv("VOCABSEG_CACHE_DIR", "")
        assert not remembered_after(folder, hashed)
    assert not record().exists()
    assert remembered_after(folder, hashed)


def test_a_record_that_others_could_write_is_not_believed(
    folder: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_bundle(folder)
    right = record().read_bytes()
    for damage in (lambda: record().chmod(0o660), lambda: record().write_bytes(right[:-9]), record().unlink):
        damage()
        hashed.clear()
        open_bundle(folder)
        assert sorted(hashed) == sorted(files(folder))
        assert record().read_bytes() == right
        assert record().stat().st_mode & 0o777 == 0o600
    hashed.clear()
    with monkeypatch.context() as patch:
        mine = os.geteuid()
        patch.setattr(os, "geteuid", lambda: mine + 1)
        open_bundle(folder)
    assert sorted(hashed) == sorted(files(folder))


def test_the_record_holds_the_last_files(folder: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hash_memory, "MOST", 2)
    open_bundle(folder)
    hashed.clear()
    open_bundle(folder)
    assert len(hashed) == len(files(folder)) - 2


def test_the_type_of_a_file_system_is_found() -> None:
    if not Path("/proc/self/mountinfo").exists():
        pytest.skip("needs Linux")
    assert hash_memory._file_system(os.stat("/proc/self").st_dev) == "proc"
    assert hash_memory._file_system(os.makedev(4095, 1048575)) is None


def test_a_bundle_of_unverified_files_is_checked_when_they_are_used(folder: Path) -> None:
    put_back(folder / "proposal.onnx.data", write)
    put_back(folder / "tokenizer.json", write)
    bundle: Bundle = open_bundle(folder, verify=False)
    with pytest.raises(BundleError, match="changed"):
        bundle.check_unchanged(bundle.manifest.graphs["proposal"])
    with pytest.raises(BundleError, match="changed"):
        bundle.read("tokenizer.json", Path.read_bytes)
    put_back(folder / "tensors.safetensors", write)
    with pytest.raises(BundleError, match="changed"):
        open_bundle(folder, verify=False)
