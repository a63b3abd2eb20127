"""Training scenes: rendered once into memory-mapped arrays, then cut into batches and CLIP crops with augmentation."""

import json
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np

from vocabseg.benchmarks.scenes.world import SURFACES, render_scene

Array = np.ndarray
Generator = np.random.Generator
SIZES = ((192, 256), (192, 192), (192, 256), (256, 192))  # of the scenes, in turn


@dataclass(frozen=True)
class Scenes:
    """Scenes of one size: images (n, H, W, 3), segmentation (n, H, W), and per scene rows (id, class, surface)."""

    images: Array
    segmentation: Array
    segments: list[list[tuple[int, int, int]]]


def load_scenes(folder: Path, count: int, seed: int, workers: int = 2) -> list[Scenes]:
    """The training split's first `count` scenes by size; rendered into `folder` where they are not there yet."""
    folder = folder / f"train-{seed}-{count}"
    groups = sorted(set(SIZES))
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for size in groups:
            indices = [index for index in range(count) if SIZES[index % len(SIZES)] == size]
            _render(folder, size, indices, seed, workers)
        (folder / "done").touch()
    result = []
    for size in groups:
        stem = folder / f"{size[0]}x{size[1]}"
        result.append(
            Scenes(
                np.load(f"{stem}-images.npy", mmap_mode="r"),
                np.load(f"{stem}-segmentation.npy", mmap_mode="r"),
                json.loads(Path(f"{stem}.json").read_text()),
            )
        )
    return [scenes for scenes in result if len(scenes.segments)]


def _render(folder: Path, size: tuple[int, int], indices: list[int], seed: int, workers: int) -> None:
    stem = folder / f"{size[0]}x{size[1]}"
    images = np.lib.format.open_memmap(f"{stem}-images.npy", "w+", np.uint8, (len(indices), *size, 3))
    segmentation = np.lib.format.open_memmap(f"{stem}-segmentation.npy", "w+", np.uint8, (len(indices), *size))
    segments = []
    tasks = [(seed, index, size) for index in indices]
    with ExitStack() as stack:
        drawn = map(_one, tasks)
        if workers > 1:
            # A forked child would inherit the locks of this process's threads.
            pool = stack.enter_context(ProcessPoolExecutor(workers, get_context("spawn")))
            drawn = pool.map(_one, tasks, chunksize=16)
        for place, (image, ids, rows) in enumerate(drawn):
            images[place], segmentation[place] = image, ids
            segments.append(rows)
    Path(f"{stem}.json").write_text(json.dumps(segments))


def _one(task: tuple[int, int, tuple[int, int]]) -> tuple[Array, Array, list[tuple[int, int, int]]]:
    seed, index, size = task
    scene = render_scene(seed, "train", index, size)
    rows = [
        (segment.id, segment.class_index, -1 if segment.surface is None else SURFACES.index(segment.surface))
        for segment in scene.segments
    ]
    return scene.image, scene.segmentation, rows


def network_batch(
    scenes: Scenes, chosen: Array, size: tuple[int, int], generator: Generator
) -> tuple[Array, Array, list[Array], list[Array]]:
    """A batch for the proposal network at `size` (multiples of 32), flipped and padded by chance.

    Returns images (B, H, W, 3) float32 0..255, padding (B, H, W) bool, and per image the classes (n,) and the masks
    (n, H / 4, W / 4) float32, the share of each cell that the segment covers.
    """
    h, w = size
    images = np.zeros((len(chosen), h, w, 3), np.float32)
    padding = np.ones((len(chosen), h, w), bool)
    classes, masks = [], []
    for place, index in enumerate(chosen):
        image, ids = np.asarray(scenes.images[index]), np.asarray(scenes.segmentation[index])
        if generator.random() < 0.5:
            image, ids = image[:, ::-1], ids[:, ::-1]
        rows, columns = h, w
        if generator.random() < 0.4:  # as at inference, where sizes are not multiples of 32
            rows, columns = h - int(generator.integers(0, 30)), w - int(generator.integers(0, 30))
        images[place, :rows, :columns] = jitter(
            cv2.resize(np.ascontiguousarray(image), (columns, rows), interpolation=cv2.INTER_AREA), generator
        )
        padding[place, :rows, :columns] = False
        present, covers = [], []
        for id_, class_index, _ in scenes.segments[index]:
            cover = np.zeros((h, w), np.float32)
            whole = np.ascontiguousarray(ids == id_).astype(np.float32)
            cover[:rows, :columns] = cv2.resize(whole, (columns, rows), interpolation=cv2.INTER_AREA)
            cover = cover.reshape(h // 4, 4, w // 4, 4).mean(axis=(1, 3))
            if cover.sum() >= 2:
                present.append(class_index)
                covers.append(cover)
        classes.append(np.array(present))
        masks.append(np.stack(covers))
    return images, padding, classes, masks


def jitter(image: Array, generator: Generator) -> Array:
    """Brightness and contrast a little off; hues stay, since they are what the classes are about."""
    gain, offset = generator.uniform(0.92, 1.08), generator.uniform(-8, 8)
    return np.clip(image.astype(np.float32) * np.float32(gain) + np.float32(offset), 0, 255)


def clip_crops(
    scenes: list[Scenes], count: int, size: int, fill: Array, generator: Generator
) -> tuple[Array, Array, Array]:
    """Crops as the runtime cuts them, with masks as blurred as a network's.

    Returns crops (count, size, size, 3) float32 0..255 filled with `fill` outside the mask, classes (count,) and
    surfaces (count,), -1 for backgrounds.
    """
    crops = np.zeros((count, size, size, 3), np.float32)
    classes, surfaces = np.zeros(count, np.int64), np.zeros(count, np.int64)
    weights = np.array([len(group.segments) for group in scenes], float)
    made = 0
    while made < count:
        group = scenes[generator.choice(len(scenes), p=weights / weights.sum())]
        index = int(generator.integers(len(group.segments)))
        scale = float(generator.uniform(0.65, 1.0))
        image, ids = np.asarray(group.images[index]), np.asarray(group.segmentation[index])
        h, w = round(image.shape[0] * scale), round(image.shape[1] * scale)
        image = jitter(cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA), generator)
        for id_, class_index, surface in group.segments[index]:
            if surface < 0 and generator.random() < 0.6:  # objects are harder than backgrounds
                continue
            mask = soften((ids == id_).astype(np.float32), (h, w), generator)
            crop = cut(image, mask, fill, size)
            if crop is None or made == count:
                continue
            crops[made] = crop[:, ::-1] if generator.random() < 0.5 else crop
            classes[made], surfaces[made] = class_index, surface
            made += 1
    return crops, classes, surfaces


def soften(mask: Array, size: tuple[int, int], generator: Generator) -> Array:
    """A mask (H, W) as a network at stride 4 would give it at `size`: coarse, with an edge that strays a little."""
    h, w = size
    coarse = cv2.resize(mask, (-(-w // 4), -(-h // 4)), interpolation=cv2.INTER_AREA) - 0.5
    strength = 0.12 if generator.random() < 0.7 else 0.45
    coarse += (generator.standard_normal(coarse.shape) * strength + generator.normal(0, 0.12)).astype(np.float32) * (
        cv2.GaussianBlur(np.abs(coarse), (0, 0), 1.2) < 0.47
    )
    return cv2.resize(coarse, (w, h), interpolation=cv2.INTER_LINEAR) > 0


def cut(image: Array, mask: Array, fill: Array, size: int) -> Array | None:
    """The mask's tight box of an image (h, w, 3), filled outside the mask, bicubic to size x size; None if empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) < 3 or len(columns) < 3:
        return None
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    filled = np.where(mask[box][..., None], image[box], fill.astype(np.float32))
    return cv2.resize(filled, (size, size), interpolation=cv2.INTER_CUBIC)
