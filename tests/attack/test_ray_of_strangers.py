"""The Ray of a batch on this machine: who can reach it, and what is left when a part of it is killed."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.attack.sockets import sockets, tree
from tests.batch.runs import SLOW, run, wait_for_end, wait_for_shards
from vocabseg.benchmarks.scale.processes import kill, outputs, started, write_images

pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'vocabseg[batch]'")
if find_spec("ray") is None:  # importing it here would keep this process from starting a private one
    pytest.skip("ray is not installed: pip install 'vocabseg[batch]'", allow_module_level=True)

# Asks a Ray to run a function; Ray itself would take the machine's own address for the loopback's.
STRANGER = """
import os, sys
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
import ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level=50)
except (ConnectionError, ray.exceptions.RayError) as error:
    print("kept out", flush=True)
else:
    print("in", flush=True)
os._exit(0)
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for path in write_images(folder, 20):
        for copy in range(100):  # more than are done before the strangers have come
            shutil.copy(path, folder / f"{path.stem}-{copy}.png")
    return folder


def options(photos: Path, output: Path) -> tuple[object, ...]:
    return (photos, "-c", "grass, sky", "-o", output, "--shard-size", 3, "--workers", 1, "--threads", 1, *SLOW)


def named(pids: list[int], name: str) -> int:
    (found,) = [pid for pid in pids if Path(f"/proc/{pid}/comm").read_text().strip() == name]
    return found


def stranger(address: str, **variables: str) -> str:
    given = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", STRANGER, address]
    done = subprocess.run(command, capture_output=True, text=True, env={**given, **variables}, timeout=180)
    return done.stdout.strip() or done.stderr


def test_no_stranger_reaches_it_and_nothing_of_it_outlives_its_killed_driver(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with started(*options(photos, output)) as process:
        wait_for_shards(process, output, 1)
        pids = tree(process.pid)
        found = sockets(pids)
        assert {"gcs_server", "raylet", "ray::MapWorker("} <= {socket.process for socket in found}
        assert sockets([process.pid]), "the driver itself listens, too"
        assert [socket for socket in found if not socket.local] == []
        (port,) = {socket.port for socket in found if socket.process == "gcs_server"}
        variables = Path(f"/proc/{named(pids, 'raylet')}/environ").read_bytes().split(b"\0")
        (key,) = [entry[15:].decode() for entry in variables if entry.startswith(b"RAY_AUTH_TOKEN=")]
        assert len(key) == 64
        # With the key, the same call gets in: it is the key that keeps strangers out.
        given = (
            {"RAY_AUTH_MODE": "disabled"},
            *({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": one} for one in ("0" * 64, key)),
        )
        with ThreadPoolExecutor(len(given)) as pool:
            answers = list(pool.map(lambda one: stranger(f"127.0.0.1:{port}", **one), given))
        assert answers == ["kept out", "kept out", "in"]
        assert process.poll() is None, "the run was over before the strangers came"
        pids = tree(process.pid)
        kill(process.pid)
        process.communicate()
    wait_for_end(pids)


@pytest.mark.parametrize("victim", ["raylet", "gcs_server"])
def test_a_killed_part_of_ray_ends_the_run_with_a_line(photos: Path, tmp_path: Path, victim: str) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(photos.iterdir())[:60]:
        shutil.copy(path, few / path.name)
    output = tmp_path / "out"
    with started(*options(few, output)) as process:
        wait_for_shards(process, output, 2)
        pids = tree(process.pid)
        kill(named(pids, victim))
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.splitlines()[-1] == (
        f"vocabseg: Ray's process {victim} has died: run the command again, what is committed stays"
    )
    wait_for_end(pids)
    if victim != "raylet":
        return
    done = run(*options(few, output))
    assert done.returncode == 0, done.stderr
    assert "going on from there" in done.stderr
    assert len([name for name in outputs(output) if name.endswith(".png") and "/labels/" in name]) == 60


def test_a_ray_that_cannot_be_closed_any_more_is_not_started() -> None:
    program = "import ray; from vocabseg.batch.local_ray import private; private().__enter__()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=180)
    assert done.returncode == 1
    assert "EngineError: this program has imported Ray already" in done.stderr.splitlines()[-1]
