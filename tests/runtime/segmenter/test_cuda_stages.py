"""The pipeline on an emulated GPU: the same results as on the host, whatever the order in which its streams run."""

import contextlib
import gc
import sys
import warnings

import numpy as np
import pytest

import vocabseg
from tests.attack.broken import bundle_with
from tests.bundles import bundle_for_case
from tests.cuda_emulation import stand_ins
from tests.cuda_emulation.library import emulation
from tests.fake_driver.machine import FATBIN, Machine, installed
from tests.golden import REPOSITORY, load_golden
from vocabseg.benchmarks.speed.variants import Timeline
from vocabseg.runtime.bundle.folder import demo_folder, open_bundle
from vocabseg.runtime.cuda.streams import Stream
from vocabseg.runtime.engines import device_engines
from vocabseg.runtime.engines.interface import Choice
from vocabseg.runtime.errors import DeviceMemoryError, EngineError, ImageError
from vocabseg.runtime.images import load_image
from vocabseg.runtime.kernels.device.face import CudaKernels
from vocabseg.runtime.segmenter import cuda_crops, cuda_stages
from vocabseg.runtime.segmenter import segmenter as segmenters
from vocabseg.runtime.segmenter.segmenter import Segmenter

CASE = "c_r50_tiny16_vild"
NAMES = ["dog", "grass", "house", "water"]
CHOICE = Choice(name="onnxruntime", device="cuda:0", precision="float32", reason="a test says so")


@contextlib.contextmanager
def emulated(bundle, machine=None, dtype=np.float32, text=None, faces=stand_ins.HostKernels, kernels=None):
    """A Segmenter on an emulated GPU; `.graphs` are its graphs by name, `.machine` is the GPU.

    `text` is a TextEmbedder that has seen the names, which saves time.
    """
    machine = machine or Machine()
    graphs = stand_ins.graphs(dtype)
    with pytest.MonkeyPatch.context() as patch, installed(machine, kernels):
        patch.setattr(device_engines, "open_graph", graphs)
        patch.setattr(cuda_stages, "CudaKernels", faces)
        patch.setattr(segmenters, "choose", lambda *_: CHOICE)
        segmenter = Segmenter(open_bundle(bundle))
        segmenter.graphs, segmenter.machine = graphs.opened, machine
        if text is not None:
            segmenter.text = text
        yield segmenter


def emulated_kernels(bundle, machine=None, **options):
    """The same with the kernels' own source, compiled for the CPU."""
    machine = machine or Machine()  # which tells what is missing, if anything is
    faces = lambda device: CudaKernels(device, FATBIN)  # noqa: E731
    return emulated(bundle, machine, faces=faces, kernels=emulation(), **options)


@pytest.fixture(scope="module")
def bundle():
    return demo_folder()


@pytest.fixture(scope="module")
def host(bundle):
    segmenter = Segmenter(open_bundle(bundle), engine="onnxruntime")
    segmenter.embed_names(vocabseg.Vocabulary(NAMES))
    return segmenter


@pytest.fixture(scope="module")
def text(host):
    return host.text


@pytest.fixture(scope="module")
def images():
    """Different sizes, and regions that no batch size divides."""
    image = load_image(REPOSITORY / "examples" / "scene.png")[:240, :320].copy()
    return [image, image[:, ::-1], image[20:180, 30:200], image[::2, ::2], image[:100], image[::-1]]


@pytest.fixture(scope="module")
def image(images):
    return images[0]


def assert_same(found, expected, scores=1e-4):
    """Labels as the contract wants them: equal at 99.99 % of the pixels where the best class leads clearly."""
    every = expected.class_scores()
    best = np.sort(every, axis=0)[-2:]
    clear = (best[1] - best[0] > 1e-4) if len(every) > 1 else np.ones(expected.labels.shape, bool)
    assert (found.labels == expected.labels)[clear].mean() >= 0.9999
    np.testing.assert_allclose(found.scores, expected.scores, atol=scores)
    assert found.classes == expected.classes
    np.testing.assert_array_equal(found.image, expected.image)


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_one_image_is_segmented_as_on_the_host(bundle, host, image, seed, text):
    with emulated(bundle, Machine(seed=seed), text=text) as segmenter:
        assert_same(segmenter(image, NAMES), host(image, NAMES))


@pytest.mark.parametrize("seed", [None, 3])
def test_the_kernels_source_itself(bundle, host, images, text, seed):
    """The CUDA kernels, compiled for the CPU, in the pipeline; everything else here has the host's kernels instead."""
    with emulated_kernels(bundle, Machine(seed=seed), text=text) as segmenter:
        assert_same(segmenter(images[0], NAMES), host(images[0], NAMES))
        for one, image in zip(segmenter.segment_many(images[1:3], NAMES), images[1:3], strict=True):
            assert_same(one, host(image, NAMES))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_regions_by_the_kernels_source(bundle, host, image, text, dtype):
    expected = host.propose(image)
    with emulated_kernels(bundle, text=text, dtype=dtype) as segmenter:
        found = segmenter.propose(image)
        if dtype is np.float32:
            np.testing.assert_array_equal(found.boxes, expected.boxes)
            np.testing.assert_allclose(found.embeddings, expected.embeddings, atol=1e-4)
        labels = found.classify(NAMES).labels
        assert np.mean(labels == expected.classify(NAMES).labels) > (0.95 if dtype is np.float16 else 0.9999)


def test_regions_are_those_of_the_host(bundle, host, image, text):
    expected = host.propose(image)
    with emulated(bundle, text=text) as segmenter:
        found = segmenter.propose(image)
        assert isinstance(found, vocabseg.Regions)
        for name in ("boxes", "valid", "areas", "image_boxes"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        for name in ("mask_logits", "query_embeddings", "embeddings"):
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-5)
        vocabulary = vocabseg.Vocabulary(NAMES, seen=["grass"])
        np.testing.assert_array_equal(found.voters, expected.voters)
        one, other = found.classify(vocabulary), expected.classify(vocabulary)
        for name in ("class_probabilities", "no_object"):
            np.testing.assert_allclose(getattr(one.evidence, name), getattr(other.evidence, name), atol=1e-4)
        assert_same(one, other)


def test_later_questions_to_a_result(bundle, host, image, text):
    with emulated(bundle, text=text) as segmenter:
        found, expected = segmenter(image, NAMES), host(image, NAMES)
        np.testing.assert_allclose(found.class_scores(), expected.class_scores(), atol=1e-4)
        np.testing.assert_array_equal(found.panoptic()[0], expected.panoptic()[0])
        assert [each.class_index for each in found.instances()] == [each.class_index for each in expected.instances()]


@pytest.mark.parametrize("settings", [
    ["ensemble.enabled=false"], ["ensemble.weight=0"], ["region.matting=true"], ["region.mask_fill=\"zero\""],
    ["region.expand_ratio=1.3"],
])  # fmt: skip
def test_settings_of_the_bundle(bundle, image, settings, text):
    from vocabseg.runtime.bundle.settings import open_adjusted

    adjusted = open_adjusted(bundle, settings)
    expected = Segmenter(adjusted, engine="onnxruntime")(image, NAMES)
    with emulated(bundle, text=text):
        other = Segmenter(adjusted)
        other.text = text
        assert_same(other(image, NAMES), expected)
        assert_same(next(iter(other.segment_many([image], NAMES))), expected)


@pytest.mark.parametrize("seed", [None, 0, 1, 2, 3])
def test_many_images_equal_one_call_each(bundle, images, seed, text, monkeypatch):
    monkeypatch.setattr(cuda_crops, "LARGEST_BATCH", 32)
    with emulated(bundle, Machine(seed=seed), text=text) as segmenter:
        alone = [segmenter(image, NAMES) for image in images]
        ran = len(segmenter.graphs["image_encoder"].batches)
        many = list(segmenter.segment_many(iter(images), NAMES))
        assert len(many) == len(images)
        for one, other in zip(many, alone, strict=True):
            assert_same(one, other)
        batches = segmenter.graphs["image_encoder"].batches[ran:]
        assert len(batches) < len(images)  # regions of several images share a batch
        assert batches.count(32) >= 2


def test_half_precision_graphs(bundle, host, image, text):
    expected = host(image, NAMES)
    with emulated(bundle, dtype=np.float16, text=text) as segmenter:
        found = segmenter(image, NAMES)
        assert np.mean(found.labels == expected.labels) > 0.95
        assert segmenter.propose(image).mask_logits.dtype == np.float32


def test_masks_of_ones_own(bundle, host, image, text):
    masks = np.zeros((3, *image.shape[:2]), bool)
    masks[0, : len(image) // 2] = True
    masks[1, len(image) // 2 :, :100] = True
    with emulated(bundle, text=text) as segmenter:
        found, expected = segmenter.regions(image, masks), host.regions(image, masks)
        np.testing.assert_array_equal(found.valid, [True, True, False])
        np.testing.assert_array_equal(found.boxes, expected.boxes)
        np.testing.assert_array_equal(found.classify(NAMES).labels, expected.classify(NAMES).labels)
        none = segmenter.regions(image, masks[:0]).classify(NAMES)
        assert (none.labels == -1).all()
        assert (segmenter.regions(image, masks[2:]).classify(NAMES).labels == -1).all()


def test_more_masks_than_a_batch_has_rows(bundle, host, image, monkeypatch, text):
    monkeypatch.setattr(cuda_crops, "LARGEST_BATCH", 8)
    rng = np.random.default_rng(0)
    masks = rng.random((30, *image.shape[:2])) > 0.5
    with emulated(bundle, text=text) as segmenter:
        found, expected = segmenter.regions(image, masks), host.regions(image, masks)
        np.testing.assert_allclose(found.embeddings, expected.embeddings, atol=1e-5)
        assert segmenter.graphs["image_encoder"].batches == [8, 8, 8, 8]
        assert_same(segmenter(image, NAMES), host(image, NAMES))
        assert_same(next(segmenter.segment_many([image], NAMES)), host(image, NAMES))


def test_crops_cut_on_the_device(bundle, host, image, text):
    expected = crops_of(host, image)
    with emulated(bundle, text=text) as segmenter:
        found = crops_of(segmenter, image)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def crops_of(segmenter, image):
    timeline = segmenter.stages.observer = Timeline(keep=True)
    segmenter.propose(image)
    segmenter.stages.observer = None
    return np.concatenate(timeline.kept["crops"])


# Streams


class Forgetful(Stream):
    """A stream that forgets to wait."""

    def wait(self, event):
        pass


@pytest.mark.parametrize("name", ["front", "back", "download"])
def test_a_forgotten_wait_is_noticed(bundle, host, images, name, text):
    """The emulation would show a missing wait: without those of one stream, results are wrong in some order."""
    expected = [host(image, NAMES).labels for image in images[:3]]

    def wrong(seed):
        try:
            with emulated(bundle, Machine(seed=seed), text=text) as segmenter:
                getattr(segmenter.stages, name).__class__ = Forgetful
                found = [result.labels for result in segmenter.segment_many(images[:3], NAMES)]
                found += [segmenter(image, NAMES).labels for image in images[:3]]
        except (EngineError, IndexError, ValueError, AssertionError, OverflowError, MemoryError):
            return True
        return any((one != other).mean() > 0.01 for one, other in zip(found, expected * 2, strict=True))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert any(wrong(seed) for seed in (None, *range(6)))


def test_nothing_but_labels_scores_flags_and_the_list_of_regions_comes_back(bundle, image, text):
    with emulated(bundle, text=text) as segmenter:
        segmenter(image, NAMES)
        down, up = segmenter.machine.copied_down, segmenter.machine.copied_up
        segmenter(image, NAMES)
        masks = segmenter.bundle.graph("proposal").outputs[0].shape[1]
        height, width = image.shape[:2]
        assert segmenter.machine.copied_down - down == 8 * height * width + 4 * (6 * masks + 1) + 4 * 3
        assert segmenter.machine.copied_up - up == image.nbytes


def test_buffers_keep_their_addresses(bundle, image, text):
    with emulated(bundle, text=text) as segmenter:
        for _ in range(4):
            segmenter(image, NAMES)
        list(segmenter.segment_many([image] * 6, NAMES))
        assert len(segmenter.graphs["proposal"].addresses) == 1
        assert len(segmenter.graphs["image_encoder"].addresses) == 1


# Images on the device


class OnDevice:
    """An array of another library."""

    def __init__(self, device, array, stream=None):
        self.shape = array.shape
        self._memory = device.empty(array.shape, array.dtype)
        own = device.stream()
        own.upload(self._memory, np.ascontiguousarray(array))
        if stream is None:
            own.synchronize()
        self.__cuda_array_interface__ = {**self._memory.__cuda_array_interface__, "stream": stream and own.handle}


def test_images_on_the_device_are_not_copied_up(bundle, host, images, text):
    with emulated(bundle, text=text) as segmenter:
        given = [OnDevice(segmenter.device, image, stream) for image in images for stream in (None, True)]
        list(segmenter.segment_many(images[:1], NAMES))
        before = segmenter.machine.copied_up
        assert_same(segmenter(given[0], NAMES), host(images[0], NAMES))
        for one, image in zip(segmenter.segment_many(given, NAMES), np.repeat(range(len(images)), 2), strict=True):
            assert_same(one, host(images[image], NAMES))
        assert segmenter.machine.copied_up == before
        wrong = OnDevice(segmenter.device, images[0].astype(np.float32))
        with pytest.raises(ImageError, match="dtype float32"):
            segmenter(wrong, NAMES)
        np.testing.assert_array_equal(segmenter.propose(given[0]).image, images[0])


# Memory


def test_out_of_memory_halves_the_batch_and_loses_nothing(bundle, host, images, text):
    with emulated(bundle, text=text) as segmenter:
        segmenter.engine("image_encoder").graph.out_of_memory_above = 7
        with pytest.warns(RuntimeWarning, match="out of memory.*at most") as told:
            results = list(segmenter.segment_many(images, NAMES))
        assert len(told) == 1
        for one, image in zip(results, images, strict=True):
            assert_same(one, host(image, NAMES))
        assert max(segmenter.graphs["image_encoder"].batches) <= 7
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert_same(segmenter(images[0], NAMES), host(images[0], NAMES))


def test_a_batch_of_one_that_does_not_fit_is_an_error(bundle, image, text):
    with emulated(bundle, text=text) as segmenter:
        segmenter.engine("image_encoder").graph.out_of_memory_above = 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(DeviceMemoryError, match="a batch of 1 crops"):
                segmenter(image, NAMES)
        segmenter.engine("image_encoder").graph.out_of_memory_above = None
        segmenter(image, NAMES)  # and nothing is left in a bad state


def test_results_give_way_when_memory_runs_out(bundle, host, image, text):
    with emulated(bundle, text=text) as segmenter:
        segmenter(image, NAMES)
        kept = [segmenter(image, NAMES) for _ in range(3)]
        machine = segmenter.machine
        machine.total = machine.used  # not a byte more than now
        more = segmenter(image[:, :-3], NAMES)
        expected = host(image, NAMES).class_scores()
        for result in kept:
            np.testing.assert_allclose(result.class_scores(), expected, atol=1e-4)
        assert more.class_scores().shape[1:] == image[:, :-3].shape[:2]


def test_what_results_keep_on_the_device_is_bounded(bundle, host, image, text):
    with emulated(bundle, text=text) as segmenter:
        first = segmenter.propose(image)
        segmenter.stages.store.limit = int(3.5 * first.arrays.stored.nbytes)
        regions = [first, *(segmenter.propose(image) for _ in range(6))]
        assert sum(each.arrays.stored.nbytes > 0 for each in regions) == 3
        for each in regions:  # those on the host come back when they are asked
            assert_same(each.classify(NAMES), host(image, NAMES))


def test_memory_stays_flat(bundle, images, text):
    with emulated(bundle, text=text) as segmenter:
        small = [image[:60, :80] for image in images]

        def used():
            return segmenter.device.memory(), len(segmenter.device.spare_events), segmenter.machine.streams

        for count in (100, 200):
            for _ in segmenter.segment_many((small[number % 6] for number in range(count)), NAMES):
                pass
            for _ in range(3):
                segmenter(small[0], NAMES)
            if count == 100:
                before = used()
        after = used()
        assert after[0]["managed"] == before[0]["managed"]
        assert after[0]["pinned"] == before[0]["pinned"]
        assert after[0]["active"] <= before[0]["active"] * 1.05
        assert after[1] < 400
        assert after[2] == before[2]


# Many images: order, errors, leaving early


def test_what_is_wrong_with_an_image_is_told_when_its_turn_comes(bundle, image, tmp_path, text):
    with emulated(bundle, text=text) as segmenter:
        results = segmenter.segment_many([image, image[:50], tmp_path / "none.png", image], NAMES)
        assert next(results).labels.shape == image.shape[:2]
        assert next(results).labels.shape == (50, image.shape[1])
        with pytest.raises(ImageError, match=r"none\.png"):
            next(results)


def test_what_is_wrong_with_an_image_ends_no_other_on_request(bundle, image, host, tmp_path, text, monkeypatch):
    with emulated(bundle, text=text) as segmenter:
        prepare = segmenter.stages.prepare

        def too_large(pixels):
            if pixels.shape[0] == 60:
                raise DeviceMemoryError("not enough free GPU memory")
            return prepare(pixels)

        monkeypatch.setattr(segmenter.stages, "prepare", too_large)
        images = [tmp_path / "none.png", image, image[:60], image[:50], tmp_path / "none.png"]
        outcomes = list(segmenter.segment_many(images, NAMES, on_error="yield"))
        kinds = [type(outcome).__name__ for outcome in outcomes]
        assert kinds == ["ImageError", "Result", "DeviceMemoryError", "Result", "ImageError"]
        assert_same(outcomes[1], host(image, NAMES))
        assert_same(outcomes[3], host(image[:50], NAMES))


def test_leaving_early_leaves_nothing_behind(bundle, host, images, text):
    with emulated(bundle, text=text) as segmenter:
        for _ in range(5):
            results = segmenter.segment_many(images * 3, NAMES)
            next(results)
            results.close()
        assert len(segmenter.stages.slots) < 20
        assert_same(segmenter(images[0], NAMES), host(images[0], NAMES))


def test_results_that_nobody_fetched_do_not_disturb_the_end_of_the_process(bundle, images, text, monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda event: told.append(str(event.exc_value)))
    with emulated(bundle, text=text) as segmenter:
        results = segmenter.segment_many(images * 3, NAMES)
        kept = next(results)
        segmenter.device.close()  # as at the end of the process
        del results
        gc.collect()
    assert kept.labels.shape == images[0].shape[:2]
    assert not told


def test_other_calls_between_results(bundle, host, images, text):
    with emulated(bundle, Machine(seed=5), text=text) as segmenter:
        for one, image in zip(segmenter.segment_many(images, NAMES), images, strict=True):
            assert_same(one, host(image, NAMES))
            assert_same(segmenter(images[2], NAMES[:2]), host(images[2], NAMES[:2]))


def test_threads_may_share_a_segmenter(bundle, host, images, text):
    from concurrent.futures import ThreadPoolExecutor

    with emulated(bundle, text=text) as segmenter, ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda image: segmenter(image, NAMES), images))
        for one, image in zip(found, images, strict=True):
            assert_same(one, host(image, NAMES))


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (200, 2)])
def test_extreme_shapes(bundle, host, shape, text):
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    with emulated(bundle, text=text) as segmenter:
        assert segmenter(picture, ["a", "b"]).labels.shape == shape


def test_a_published_network(monkeypatch):
    """A golden's bundle, whose text goes through the device too."""
    golden, meta = load_golden(CASE)
    bundle = bundle_for_case(CASE)
    vocabulary = vocabseg.Vocabulary(meta["classes"], meta["trainable_flag"])
    expected = Segmenter(open_bundle(bundle), engine="onnxruntime")(golden["image_0"], vocabulary)
    monkeypatch.setenv("VOCABSEG_CACHE_DIR", "")
    with emulated(bundle) as segmenter:
        assert_same(segmenter(golden["image_0"], vocabulary), expected)
        assert segmenter.graphs["text_encoder"].batches


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(
    ("graph", "output", "named"),
    [
        ("proposal", "mask_logits", "proposal network"),
        ("proposal", "query_embeddings", "proposal network"),
        ("image_encoder", "image_features", "image encoder"),
    ],
)
def test_numbers_that_are_none_are_told(tmp_path, image, text, graph, output, named, dtype):
    """Neither image waits for the check, which comes with the labels."""
    broken = bundle_with(tmp_path / "broken", graph, output, np.nan)
    message = f"the {named} gave no usable {output}"
    with emulated_kernels(broken, text=text, dtype=dtype) as segmenter:
        with pytest.raises(EngineError, match=message):
            segmenter(image, NAMES)
        with pytest.raises(EngineError, match=message):
            list(segmenter.segment_many([image, image], NAMES))
        regions = segmenter.propose(image)
        with pytest.raises(EngineError, match=message):
            _ = (regions.mask_logits, regions.query_embeddings, regions.embeddings)


def test_the_last_of_many_values_is_seen(bundle, image, text):
    with emulated_kernels(bundle, text=text) as segmenter:
        stages = segmenter.stages
        for count in (0, 1, 255, 70_001):
            values = np.zeros(count, np.float32)
            for wrong in (None, np.nan, np.inf, -np.inf) if count else (None,):
                if wrong is not None:
                    values[-1] = wrong
                with stages.turn():
                    flag = stages.device.empty((1,), np.int32)
                    stages.front.fill(flag, 0)
                    stages.kernels.find_unusable(stages._own(values), flag, stages.front)
                    assert int(flag.to_host(stages.front)[0]) == (wrong is not None)
