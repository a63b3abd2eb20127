"""The command line: one verb each for exporting, building, using, serving and measuring a model."""

import errno
import sys
from typing import Annotated

import typer

from vocabseg.commands import batch, bench, build, calibrate, doctor, evaluate, export, segment, serve, triton
from vocabseg.commands.terminal import printable
from vocabseg.runtime.errors import VocabsegError

app = typer.Typer(
    name="vocabseg",
    help="Open-vocabulary segmentation: from a PyTorch checkpoint to fast engines, with proven parity.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# What the file system refuses is a matter of the user's files.
FILE_TROUBLE = (
    errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EROFS, errno.ENOSPC,
    errno.EDQUOT, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO, errno.EMFILE,
)  # fmt: skip

for module in (segment, export, build, evaluate, batch, bench, calibrate, serve, triton, doctor):
    verb = module.__name__.rpartition(".")[2]
    app.command(verb, help=module.HELP, epilog=module.EXAMPLE)(getattr(module, verb))


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"vocabseg {version('vocabseg')}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Run the command line: exit code 0 for success, 2 for input that cannot be used, 1 for a fault of its own."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--debug" in arguments:  # accepted before or after the verb
        arguments = ["--debug", *(argument for argument in arguments if argument != "--debug")]
    debug = "--debug" in arguments
    try:
        code = typer.main.get_command(app).main(arguments, prog_name="vocabseg", standalone_mode=False)
    except VocabsegError as error:
        if debug:
            raise
        code = _fail(str(error), 2)
    except (typer.Abort, KeyboardInterrupt):
        code = _fail("stopped", 130)
    except OSError as error:
        if debug:
            raise
        code = _fail_unexpected(error) if error.errno not in FILE_TROUBLE else _fail(_file_trouble(error), 2)
    except Exception as error:
        if debug:
            raise
        code = _fail_unexpected(error)
    sys.exit(code if isinstance(code, int) else 0)


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
