"""The job: what is asked of every image, and the output folder's record of it, with which no other job is mixed."""

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from vocabseg.runtime.bundle.folder import Bundle
from vocabseg.runtime.errors import OutputError
from vocabseg.runtime.files import atomic_write
from vocabseg.runtime.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from vocabseg.runtime.segmenter.segmenter import Segmenter

FILE = "batch.json"
LOCK = ".lock"
PLAN, SHARDS, WORK, SUMMARY = "plan", "shards", "work", "summary"
KINDS = ("labels", "rle")
FORMAT = 1


class Record(msgspec.Struct, frozen=True):
    """batch.json: everything that the outputs depend on. Its fields other than `format` are compared word by word."""

    format: int
    bundle: str
    manifest: str
    engine: str
    classes: list[str]
    seen: list[bool] | None
    templates: list[str] | None
    write: list[str]


# How the fields are called in an error.
_SPOKEN = {
    "bundle": "bundle",
    "manifest": "bundle or settings",
    "engine": "engine",
    "classes": "classes",
    "seen": "seen classes",
    "templates": "prompt templates",
    "write": "kinds of output",
}


@dataclass(frozen=True)
class Job:
    """What a worker is told. `bundle` None is the demo model; `engine_key` names the engine that all workers must have.

    `write` holds "labels" (PNG label maps), "rle" (run lengths in Parquet) or both.
    """

    output: Path
    vocabulary: Vocabulary
    bundle: Path | None = None
    settings: tuple[str, ...] = ()
    engine: str | None = None
    device: str = "auto"
    precision: str | None = None
    write: tuple[str, ...] = KINDS
    threads: int = 1
    engine_key: str = ""

    def opened_bundle(self, verify: bool = True) -> Bundle:
        """The bundle with the settings applied; raises BundleError and ConfigurationError."""
        from vocabseg.runtime.bundle.settings import open_adjusted

        return open_adjusted(self.bundle, self.settings, verify)

    def segmenter(self, verify: bool = True) -> "Segmenter":
        """The bundle made ready to run on this machine."""
        from vocabseg.runtime.segmenter.segmenter import Segmenter

        return Segmenter(self.opened_bundle(verify), self.device, self.engine, self.precision)

    def choice_key(self) -> str:
        """The engine that this machine would choose; raises EngineError and BundleError."""
        from vocabseg.runtime.engines.choose import choose

        bundle = self.opened_bundle(verify=False)
        return choose(self.engine, self.device, self.precision, bundle.manifest.graph_bytes, bundle).key

    def with_engine(self, key: str) -> "Job":
        return replace(self, engine_key=key)

    def record(self) -> Record:
        """What the output folder keeps of the job."""
        manifest = self.opened_bundle(verify=False).manifest
        names = self.vocabulary
        return Record(
            format=FORMAT,
            bundle=manifest.name,
            manifest=hashlib.sha256(msgspec.json.encode(manifest, order="sorted")).hexdigest(),
            engine=self.engine_key,
            classes=list(names.names),
            seen=None if names.seen is None else [bool(flag) for flag in names.seen],
            templates=None if names.templates is None else list(names.templates),
            write=sorted(self.write),
        )


def check_names(bundle: Bundle, vocabulary: Vocabulary) -> None:
    """Raise VocabularyError for names too long for the text encoder, without running it."""
    from vocabseg.runtime.bundle.folder import TOKENIZER
    from vocabseg.runtime.bundle.manifest import PromptSpec
    from vocabseg.runtime.text.prompts import check_length
    from vocabseg.runtime.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_file(bundle.path(TOKENIZER))
    for prompt in (bundle.manifest.prompts.query, bundle.manifest.prompts.region):
        if vocabulary.templates is not None:
            prompt = PromptSpec(graph=prompt.graph, kind="custom", templates=list(vocabulary.templates))
        for name in vocabulary.names:
            check_length(name, prompt, tokenizer)


@contextmanager
def claimed(output: Path) -> Iterator[None]:
    """Make the folder where it is missing, and keep other drivers off it; raises OutputError.

    The lock is the system's (flock), so it ends with the process that holds it, however that ends.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        if any(output.iterdir()) and not (output / FILE).exists() and not (output / LOCK).exists():
            raise OutputError(f"{output} holds other files: give an empty or a new folder")
        lock = (output / LOCK).open("ab")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OutputError(f"cannot write in {str(output)!r}: {reason}; choose another --output") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(f"another vocabseg batch works on {output}: wait for it, or stop it") from None
        except OSError:  # a file system without locks
            pass
        yield


def settle(output: Path, record: Record) -> None:
    """Write batch.json, or compare with the one that is there; raises OutputError where it is of another job."""
    path = output / FILE
    if not path.exists():
        with atomic_write(path) as file:
            file.write(msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
        return
    earlier = read_record(output)
    different = [field for field in _SPOKEN if getattr(earlier, field) != getattr(record, field)]
    if different:
        what = " and ".join(dict.fromkeys(_described(field, earlier, record) for field in different))
        raise OutputError(f"{output} holds results of other {what}: give the same again, or another --output")


def read_record(output: Path) -> Record:
    """The output folder's batch.json; raises OutputError for one that cannot be read."""
    path = output / FILE
    try:
        data: Any = msgspec.json.decode(path.read_bytes())
        if isinstance(data, dict) and data.get("format") != FORMAT:
            raise OutputError(f"{path} has format {data.get('format')!r}, not {FORMAT}: take another folder")
        return msgspec.convert(data, Record)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise OutputError(f"{path} cannot be read ({error}): take another folder") from None


def _described(field: str, earlier: Record, now: Record) -> str:
    if field in ("engine", "bundle", "write"):
        old, new = getattr(earlier, field), getattr(now, field)
        old, new = (", ".join(value) if isinstance(value, list) else value for value in (old, new))
        return f"{_SPOKEN[field]} ({old}, now {new})"
    if field == "classes":
        return f"classes ({len(earlier.classes)}, now {len(now.classes)}, in this order)"
    return _SPOKEN[field]
