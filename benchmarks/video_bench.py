"""`python -m vocabseg.benchmarks.video_bench`: what keeping region embeddings between frames saves, and what it costs.

The demo model on rendered scenes whose objects move. Each scene is segmented twice in turn by the same stages, with all
regions encoded and with reuse, for each strength of sensor noise. The table shows the share of regions that were not
encoded, the share of pixels with another label, mean IoU with both, and the ratio of times. With --memory N, N small
frames go through decoding, segmentation and encoding, and the process's memory is written down along the way.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from vocabseg.benchmarks.process_memory import process_memory
from vocabseg.benchmarks.scenes.moving import moving_scenes
from vocabseg.benchmarks.scenes.world import CLASSES, Scene
from vocabseg.benchmarks.speed.machine import describe_machine
from vocabseg.runtime.bundle.settings import open_adjusted
from vocabseg.runtime.files import atomic_write, make_folder
from vocabseg.runtime.segmenter.opening import load, open_segmenter
from vocabseg.runtime.segmenter.segmenter import Known, Segmenter
from vocabseg.video.muxer import VideoWriter
from vocabseg.video.recording import record
from vocabseg.video.reuse import MAX_CHANGE, MIN_IOU, EmbeddingReuse
from vocabseg.video.segmentation import segment_video
from vocabseg.video.source import Pictures, VideoStream

NOISES = (0.0, 2.0, 6.0)  # standard deviations, of 255
SMALL = (64, 96)  # height and width of the frames that memory is measured with
SERIES = 20  # points of the memory's series


@dataclass(frozen=True)
class ReuseOutcome:
    """Shares of 1, mean IoU in percent, seconds a frame (medians over the scenes)."""

    noise: float
    frames: int
    reused: float
    changed_labels: float
    miou_all: float
    miou_reuse: float
    seconds_all: float
    seconds_reuse: float


def measure(
    segmenter: Segmenter, scenes: int, frames: int, noise: float, min_iou: float, max_change: float
) -> ReuseOutcome:
    """Segment every moving scene twice, in turn with and without reuse."""
    tables = [np.zeros((len(CLASSES),) * 2, np.int64) for _ in range(2)]
    seconds: list[list[float]] = [[], []]
    changed = pixels = regions = reused = 0
    for index in range(scenes):
        drawn = list(moving_scenes(0, index, frames, sensor_noise=noise))
        reuse = EmbeddingReuse(segmenter.bundle.manifest.region.mask_threshold, min_iou, max_change)
        ways: list[Known] = [lambda proposals: None, reuse]
        found = [np.empty(0)] * 2
        for way in (0, 1) if index % 2 else (1, 0):
            began = time.perf_counter()
            results = segmenter.segment_sequence((scene.image for scene in drawn), CLASSES, ways[way])
            found[way] = np.stack([result.labels for result in results])
            seconds[way].append((time.perf_counter() - began) / frames)
            tables[way] += _confusion(drawn, found[way])
        changed, pixels = changed + int((found[0] != found[1]).sum()), pixels + found[0].size
        regions, reused = regions + reuse.regions, reused + reuse.reused
    ious, times = [_miou(table) for table in tables], [float(np.median(each)) for each in seconds]
    return ReuseOutcome(noise, scenes * frames, reused / regions, changed / pixels, *ious, *times)


def _confusion(scenes: Sequence[Scene], labels: np.ndarray) -> np.ndarray:
    truth = np.stack([scene.labels for scene in scenes]).astype(np.int64)
    cells = np.bincount((truth * len(CLASSES) + labels).ravel(), minlength=len(CLASSES) ** 2)
    return cells.reshape(len(CLASSES), -1)


def _miou(table: np.ndarray) -> float:
    there = table.sum(1) > 0
    return float(100 * (np.diag(table) / np.maximum(table.sum(0) + table.sum(1) - np.diag(table), 1))[there].mean())


def memory_series(segmenter: Segmenter, frames: int, folder: Path) -> list[tuple[int, int]]:
    """(frames written, bytes resident) along a video of so many frames: file -> decode -> segment -> draw -> encode."""
    clip = folder / "clip.mp4"
    _write_clip(clip, frames)
    series: list[tuple[int, int]] = []

    def note(what: str, done: int, total: int) -> None:
        if done % max(1, frames // SERIES) == 0:
            series.append((done, process_memory("VmRSS") or 0))
            print(f"{done:>8,} frames {series[-1][1] / 2**20:8.1f} MiB", flush=True)

    source = VideoStream(str(clip))
    names = ["red circle", "blue square", "grass", "sand", "sky"]
    record(segment_video(segmenter, source, names), source, folder / "out.mp4", folder / "out.jsonl", progress=note)
    return series


def _write_clip(path: Path, frames: int) -> None:
    """A video of small frames, in which one moving scene goes by again and again."""

    def pictures() -> Iterator[np.ndarray]:
        drawn = [cv2.resize(scene.image, SMALL[::-1]) for scene in moving_scenes(1, 0, min(frames, 200))]
        for index in range(frames):
            yield drawn[index % len(drawn)]

    with atomic_write(path) as file:
        writer = VideoWriter(file, path, 25.0)
        for frame in Pictures(pictures()):
            writer.write(frame.image, frame.seconds)
        writer.close()


def main() -> None:
    """Measure, print and write the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--scenes", type=int, default=12, help="0 to measure memory alone")
    parser.add_argument("--frames", type=int, default=40, help="of each scene")
    parser.add_argument("--min-iou", type=float, default=MIN_IOU)
    parser.add_argument("--max-change", type=float, default=MAX_CHANGE)
    parser.add_argument("--memory", type=int, default=0, metavar="N", help="frames to measure memory with")
    parser.add_argument("--output", type=Path, default=Path("video-bench"), help="the report's folder")
    options = parser.parse_args()
    make_folder(options.output)
    report: dict[str, object] = {
        "machine": describe_machine(),
        **{k: v for k, v in vars(options).items() if k != "output"},
    }
    segmenter = load(device="cpu")
    if options.scenes:
        print(
            f"{'noise':>5} {'reused':>8} {'other labels':>13} {'mIoU all':>9} {'mIoU reuse':>11} {'time':>6}",
            flush=True,
        )
        outcomes = []
        for noise in NOISES:
            one = measure(segmenter, options.scenes, options.frames, noise, options.min_iou, options.max_change)
            print(
                f"{noise:5.0f} {one.reused:8.1%} {one.changed_labels:13.3%} {one.miou_all:9.2f} {one.miou_reuse:11.2f} "
                f"{one.seconds_reuse / one.seconds_all:6.2f}",
                flush=True,
            )
            outcomes.append(asdict(one))
        report["reuse"] = outcomes
    if options.memory:
        # The networks, too, see frames of that size, so that so many take minutes.
        small = open_segmenter(open_adjusted(None, [f"input.min_size={min(SMALL)}"]), "cpu")
        with tempfile.TemporaryDirectory() as folder:
            series = memory_series(small, options.memory, Path(folder))
        report["memory"] = series
    (options.output / "video.json").write_text(json.dumps(report, indent=1) + "\n")
    print(options.output / "video.json")


if __name__ == "__main__":
    main()
