"""The model repository on disk, its configuration and the environment's checks; no server is started."""

import json
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import msgspec
import pytest

from vocabseg.runtime.bundle.folder import demo_folder, open_bundle
from vocabseg.runtime.bundle.manifest import TokenizerSpec
from vocabseg.runtime.bundle.settings import open_adjusted
from vocabseg.runtime.errors import ConfigurationError, EngineError, OutputError
from vocabseg.runtime.text.vocabulary import Vocabulary
from vocabseg.serving.model_repository.model_configuration import Serving, model_configuration, warm_up_classes
from vocabseg.serving.model_repository.writer import write_repository
from vocabseg.serving.protocol import INPUTS, OUTPUTS, RequestLimits
from vocabseg.serving.server import environment


def test_a_repository_holds_all_a_server_needs(tmp_path: Path) -> None:
    opened = open_bundle(None)
    model = write_repository(opened, tmp_path / "models", Serving(name="seg"), {"road": Vocabulary(["road", "sky"])})
    assert model == tmp_path / "models" / "seg"
    copy = open_bundle(model / "1" / "bundle")
    assert copy.manifest == opened.manifest
    named = json.loads((model / "1" / "vocabularies.json").read_text())
    assert named["road"]["names"] == ["road", "sky"]
    assert named[""]["names"] == opened.manifest.vocabulary
    assert (model / "warmup" / "classes").read_bytes() == warm_up_classes()
    compile((model / "1" / "model.py").read_text(), "model.py", "exec")
    text = (tmp_path / "models" / "README.md").read_text()
    assert "docker compose up" in text
    assert "{" not in text.replace("{name}", "{")[:200]
    assert json.loads((tmp_path / "models" / "grafana.json").read_text())["panels"]
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_what_starts_it_restricts_it_and_puts_a_proxy_before_it(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed: pip install pyyaml")
    limits = RequestLimits(max_pixels=1_000_000, max_image_bytes=9)
    write_repository(open_bundle(None), tmp_path / "models", Serving(name="seg", gpus=(0,), limits=limits))
    services = yaml.safe_load((tmp_path / "models" / "compose.yaml").read_text())["services"]
    *_, command = services["triton"]["command"]
    key = "model-repository,shared-memory,trace,logging:vocabseg-key=$$key"
    assert f" --http-restricted-api={key} --grpc-restricted-protocol={key}" in command
    assert services["triton"]["ports"] == ["127.0.0.1:8002:8002"]
    assert all(port.startswith("127.0.0.1:") for port in services["proxy"]["ports"])
    assert "max_size 7000000" in (tmp_path / "models" / "Caddyfile").read_text()


def test_the_bundle_is_copied_with_its_settings_or_stands_beside(tmp_path: Path) -> None:
    import onnx

    folder = tmp_path / "bundle"
    shutil.copytree(demo_folder(), folder)
    (folder / ".vocabseg-0.part").mkdir()
    opened = open_adjusted(folder, ["region.mask_threshold=0.4"])
    copy = write_repository(opened, tmp_path / "models", Serving(name="a")) / "1" / "bundle"
    for path in (path for root in (folder, copy) for path in root.rglob("*") if path.is_file()):
        assert path.stat().st_nlink == 1, f"{path} has hard links, which onnx takes for an attack"
    onnx.load(folder / "proposal.onnx")
    assert not (copy / ".vocabseg-0.part").exists()
    assert open_bundle(copy).manifest.region.mask_threshold == 0.4
    assert open_bundle(folder).manifest.region.mask_threshold == 0.5
    changed = write_repository(opened, tmp_path / "changed", Serving(name="b"), beside=True) / "1" / "bundle"
    assert not changed.is_symlink()
    assert open_bundle(changed).manifest.region.mask_threshold == 0.4
    beside = write_repository(open_bundle(folder), tmp_path / "beside", Serving(name="c"), beside=True) / "1" / "bundle"
    assert beside.resolve() == folder
    assert open_bundle(beside).manifest == open_bundle(folder).manifest
    with pytest.raises(OutputError, match="lies in the bundle"):
        write_repository(opened, folder / "models", Serving())
    assert not (folder / "models").exists()


def test_nothing_is_overwritten_and_nothing_half_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_bundle(None)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(OutputError, match="exists already"):
        write_repository(opened, tmp_path / "taken", Serving())
    with pytest.raises(OutputError, match="does not exist"):
        write_repository(opened, tmp_path / "none" / "models", Serving())
    with pytest.raises(ConfigurationError, match="model name"):
        write_repository(opened, tmp_path / "models", Serving(name="../up"))

    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vocabseg.serving.model_repository.writer.warm_up_classes", full)
    with pytest.raises(OutputError, match="no space left"):
        write_repository(opened, tmp_path / "models", Serving())
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_what_a_bundles_tokenizer_needs_is_installed_for_the_server(tmp_path: Path) -> None:
    opened = open_bundle(None)
    assert opened.manifest.packages == ()
    spec = TokenizerSpec(file="tokenizer.json", kind="huggingface")
    region = msgspec.structs.replace(opened.manifest.prompts.region, tokenizer=spec)
    prompts = msgspec.structs.replace(opened.manifest.prompts, region=region)
    other = opened.with_manifest(msgspec.structs.replace(opened.manifest, prompts=prompts))
    write_repository(other, tmp_path / "models", Serving(name="seg"))
    assert 'pip install "/tmp/vocabseg[cpu,tokenizers]"' in (tmp_path / "models" / "README.md").read_text()
    more = other.manifest.packages
    assert set(environment.requirements("onnxruntime", more)) - set(environment.requirements("onnxruntime")) == {
        f"tokenizers=={version('tokenizers')}"
    }
    assert environment.environment_folder("onnxruntime", more) != environment.environment_folder("onnxruntime")
    with pytest.raises(
        EngineError, match=r"no_such_package is not installed here: pip install 'vocabseg\[no_such_package"
    ):
        environment.requirements("onnxruntime", ["no_such_package"])


def test_the_configuration_says_what_was_asked_for() -> None:
    text = model_configuration(
        Serving(
            gpus=(0, 3), instances=2, max_batch=4, delay=0.005, queue=9, patience=1.5, limits=RequestLimits(max_names=7)
        )
    )
    for line in (
        "instance_group { kind: KIND_GPU count: 2 gpus: [ 0, 3 ] }", "max_batch_size: 4",
        "max_queue_delay_microseconds: 5000", "max_queue_size: 9", "default_timeout_microseconds: 1500000",
        'parameters { key: "max_names" value { string_value: "7" } }',
    ):  # fmt: skip
        assert line in text
    assert all(f'name: "{name}"' in text for name in (*INPUTS, *OUTPUTS))
    assert "instance_group { kind: KIND_CPU count: 3 }" in model_configuration(Serving(instances=3))


@pytest.mark.parametrize(
    ("what", "value", "message"),
    [
        ("sys.platform", "darwin", "the server's wheel is for Linux"),
        ("platform.machine", lambda: "aarch64", "the server's wheel is for Linux"),
        ("platform.libc_ver", lambda: ("glibc", "2.31"), "the server needs glibc 2.35"),
        ("platform.libc_ver", lambda: ("", ""), "the server needs glibc 2.35"),
        ("sys.version_info", (3, 14, 0), "the server knows 3.11, 3.12, 3.13"),
    ],
)
def test_a_machine_that_cannot_run_the_server_is_told_so(
    monkeypatch: pytest.MonkeyPatch, what: str, value: object, message: str
) -> None:
    if sys.platform != "linux":
        pytest.skip("the server runs on Linux only")
    monkeypatch.setattr(f"vocabseg.serving.server.environment.{what}", value)
    with pytest.raises(EngineError, match=message) as failed:
        environment.check_platform()
    assert "container" in str(failed.value)


def test_an_environment_that_cannot_be_made_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VOCABSEG_SERVING_DIR", str(tmp_path))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    try:
        environment.check_platform()
    except EngineError as error:
        pytest.skip(str(error))
    said: list[str] = []
    with pytest.raises(EngineError, match=r"downloading the server .* failed") as failed:
        environment.prepare("onnxruntime", lambda what, done, total: said.append(what))
    assert "\n" not in str(failed.value)
    assert not any(path.is_dir() for path in tmp_path.iterdir())
    assert said[-1].startswith("downloading the server")
