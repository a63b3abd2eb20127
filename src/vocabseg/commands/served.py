"""The options of a served model, which `vocabseg serve` and `vocabseg triton` share."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from vocabseg.commands.options import vocabulary_of
from vocabseg.runtime.errors import ConfigurationError

if TYPE_CHECKING:
    from vocabseg.runtime.text.vocabulary import Vocabulary
    from vocabseg.serving.model_repository.model_configuration import Serving
    from vocabseg.serving.protocol import RequestLimits


@dataclass(frozen=True)
class ServedModel:
    """How a bundle is served, as the options say."""

    name: Annotated[str, typer.Option(help="The model's name in the server.")] = "vocabseg"
    vocabularies: Annotated[
        list[str] | None,
        typer.Option("--vocabulary", help="NAME=NAMES or NAME=@FILE: requests may call it by name; may be repeated."),
    ] = None
    instances: Annotated[
        int,
        typer.Option(min=0, help="Processes (per GPU). Default: 1 per GPU, else as many as fit the cores."),
    ] = 0
    threads: Annotated[int, typer.Option(min=0, help="CPU cores of each process. Default: up to 4.")] = 0
    max_batch: Annotated[int, typer.Option(min=1, help="Most images run together.")] = 8
    delay: Annotated[float, typer.Option(min=0, help="Milliseconds a request may wait for others.")] = 2.0
    queue: Annotated[int, typer.Option(min=1, help="Requests that may wait; further ones are refused.")] = 128
    limits: Annotated[
        list[str] | None,
        typer.Option("--limit", help="NAME=NUMBER, such as max_names=100; docs/serving.md has all. May be repeated."),
    ] = None

    def serving(self, gpus: str, engine: str | None, precision: str | None) -> "Serving":
        """The settings of the server; raises ConfigurationError for values that cannot be used."""
        from vocabseg.runtime.threads import usable_cpus
        from vocabseg.serving.model_repository.model_configuration import Serving

        parts = [part.strip() for part in gpus.split(",") if part.strip()]
        if any(not part.isdecimal() for part in parts):
            raise ConfigurationError(f"--gpus {gpus!r}: give numbers of GPUs, such as 0,1")
        cores = usable_cpus()
        threads = self.threads or min(4, cores)
        return Serving(
            name=self.name,
            gpus=tuple(int(part) for part in parts),
            instances=self.instances or (1 if parts else max(1, cores // threads)),
            threads=threads,
            max_batch=self.max_batch,
            delay=self.delay / 1000,
            queue=self.queue,
            engine=engine,
            precision=precision,
            limits=self._limits(),
        )

    def named(self) -> "dict[str, Vocabulary]":
        """The vocabularies by name; raises ConfigurationError for one without a name."""
        found = {}
        for entry in self.vocabularies or ():
            name, equals, names = entry.partition("=")
            if not equals or not name.strip():
                raise ConfigurationError(f"--vocabulary {entry!r}: write NAME=cat,grass,sky or NAME=@FILE")
            found[name.strip()] = vocabulary_of(names)
        return found

    def _limits(self) -> "RequestLimits":
        from vocabseg.serving.protocol import RequestLimits

        known = RequestLimits.__struct_fields__
        values = {}
        for entry in self.limits or ():
            name, _, value = entry.partition("=")
            if name not in known or not value.isdecimal() or int(value) < 1:
                raise ConfigurationError(f"--limit {entry!r}: write one of {', '.join(known)}, then = and 1 or more")
            values[name] = int(value)
        return RequestLimits(**values)
