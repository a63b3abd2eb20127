"""The command line: one verb each for exporting, building, using, serving and measuring a model."""

import atexit
import errno
import gc
import os
import sys
from collections.abc import Iterable
from importlib import import_module
from typing import Annotated

import typer

from vocabseg.commands.terminal import printable
from vocabseg.runtime.errors import VocabsegError

VERBS = (
    "segment", "explain", "demo", "export", "build", "evaluate", "batch", "bench", "calibrate", "serve", "triton",
    "doctor",
)  # fmt: skip
# Verbs that go on where they were stopped, and the exit code of being stopped by Ctrl-C.
RESUMED = ("batch", "evaluate", "calibrate")
STOPPED = 130

# What the file system refuses is a matter of the user's files.
FILE_TROUBLE = (
    errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EROFS, errno.ENOSPC,
    errno.EDQUOT, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO, errno.EMFILE,
)  # fmt: skip


def _version(wanted: bool) -> None:
    if wanted:
        import vocabseg

        print(f"vocabseg {vocabseg.__version__}")
        raise typer.Exit


def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


def application(verbs: Iterable[str] = VERBS) -> typer.Typer:
    """The command line with those verbs, whose modules are imported."""
    app = typer.Typer(
        name="vocabseg",
        help="Open-vocabulary segmentation: from a PyTorch checkpoint to fast engines, with proven parity.",
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_options)
    for verb in verbs:
        module = import_module(f"vocabseg.commands.{verb}")
        app.command(verb, help=module.HELP, epilog=module.EXAMPLE)(getattr(module, verb))
    return app


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave it with one of the exit codes.

    0: success; 1: a fault of vocabseg; 2: input that cannot be used; 3: not all that was asked for came out, as the
    verb's help says; 130: stopped by Ctrl-C.
    """
    # Else Python looks three times through all objects for garbage as it ends: a tenth of the demo model's whole run.
    atexit.register(gc.freeze)
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--debug" in arguments:  # accepted before or after the verb
        arguments = ["--debug", *(argument for argument in arguments if argument != "--debug")]
    debug = "--debug" in arguments
    if len(arguments) == debug:
        arguments = ["--help"]
    try:
        code = typer.main.get_command(application(_needed(arguments))).main(
            arguments, prog_name="vocabseg", standalone_mode=False
        )
        if code == STOPPED:  # how typer tells of Ctrl-C, since 0.16
            raise KeyboardInterrupt
    except VocabsegError as error:
        if debug:
            raise
        code = _fail(str(error), 2)
    except (typer.Abort, KeyboardInterrupt):
        resumed = any(argument in RESUMED for argument in arguments)
        code = _fail("stopped; the same command goes on" if resumed else "stopped", STOPPED)
    except OSError as error:
        if debug:
            raise
        code = _fail_unexpected(error) if error.errno not in FILE_TROUBLE else _fail(_file_trouble(error), 2)
    except Exception as error:
        if debug:
            raise
        code = _fail_unexpected(error)
    sys.exit(code if isinstance(code, int) else 0)


def _needed(arguments: list[str]) -> Iterable[str]:
    """The verb that runs, so that no other's modules are imported; all of them for help and a shell's completion."""
    first = next((argument for argument in arguments if not argument.startswith("-")), None)
    return (first,) if first in VERBS and "_VOCABSEG_COMPLETE" not in os.environ else VERBS


def _file_trouble(error: OSError) -> str:
    what = "a file" if error.filename is None else repr(error.filename)
    return f"{what} cannot be used: {(error.strerror or str(error)).lower()}; check the path and its access rights"


def _fail_unexpected(error: Exception) -> int:
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # a usage error found by the option parser
        return _fail(error.format_message(), 2)
    text = " ".join(str(error).split()) or "no message"
    return _fail(f"{type(error).__name__}: {text} (a fault in vocabseg; run again with --debug for the traceback)", 1)


def _fail(message: str, code: int) -> int:
    print(f"vocabseg: {printable(' '.join(message.split()))}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
