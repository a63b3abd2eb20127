"""Profiles: the defaults cover every image that the settings allow, and the command line's are checked."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vocabseg.export.tensorrt.profiles import choose_profiles, default_profiles, describe_profiles
from vocabseg.runtime.bundle.folder import open_bundle
from vocabseg.runtime.bundle.plans import Range, profile_options
from vocabseg.runtime.bundle.sections import InputSection
from vocabseg.runtime.errors import ConfigurationError
from vocabseg.runtime.kernels.geometry import padded_size, resized_size

MANIFEST = open_bundle(None, verify=False).manifest


def manifest(min_size, max_size, divisor=32):
    spec = InputSection(min_size=min_size, max_size=max_size, divisor=divisor, mean=(0, 0, 0), std=(1, 1, 1))
    return msgspec.structs.replace(MANIFEST, input=spec)


SIZES = [(640, 2560), (192, 640), (640, 640), (100, 90), (800, 1333)]


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from(SIZES))
def test_every_image_fits_a_default_profile(height, width, sizes):
    spec = manifest(*sizes)
    shape = (1, 3, *padded_size(*resized_size(height, width, *sizes), 32))
    profiles = default_profiles(spec, "proposal", spec.graphs["proposal"])
    fitting = [
        profile
        for profile in profiles
        if all(a <= b <= c for a, b, c in zip(profile["image"].min, shape, profile["image"].max, strict=True))
    ]
    assert fitting, f"{shape} is in none of {profiles}"


def test_the_published_settings_are_tuned_for_photographs():
    spec = manifest(640, 2560)
    wide, high = default_profiles(spec, "proposal", spec.graphs["proposal"])
    assert wide == {"image": Range(min=[1, 3, 32, 640], opt=[1, 3, 640, 864], max=[1, 3, 640, 2560])}
    assert high == {"image": Range(min=[1, 3, 640, 32], opt=[1, 3, 864, 640], max=[1, 3, 2560, 640])}


def test_encoders_are_tuned_for_the_regions_of_one_image_and_for_chunks_of_prompts():
    (crops,) = default_profiles(MANIFEST, "image_encoder", MANIFEST.graphs["image_encoder"])
    queries = MANIFEST.graphs["proposal"].outputs[0].shape[1]
    assert crops["crops"].min[0] == 1
    assert queries <= crops["crops"].opt[0] < queries + 32
    assert crops["crops"].max[0] == 2 * crops["crops"].opt[0]
    (text,) = default_profiles(MANIFEST, "text_encoder", MANIFEST.graphs["text_encoder"])
    assert text["token_ids"].opt[0] == text["eot_index"].opt[0] == 64


def choose(*options):
    return choose_profiles(MANIFEST, MANIFEST.graphs, options)


def test_profiles_of_the_command_line_replace_those_of_their_graph():
    chosen = choose(
        "image_encoder:crops=1,8,16",
        "image_encoder:crops=17x3x64x64,64x3x64x64,100x3x64x64",
        "text_encoder:token_ids=1,2,3",
    )
    assert [profile["crops"].max for profile in chosen["image_encoder"]] == [[16, 3, 64, 64], [100, 3, 64, 64]]
    assert chosen["text_encoder"] == [
        {
            "token_ids": Range(min=[1, 24], opt=[2, 24], max=[3, 24]),
            "eot_index": Range(min=[1], opt=[2], max=[3]),  # the same dimension
        }
    ]
    assert chosen["proposal"] == default_profiles(MANIFEST, "proposal", MANIFEST.graphs["proposal"])


@pytest.mark.parametrize(
    ("option", "texts"),
    [
        ("crops=1,2,3", ("cannot be read", "GRAPH:INPUT=MIN,OPT,MAX")),
        ("", ("cannot be read",)),
        ("image_encodr:crops=1,2,3", ("no graph 'image_encodr'", "did you mean image_encoder")),
        ("image_encoder:crop=1,2,3", ("no input 'crop'", "did you mean crops")),
        ("image_encoder:crops=1,2", ("has 2 sizes",)),
        ("image_encoder:crops=1,2,3,4", ("has 4 sizes",)),
        ("image_encoder:crops=0,2,3", ("'0' is no size",)),
        ("image_encoder:crops=1,two,3", ("'two' is no size",)),
        ("image_encoder:crops=-1,2,3", ("'-1' is no size",)),
        ("image_encoder:crops=1,2,9999999999", ("is no size",)),
        ("image_encoder:crops=4,2,8", ("batch 4,2,8 must not decrease",)),
        ("image_encoder:crops=1x3x64,1x3x64,1x3x64", ("has 3 sizes", "batch x 3 x 64 x 64")),
        ("image_encoder:crops=1x3x64x32,1x3x64x64,1x3x64x64", ("has 32 where crops has 64",)),
        ("proposal:image=1x192x192,1x192x250,1x192x640", ("width must be a multiple of 32",)),
        ("proposal:image=192x192,192x256,192x640", ("has 2 sizes", "batch x height x width")),
    ],
)
def test_profiles_that_cannot_be_used(option, texts):
    with pytest.raises(ConfigurationError) as caught:
        choose(option)
    for text in texts:
        assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_profiles_in_the_form_of_options_are_the_same_profiles():
    chosen = choose("proposal:image=1x32x192,1x192x256,2x640x640", "proposal:image=1x64x64,1x64x64,1x64x64")
    for name, record in MANIFEST.graphs.items():
        options = profile_options(name, chosen[name], record.inputs)
        assert options[::2] == ["--profile"] * len(chosen[name])
        assert choose(*options[1::2])[name] == chosen[name]


def test_profiles_in_words():
    assert describe_profiles(choose("image_encoder:crops=1,8,16")["image_encoder"]) == [
        "crops 1x3x64x64 .. 16x3x64x64, tuned for 8x3x64x64"
    ]
