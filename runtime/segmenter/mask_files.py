"""Masks of one's own from files: NumPy archives, JSON of COCO's and SAM's kinds, folders of PNGs."""

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from vocabseg.runtime.errors import ImageError
from vocabseg.runtime.files import decode_json, open_regular, read_regular
from vocabseg.runtime.images import load_image
from vocabseg.runtime.masks import Size
from vocabseg.runtime.result.panoptic import rle_decode
from vocabseg.runtime.result.run_lengths import MaskSide, RunLengths, compressed

# Bytes of a file of masks, as it is and unpacked.
LARGEST_FILE = 2 << 30
# Pixels of an image's masks together: as logits in float32 they take four times as many bytes.
MOST_MASK_PIXELS = 1 << 30
ARRAYS = (".npz", ".npy")
FORMS = "give a .npz, a .json of COCO's or SAM's kind, or a folder of PNGs"


class _Entry(msgspec.Struct, frozen=True):
    """A mask: an annotation, a result, or one of SAM's automatic masks, which name no image."""

    segmentation: list[list[float]] | RunLengths
    image_id: int | str | None = None


class _Image(msgspec.Struct, frozen=True):
    id: int | str
    file_name: str
    height: MaskSide | None = None
    width: MaskSide | None = None


class _Annotations(msgspec.Struct, frozen=True):
    annotations: list[_Entry]
    images: list[_Image] = []


class MaskFiles:
    """The masks of one or several images, in a file or folder.

    .npz, .npy: (N, H, W) bool, uint8 (0 is outside), or float probabilities in 0..1. An .npz holds one array, one
    called "masks", or one for each image, called like it without its suffix.
    .json: COCO annotations or results with polygons or run lengths, compressed or not, and the masks of SAM's automatic
    generator. Images are found by file name, or by an id that is the name without its suffix.
    A folder: for the image x.jpg the PNGs of a folder x in it, or x.npz, x.npy or x.json; for a single image also the
    PNGs of the folder itself. A PNG is one mask: what is black is outside.
    """

    def __init__(self, path: str | Path, alone: bool = True):
        """`alone`: they are all for one image, unless they say which one each is for.

        Raises ImageError for a path without masks, and for JSON that is not of these kinds.
        """
        self.path, self._alone = Path(path), alone
        self._json: _Annotations | None = None
        self._by_id: dict[int | str | None, list[_Entry]] = {}
        kind = self.path.suffix.lower()
        if not self.path.exists():
            raise ImageError(f"there are no masks at {str(path)!r}: no such file or folder; {FORMS}")
        if not self.path.is_dir():
            if kind not in (".json", *ARRAYS):
                raise ImageError(f"masks cannot be read from {str(path)!r}: {FORMS}")
            self._json = _read_json(self.path) if kind == ".json" else None
            for entry in self._json.annotations if self._json else ():
                self._by_id.setdefault(entry.image_id, []).append(entry)

    def of(self, image: str, size: Size) -> np.ndarray:
        """The masks (N, H, W), bool or float, of an image of this name and size (H, W); at least one.

        Raises ImageError, in one line, where there are none or they do not fit.
        """
        if self.path.is_dir():
            masks = self._from_folder(Path(image).stem, size)
        elif self._json is not None:
            masks = self._from_json(self._json, image, size)
        else:
            masks = self._from_arrays(Path(image).stem)
        where = f"the masks in {str(self.path)!r}"
        if masks.ndim != 3 or not len(masks) or masks.shape[1:] != size:
            shape = " x ".join(map(str, masks.shape))
            raise ImageError(f"{where} are {shape}, where N x {size[0]} x {size[1]} are due, the size of {image!r}")
        _check_count(len(masks), size)
        if masks.dtype == np.uint8:
            return masks != 0
        if masks.dtype != bool and masks.dtype.kind != "f":
            raise ImageError(f"{where} have dtype {masks.dtype}: give bool, uint8, or float probabilities in 0..1")
        return masks

    def _from_folder(self, stem: str, size: Size) -> np.ndarray:
        own = self.path / stem
        for kind in (*ARRAYS, ".json"):
            file = own.with_name(stem + kind)
            if file.is_file():
                return MaskFiles(file).of(stem, size)
        found = _pictures(own) if own.is_dir() else _pictures(self.path) if self._alone else []
        if not found:
            raise ImageError(
                f"no masks of {stem!r} in {str(self.path)!r}: put PNGs into its folder {stem!r}, or {stem}.npz or "
                f"{stem}.json beside it{'; or, for this one image, PNGs into it' if self._alone else ''}"
            )
        return _stacked((load_image(file).max(axis=2) > 0 for file in found), found, size)

    def _from_arrays(self, stem: str) -> np.ndarray:
        name = repr(str(self.path))
        try:
            with open_regular(self.path) as file:
                if self.path.suffix.lower() == ".npz":
                    with zipfile.ZipFile(file) as archive:
                        if sum(part.file_size for part in archive.infolist()) > LARGEST_FILE:
                            raise ImageError(f"{name} unpacks to more than {LARGEST_FILE >> 30} GiB: give fewer masks")
                    file.seek(0)
                loaded: Any = np.load(file, allow_pickle=False)
                if isinstance(loaded, np.ndarray):
                    return loaded
                keys = [key for key in (stem, "masks") if key in loaded and (key == stem or self._alone)]
                if not keys and self._alone and len(loaded.files) == 1:
                    keys = loaded.files
                if not keys:
                    listed = ", ".join(map(repr, loaded.files[:4])) or "none"
                    raise ImageError(f"{name} has no array {stem!r} with masks of that image, but {listed}: name it so")
                return np.asarray(loaded[keys[0]])
        except ImageError:
            raise
        except Exception as error:  # a damaged or encrypted file can fail anywhere in zipfile, zlib or NumPy
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ImageError(f"{name} cannot be read ({reason}): save it with numpy.savez") from None

    def _from_json(self, content: _Annotations, image: str, size: Size) -> np.ndarray:
        name = repr(str(self.path))
        known = {identity for identity in self._by_id if identity is not None}
        entries = self._by_id.get(None, [])
        if known or content.images:
            entry = self._listed(content.images, image)
            if entry is not None and None not in (entry.height, entry.width) and (entry.height, entry.width) != size:
                raise ImageError(
                    f"{name} says that {image!r} is {entry.height} x {entry.width} pixels (height x width), but it is "
                    f"{size[0]} x {size[1]}: use the image that the masks were made from"
                )
            identity = self._result_id(known, image) if entry is None else entry.id
            entries = self._by_id.get(identity, [])
        elif not self._alone:
            raise ImageError(f"{name} does not say which image its masks are of: give a folder, with a file for each")
        if not entries:
            raise ImageError(f"{name} holds no mask of {image!r}: leave the image out, or add its masks")
        return _stacked(_decoded(entries, name, size), entries, size)

    def _listed(self, images: Sequence[_Image], image: str) -> _Image | None:
        """The image of that name, else that name without suffix, else the only one; None where none is listed."""
        last = [Path(one.file_name).name for one in images]
        stems = [Path(file).stem for file in last]
        for names, wanted in ((last, Path(image).name), (stems, Path(image).stem)):
            if names.count(wanted) == 1:
                return images[names.index(wanted)]
        if images and not (self._alone and len(images) == 1):
            raise ImageError(f"{str(self.path)!r} lists no image called {image!r}, or several: name it as listed there")
        return images[0] if images else None

    def _result_id(self, known: set[int | str], image: str) -> int | str:
        """The id in COCO results, which list no images: file names there end in it, as 000000000139.jpg does."""
        stem = Path(image).stem
        number = stem.rpartition("_")[2]
        for identity in (stem, int(number) if number.isascii() and number.isdecimal() and len(number) < 19 else None):
            if identity in known and identity is not None:
                return identity
        if self._alone and len(known) == 1:
            return next(iter(known))
        listed = ", ".join(map(repr, sorted(known, key=str)[:4]))
        raise ImageError(f"{str(self.path)!r} has no mask with the image_id {stem!r}, but of {listed}: name it so")


def _read_json(path: Path) -> _Annotations:
    try:
        data = read_regular(path, LARGEST_FILE)
        if data[:64].lstrip()[:1] == b"[":
            return _Annotations(annotations=decode_json(data, list[_Entry]))
        return decode_json(data, _Annotations)
    except ValueError as error:
        raise ImageError(f"{str(path)!r} holds no masks of COCO's or SAM's kind ({error}): {FORMS}") from None


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == ".png" and path.is_file())


def _decoded(entries: Sequence[_Entry], name: str, size: Size) -> Iterator[np.ndarray]:
    for number, entry in enumerate(entries):
        try:
            yield rle_decode(compressed(entry.segmentation, size))
        except ValueError as error:
            raise ImageError(
                f"{name}: mask {number} is one {error}: it does not fit the image, or is damaged"
            ) from None


def _check_count(count: int, size: Size) -> None:
    if count * size[0] * size[1] > MOST_MASK_PIXELS:
        raise ImageError(f"{count} masks of {size[0]} x {size[1]} pixels are too many: make the image smaller")


def _stacked(masks: Iterator[np.ndarray], sources: Sequence[Any], size: Size) -> np.ndarray:
    """Masks (H, W) bool as (N, H, W); `sources` are what each is made from."""
    _check_count(len(sources), size)
    stacked = np.zeros((len(sources), *size), bool)
    for target, mask, source in zip(stacked, masks, sources, strict=True):
        if mask.shape != size:
            shape = " x ".join(map(str, mask.shape))
            raise ImageError(
                f"the mask {str(source)[:200]!r} is {shape} pixels (height x width), and its image {size[0]} x "
                f"{size[1]}: give masks of the image's size"
            )
        target[:] = mask
    return stacked
