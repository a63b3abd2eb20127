"""Files of weights -> tensors by name. No code that a file may hold is ever run."""

import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vocabseg.runtime.errors import CheckpointError


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint; floats become float32.

    Read are .safetensors, torch.save files (.pth, .pt; the tensors plain, or under "model" or "state_dict"; names
    without the prefixes of wrappers, see bare_name), and
    TorchScript archives such as OpenAI's CLIP, of which only the tensors are read. Raises CheckpointError for a missing
    or damaged file, and for one whose tensors cannot be read without running code.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}: no such file")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for wrapper in ("model", "state_dict"):
        if isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    tensors: dict[str, Tensor] = {}
    for key, value in content.items():
        if isinstance(value, Tensor):
            name = bare_name(str(key))
            if name in tensors:
                raise CheckpointError(f"{path} holds {name} twice, once as {key}: save one model's tensors alone")
            tensors[name] = value
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors by name: give a state_dict, plain or under 'model'")
    return {key: value.detach().float() if value.is_floating_point() else value for key, value in tensors.items()}


def bare_name(key: str) -> str:
    """A tensor's name without what wrappers put before it: DataParallel, torch.compile, Lightning."""
    key = key.replace("._orig_mod.", ".")
    while key.startswith(("module.", "_orig_mod.", "model.")):
        key = key.partition(".")[2]
    return key


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors ({_first_line(error)}): copy it again") from None


def _read_torch(path: Path) -> Mapping[str, Any]:
    try:
        root = _torchscript_root(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols: nothing that a user could act on
            content = _read_torchscript(path, root) if root else torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_unsafe(path, str(error))) from None
    except Exception as error:  # a damaged file can fail anywhere in zipfile, pickle or torch
        reason = _first_line(error).split(". ")[0] if isinstance(error, RuntimeError) else "not a file of torch.save"
        raise CheckpointError(f"{path} cannot be read as a checkpoint ({reason}): copy it again") from None
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state_dict: give tensors by name")
    return content


def _unsafe(path: Path, message: str) -> str:
    """One line instead of torch's long advice, which suggests to switch the protection off."""
    found = re.search(r"GLOBAL (\S+)", message)
    what = f"holds code ({found[1]}), which is not run" if found else "is no plain state_dict"
    return f"{path} {what}: save its tensors alone, with torch.save(model.state_dict(), path) or as safetensors"


def _first_line(error: BaseException | str) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _torchscript_root(path: Path) -> str | None:
    """The folder inside a TorchScript archive, or None for any other file."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        constants = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/constants.pkl")]
    return constants[0].removesuffix("constants.pkl") if constants else None


def _read_torchscript(path: Path, root: str) -> dict[str, Tensor]:
    """The tensors of a TorchScript archive by attribute path, without its code."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{root}data.pkl") as file:
        module = _TensorUnpickler(file, archive, f"{root}data/").load()
    return dict(_walk(module, ""))


class _Inert:
    """Takes the place of every class of the archive; keeps the attributes and does nothing."""

    def __init__(self, *arguments: Any):
        self.attributes: Any = {}

    def __setstate__(self, state: Any) -> None:
        self.attributes = state


_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _TensorUnpickler(pickle.Unpickler):
    """Builds tensors, containers and inert objects; any other name in the file is an error."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, folder: str):
        super().__init__(file)
        self.archive, self.folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Inert
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _strided
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module == "torch.jit._pickle" and name.startswith("build_"):
            return list
        raise pickle.UnpicklingError(f"Unsupported global: GLOBAL {module}.{name}")

    def persistent_load(self, identifier: Any) -> Tensor:
        kind, dtype, key, _device, length = identifier
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"unknown storage {kind!r}")
        data = bytearray(self.archive.read(f"{self.folder}{key}"))
        return torch.frombuffer(data, dtype=dtype, count=length) if length else torch.empty(0, dtype=dtype)


def _strided(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_rest: Any) -> Tensor:
    return storage.as_strided(size, stride, offset).clone()


def _walk(module: Any, prefix: str) -> list[tuple[str, Tensor]]:
    found: list[tuple[str, Tensor]] = []
    attributes = getattr(module, "attributes", None)
    for name, value in (attributes if isinstance(attributes, dict) else {}).items():
        if isinstance(value, Tensor):
            found.append((f"{prefix}{name}", value))
        elif isinstance(value, _Inert):
            found += _walk(value, f"{prefix}{name}.")
    return found
