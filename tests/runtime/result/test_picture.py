"""Pictures of results: the right colours in the right places, and a legend for every size, number and script."""

import colorsys
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vocabseg.runtime.errors import OutputError
from vocabseg.runtime.result import colours as palette
from vocabseg.runtime.result.colours import DEUTERANOPIA, PROTANOPIA, TO_CONES, TO_LAB, class_colours
from vocabseg.runtime.result.lettering import fonts
from vocabseg.runtime.result.lettering.fonts import font_for
from vocabseg.runtime.result.lettering.legend import MAX_ENTRIES, THEMES, LegendEntry, _fitting, _shorten, legend_panel
from vocabseg.runtime.result.lettering.names import places
from vocabseg.runtime.result.picture import BAND, draw_overlay
from vocabseg.runtime.result.result import Result


def perceived(colours, eyes):
    values = colours / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return np.cbrt(np.clip(linear @ eyes.T, 0, 1) @ TO_CONES.T) @ TO_LAB.T


@pytest.mark.parametrize(("count", "closest"), [(12, 0.075), (24, 0.06)])
def test_colours_are_distinct_for_most_eyes(count, closest):
    for eyes in (np.eye(3), PROTANOPIA, DEUTERANOPIA):
        seen = perceived(class_colours(count), eyes)
        distances = [np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)]
        assert min(distances) > closest


@pytest.mark.parametrize(("count", "closest"), [(48, 0.08), (108, 0.06), (171, 0.05), (847, 0.014)])
def test_many_colours_are_as_distinct_as_there_is_room_for(count, closest):
    seen = perceived(class_colours(count), np.eye(3))
    distances = np.linalg.norm(seen[:, None] - seen, axis=2)[~np.eye(count, dtype=bool)]
    assert distances.min() > closest


def test_colours_depend_on_the_index_alone():
    many = class_colours(10_000)
    assert len(np.unique(many, axis=0)) == 10_000
    for count in (5, 24, 25, 108, 256, 257, 1024, 1025):
        np.testing.assert_array_equal(many[:count], class_colours(count))
    assert class_colours(0).shape == (0, 3)


def test_the_colours_that_are_written_down_follow_the_rule(monkeypatch):
    written = class_colours(256)
    monkeypatch.setattr(palette, "PALETTE", " ".join(palette.PALETTE.split()[:24]))
    np.testing.assert_array_equal(palette._far_apart.__wrapped__(256), written)


def test_flat_map_has_the_exact_colours_and_dark_borders():
    labels = np.zeros((40, 60), np.int32)
    labels[:, 30:] = 1
    labels[:, 50:] = -1
    drawn = draw_overlay(labels, ["a", "b"], legend=False)
    colours = class_colours(2)
    assert drawn.shape == (40, 60, 3)
    assert drawn.dtype == np.uint8
    assert (drawn[:, :29] == colours[0]).all()
    assert (drawn[:, 31:49] == colours[1]).all()
    assert (drawn[:, 29] == colours[0] // 2).all()
    assert (drawn[:, 30] == colours[1] // 2).all()


def test_photo_shines_through_and_stays_untouched_without_a_label():
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (30, 40, 3), np.uint8)
    before = photo.copy()
    labels = np.zeros((30, 40), np.int32)
    labels[:, 20:] = -1
    drawn = draw_overlay(labels, ["a"], photo, legend=False)
    np.testing.assert_array_equal(photo, before)
    np.testing.assert_array_equal(drawn[:, 20:], photo[:, 20:])
    tinted = drawn[:, :19].reshape(-1, 3).astype(float)
    assert np.abs(tinted.mean(0) - class_colours(1)[0]).max() < 75
    brightness = photo[:, :19].reshape(-1, 3) @ (0.299, 0.587, 0.114)
    assert np.corrcoef(tinted.mean(1), brightness)[0, 1] > 0.99
    flat = draw_overlay(labels, ["a"], photo, legend=False, opacity=1)
    assert (flat[:, :19] == class_colours(1)[0]).all()


def degrees(colours):
    """Hues of (n, 3) colours in degrees, as HSV has them."""
    return np.array([360 * colorsys.rgb_to_hsv(*colour)[0] for colour in colours / 255])


@pytest.mark.parametrize(("count", "most"), [(24, 3), (150, 9)])  # the tint of the palest of many has few levels
def test_the_hue_in_the_picture_is_that_of_the_legend(count, most):
    colours = class_colours(count)
    labels = np.arange(count, dtype=np.int32).repeat(8)[None].repeat(80, 0)
    photos = {
        "black": (0, 0, 0), "white": (255, 255, 255), "red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255),
        "yellow": (255, 255, 0), "noise": np.random.default_rng(0).integers(0, 256, (*labels.shape, 3)),
    }  # fmt: skip
    for name, photo in photos.items():
        image = np.broadcast_to(np.array(photo, np.uint8), (*labels.shape, 3))
        drawn = draw_overlay(labels, list(map(str, range(count))), image, legend=False)
        for index, colour in enumerate(colours):
            inner = np.unique(drawn[:, 8 * index + 3 : 8 * index + 5].reshape(-1, 3), axis=0)
            away = np.abs(degrees(inner) - degrees(colour[None]))
            assert np.minimum(away, 360 - away).max() < most, (name, colour, inner)


def test_styles():
    labels = np.zeros((60, 60), np.int32)
    labels[:, 30:] = 1
    photo = np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)
    colours = class_colours(2)
    flat = draw_overlay(labels, ["a", "b"], photo, legend=False, style="flat")
    np.testing.assert_array_equal(flat, draw_overlay(labels, ["a", "b"], legend=False))
    outline = draw_overlay(labels, ["a", "b"], photo, legend=False, style="outline")
    assert (outline[:, 28:30] == colours[0]).all()
    assert (outline[:, 30:32] == colours[1]).all()
    np.testing.assert_array_equal(outline[:, :28], photo[:, :28])
    np.testing.assert_array_equal(outline[:, 32:], photo[:, 32:])


def test_names_stand_in_their_own_regions_and_only_where_there_is_room():
    rows, columns = np.mgrid[:400, :600]
    labels = np.where(np.hypot(rows - 200, columns - 150) < 120, 1, 0).astype(np.int32)
    labels[372:, 540:] = 2  # room for a short name in small letters
    labels[:6] = 3
    labels[100:300, 590:] = -1
    found = {place.name: place for place in places(labels, ["meadow", "cat, feline", "disc", "sky"])}
    assert found.keys() == {"meadow", "cat, feline", "disc"}
    assert np.hypot(found["cat, feline"].x - 150, found["cat, feline"].y - 200) < 8
    for place in found.values():
        half = round(font_for(place.name, place.size).getlength(place.name) / 2)
        box = labels[place.y - place.size // 2 : place.y + place.size // 2, place.x - half : place.x + half]
        assert (box == labels[place.y, place.x]).all(), place
    assert found["meadow"].size > found["disc"].size
    labels[labels == 1] = 0
    labels[190:220, 140:190] = 1
    assert [place.name for place in places(labels, ["", "cat, feline", "\n", "sky"])] == ["cat"]
    narrow = np.repeat(np.arange(40, dtype=np.int32), 6)[None].repeat(240, 0)
    assert list(places(narrow, [f"class {index}" for index in range(40)])) == []


def test_names_are_readable_on_any_colour():
    for colour, photo in (((255, 255, 200), 255), ((0, 0, 80), 0), ((128, 128, 128), 128)):
        labels, image = np.zeros((200, 300), np.int32), np.full((200, 300, 3), photo, np.uint8)
        options = {"legend": False, "colours": np.array([colour], np.uint8)}
        plain = draw_overlay(labels, ["cat"], image, **options)
        named = draw_overlay(labels, ["cat"], image, named=True, **options)
        changed = (plain != named).any(2)
        assert 0.002 < changed.mean() < 0.03
        written = named[changed].mean(1)
        assert written.max() - written.min() > 200  # letters and halo
        np.testing.assert_array_equal(named[:60], plain[:60])


def test_bands_leave_no_seam(monkeypatch):
    rng = np.random.default_rng(1)
    height = 2 * BAND + 17
    labels = np.repeat(np.repeat(rng.integers(-1, 5, (height // 20 + 1, 30)), 20, 0), 20, 1)[:height].astype(np.int32)
    photo = rng.integers(0, 256, (*labels.shape, 3), np.uint8)
    names = list("abcde")
    banded = draw_overlay(labels, names, photo)
    monkeypatch.setattr("vocabseg.runtime.result.picture.BAND", 10_000)
    np.testing.assert_array_equal(draw_overlay(labels, names, photo), banded)


@pytest.mark.parametrize(
    ("size", "place"),
    [((1, 1), "right"), ((48, 64), "right"), ((427, 640), "right"), ((640, 200), "right"), ((100, 900), "below")],
)
@pytest.mark.parametrize("count", [1, 7, 10_000])
def test_legend_goes_beside_or_below(size, place, count):
    labels = np.random.default_rng(2).integers(0, count, size).astype(np.int32)
    drawn = draw_overlay(labels, [f"class {i}" for i in range(count)], np.full((*size, 3), 90, np.uint8))
    factor = -(-320 // max(size))
    height, width = size[0] * factor, size[1] * factor
    if place == "right":
        assert drawn.shape[0] == height
        assert width < drawn.shape[1] <= width + max(0.36 * width, 132) + 60
        panel = drawn[:, width:]
    else:
        assert drawn.shape[1] == width
        assert drawn.shape[0] > height
        panel = drawn[height:]
    background = np.array(THEMES["light"].background, np.uint8)
    assert (panel != background).any()
    for edge in (panel[0], panel[-1], panel[:, 0], panel[:, -1]):  # nothing is clipped
        assert (edge == background).all()


def test_legend_is_sorted_by_area_and_counts_the_rest():
    entries = [LegendEntry(f"class {i}", (i, i, i), 1 / 40) for i in range(40)]
    shown = _shorten(entries, MAX_ENTRIES)
    assert len(shown) == MAX_ENTRIES
    assert shown[:-1] == entries[:19]
    assert shown[-1] == LegendEntry("21 more", None, pytest.approx(21 / 40))
    assert _shorten(entries[:20], 20) == entries[:20]
    # the swatch of the larger class stands above
    labels = np.zeros((400, 400), np.int32)
    labels[:100] = 1
    panel = draw_overlay(labels, ["much", "little"])[:, 400:].astype(int)
    rows = [int(np.flatnonzero((panel == colour).all(2).any(1))[0]) for colour in class_colours(2).astype(int)]
    assert rows[0] < rows[1]


def test_long_names_are_shortened_to_the_room_there_is():
    name = "a class name that is far too long " * 40
    for room in (1, 30, 100, 150.5):
        text, font = _fitting(name, room, 14)
        assert text.endswith("…")
        assert font.getlength(text) <= room or text == "…"
    assert _fitting("cat", 100, 14)[0] == "cat"
    assert _fitting("two\nlines\tand \x07 bell", 1000, 14)[0] == "two lines and bell"


def test_dark_theme():
    panel = draw_overlay(np.zeros((400, 400), np.int32), ["cat"], theme="dark")[:, 400:]
    assert (panel[0] == THEMES["dark"].background).all()


def test_wrong_options():
    with pytest.raises(OutputError, match="theme 'pink'; choose one of light, dark"):
        draw_overlay(np.zeros((2, 2), np.int32), ["a"], theme="pink")
    with pytest.raises(OutputError, match=r"opacity 60 is outside 0\.\.1"):
        draw_overlay(np.zeros((2, 2), np.int32), ["a"], opacity=60)
    with pytest.raises(OutputError, match="style 'filled'; choose one of overlay, flat, outline"):
        draw_overlay(np.zeros((2, 2), np.int32), ["a"], style="filled")


@settings(max_examples=80, deadline=None)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=8), st.integers(1, 400), st.integers(1, 400))
def test_any_name_and_any_size(names, height, width):
    entries = [LegendEntry(name, (10, 20, 30), 1 / len(names)) for name in names]
    panel, below = legend_panel(height, width, entries, THEMES["light"])
    assert panel.shape[1 if below else 0] == (width if below else height)


def test_names_in_any_script(monkeypatch):
    names = ["gato", "трава", "γάτα", "猫", "고양이", "قطة", "חתול", "बिल्ली", "🐈‍⬛", "\ud800", "\U0010ffff", "", " "]
    labels = np.arange(len(names), dtype=np.int32).repeat(40)[:, None].repeat(400, 1)
    first = draw_overlay(labels, names)
    monkeypatch.setattr(fonts, "_installed", lambda: ())
    assert draw_overlay(labels, names).shape[0] == first.shape[0]


def test_another_font_steps_in_where_pillows_lacks_a_character(tmp_path, monkeypatch):
    if not any("dejavusans." in str(path).lower() for path in fonts._installed()):
        pytest.skip("DejaVu Sans is not installed")
    assert fonts._has(None, "a")
    assert not fonts._has(None, "א")
    assert fonts.font_for("cat", 14).getname()[0] == "Aileron"
    assert fonts.font_for("חתול", 14).getname()[0] == "DejaVu Sans"
    (tmp_path / "dejavusans.ttf").write_bytes(b"no font at all")
    monkeypatch.setattr(fonts, "_installed", lambda: (tmp_path / "dejavusans.ttf",))
    assert fonts.font_for("猫", 14).getname()[0] == "Aileron"


def test_picture_can_be_saved(tmp_path):
    drawn = draw_overlay(np.zeros((5, 5), np.int32), ["cat"])
    Image.fromarray(drawn).save(tmp_path / "x.png")
    assert drawn.flags.c_contiguous


def test_a_class_has_one_colour_in_every_picture_and_label_map(tmp_path):
    names = [f"class {index}" for index in range(108)]
    colours = class_colours(108)
    generator = np.random.default_rng(0)
    for _ in range(10):
        present = generator.permutation(108)[:48]
        labels = present[np.arange(48 * 64).reshape(48, 64) % 48].astype(np.int32)
        drawn = draw_overlay(labels.repeat(5, 0).repeat(5, 1), names, legend=False)
        np.testing.assert_array_equal(drawn[2::5, 2::5], colours[labels])
        Result(labels, np.ones((48, 64), np.float32), names).save_labels(tmp_path / "labels.png")
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "labels.png").convert("RGB")), colours[labels])
