"""Files of weights: every layout that is read, and every file that is refused in one line."""

import io
import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vocabseg.export.checkpoint.file import read_state_dict
from vocabseg.runtime.errors import CheckpointError

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2]), "c": torch.tensor(3.0)}


def assert_tensors(found: dict[str, torch.Tensor]) -> None:
    assert found.keys() == TENSORS.keys()
    for key, value in TENSORS.items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], value)


@pytest.mark.parametrize(
    "content",
    [
        TENSORS,
        {"model": TENSORS, "iteration": 7, "optimizer": {"state": {}}},
        {"state_dict": TENSORS},
        {f"module.{key}": value for key, value in TENSORS.items()},
        {key: value.half() if value.is_floating_point() else value for key, value in TENSORS.items()},
        {key: nn.Parameter(value) if value.is_floating_point() else value for key, value in TENSORS.items()},
    ],
    ids=["plain", "model", "state_dict", "module", "half", "parameters"],
)
def test_layouts(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    assert_tensors(read_state_dict(path))


def test_older_file_format(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=False)
    assert_tensors(read_state_dict(path))


def test_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(TENSORS, path)
    assert_tensors(read_state_dict(path))


class Small(nn.Module):
    """What a TorchScript archive can hold: parameters, buffers, children, half precision and strides."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.turned = nn.Parameter(torch.arange(6.0).reshape(3, 2).T.half())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x) + self.turned.float().sum()


@pytest.fixture
def archive(tmp_path: Path) -> tuple[Path, nn.Module]:
    torch.manual_seed(0)
    module = Small().eval().requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(module, torch.zeros(1, 3, 8, 8)).save(tmp_path / "archive.pt")
    return tmp_path / "archive.pt", module


def test_torchscript_archive(archive: tuple[Path, nn.Module]) -> None:
    path, module = archive
    found, expected = read_state_dict(path), module.state_dict()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value.float() if value.is_floating_point() else value)


class Code:
    """Touches a file when it is unpickled."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("place", ["value", "beside", "pickle"])
def test_code_is_refused_and_not_run(tmp_path: Path, place: str) -> None:
    path, target = tmp_path / "weights.pth", tmp_path / "ran"
    if place == "pickle":
        path.write_bytes(pickle.dumps({"a": Code(target)}, protocol=2))
    else:
        torch.save({"a": Code(target)} if place == "value" else {"model": TENSORS, "hook": Code(target)}, path)
    with pytest.raises(CheckpointError, match=r"holds code .*system.* not run") as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value)
    assert not target.exists()


def test_code_in_a_torchscript_archive_is_refused(tmp_path: Path, archive: tuple[Path, nn.Module]) -> None:
    path, target = tmp_path / "evil.pt", tmp_path / "ran"
    with zipfile.ZipFile(archive[0]) as source, zipfile.ZipFile(path, "w") as changed:
        for name in source.namelist():
            data = source.read(name)
            changed.writestr(name, pickle.dumps(Code(target), protocol=2) if name.endswith("/data.pkl") else data)
    with pytest.raises(CheckpointError, match=r"holds code .*system"):
        read_state_dict(path)
    assert not target.exists()


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("empty.pth", b"", "cannot be read"),
        ("junk.pth", b"junk, and more junk", "cannot be read"),
        ("cut.pth", saved(TENSORS)[:700], "cannot be read"),
        ("junk.safetensors", b"junk, and more junk", "cannot be read as safetensors"),
        ("list.pth", saved([torch.zeros(2)]), "holds a list"),
        ("tensor.pth", saved(torch.zeros(2)), "holds a Tensor"),
        ("none.pth", saved({"epoch": 3}), "no tensors by name"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=words) as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        read_state_dict(tmp_path / "none.pth")
