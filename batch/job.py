"""The job: what is asked of every image, and its record in the output folder, which keeps other jobs out."""

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from vocabseg.runtime.bundle.folder import Bundle
from vocabseg.runtime.errors import OutputError
from vocabseg.runtime.files import atomic_write
from vocabseg.runtime.result.categories import Categories, checked_categories
from vocabseg.runtime.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from vocabseg.runtime.segmenter.segmenter import Segmenter

FILE = "batch.json"
LOCK = ".lock"
PLAN, SHARDS, WORK, SUMMARY = "plan", "shards", "work", "summary"
KINDS = ("labels", "rle")
FORMAT = 1


class JobRecord(msgspec.Struct, frozen=True):
    """batch.json: everything that the outputs depend on."""

    format: int
    bundle: str
    manifest: str
    engine: str
    classes: list[str]
    seen: list[bool] | None
    templates: list[str] | None
    write: list[str]
    vocabulary: dict[str, Any] | None = None  # if it has more than names, seen classes and templates

    @property
    def categories(self) -> Categories:
        """What the job's vocabulary says of its classes besides their names."""
        known = self.vocabulary
        if known is None:
            return Categories()
        other = bool(known["other"])
        names = self.classes[:-1] if other else self.classes
        return checked_categories(names, known["ids"], known["colours"], known["things"], other=other)

    def differences(self, other: "JobRecord") -> str:
        """What another record has different, in words; "" for an equal one."""
        found = []
        for field, name in NAMES.items():
            mine, its = getattr(self, field), getattr(other, field)
            if mine == its:
                continue
            if field in ("engine", "bundle", "write"):
                mine, its = (", ".join(value) if isinstance(value, list) else value for value in (mine, its))
                name += f" ({mine}, now {its})"
            elif field == "classes":
                name += f" ({len(mine)}, now {len(its)}, in this order)"
            found.append(name)
        return " and ".join(found)


# What the fields are called in an error.
NAMES = {
    "bundle": "bundle",
    "manifest": "bundle or settings",
    "engine": "engine",
    "classes": "classes",
    "seen": "seen classes",
    "templates": "prompt templates",
    "write": "kinds of output",
    "vocabulary": "synonyms, contrast, examples, ids or colours",
}


@dataclass(frozen=True)
class Job:
    """What a worker needs to know. `bundle` None is the demo model; all workers must have the engine `engine_key`.

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

    def open_bundle(self) -> Bundle:
        """The bundle with the settings applied, for a worker: the driver has checked the hashes."""
        from vocabseg.runtime.bundle.settings import open_adjusted

        return open_adjusted(self.bundle, self.settings, verify=False)

    def segmenter(self) -> "Segmenter":
        """The bundle, ready to run on this machine."""
        from vocabseg.runtime.segmenter.opening import open_segmenter

        return open_segmenter(self.open_bundle(), self.device, self.engine, self.precision)

    def choice_key(self, bundle: Bundle) -> str:
        """The engine that this machine would choose; raises EngineError and BundleError."""
        from vocabseg.runtime.engines.choose import choose

        return choose(self.engine, self.device, self.precision, bundle.manifest.graph_bytes, bundle).key

    def record(self, bundle: Bundle) -> JobRecord:
        """What the output folder keeps of the job."""
        names = self.vocabulary
        simple = names.plain and not names.categories.known
        return JobRecord(
            format=FORMAT,
            bundle=bundle.manifest.name,
            manifest=hashlib.sha256(msgspec.json.encode(bundle.manifest, order="sorted")).hexdigest(),
            engine=self.engine_key,
            classes=list(names.names),
            seen=None if names.seen is None else [bool(flag) for flag in names.seen],
            templates=None if names.templates is None else list(names.templates),
            write=sorted(self.write),
            vocabulary=None if simple else names.described(),
        )


def check_names(bundle: Bundle, vocabulary: Vocabulary) -> None:
    """Raise VocabularyError for names too long for the text encoder, without running it."""
    from vocabseg.runtime.text.encoder import PromptEncoder
    from vocabseg.runtime.text.prompts import with_templates

    encoder = PromptEncoder(bundle)
    for prompt in (bundle.manifest.prompts.query, bundle.manifest.prompts.region):
        encoder.check(vocabulary.spoken, with_templates(prompt, vocabulary.templates))


@contextmanager
def claimed(output: Path) -> Iterator[None]:
    """Make the folder if it is missing, and keep other drivers out of it; raises OutputError.

    The lock is the system's (flock), so it ends with the process that holds it, however that ends.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in output.iterdir()}
        if FILE not in names and names - {LOCK}:  # only the lock is left by a driver that died at once
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


def settle(output: Path, record: JobRecord) -> None:
    """Write batch.json, or compare with the one that is there; raises OutputError if it belongs to another job."""
    path = output / FILE
    if not path.exists():
        with atomic_write(path) as file:
            file.write(msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
        return
    different = read_record(output).differences(record)
    if different:
        raise OutputError(f"{output} holds results of other {different}: give the same again, or another --output")


def read_record(output: Path) -> JobRecord:
    """The output folder's batch.json; raises OutputError if it cannot be read."""
    path = output / FILE
    try:
        data: Any = msgspec.json.decode(path.read_bytes())
        if isinstance(data, dict) and data.get("format") != FORMAT:
            raise OutputError(f"{path} has format {data.get('format')!r}, not {FORMAT}: choose another folder")
        return msgspec.convert(data, JobRecord)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise OutputError(f"{path} cannot be read ({error}): choose another folder") from None
