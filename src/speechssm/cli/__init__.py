"""The ``speechssm`` command. Commands only translate words into calls; the work is elsewhere."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Annotated, NoReturn

import typer

import speechssm
from speechssm.errors import SpeechSSMError, one_line

from . import batch, bench, bundles, doctor, engines, ext, generate, plan, stopping

app = typer.Typer(
    help="Continue speech from a prompt recording, for as long as asked.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(generate.generate)
app.command()(batch.batch)
app.command()(bundles.export)
app.command()(bundles.inspect)
app.command()(bundles.verify)
app.command()(engines.build)
app.command()(engines.explain)
app.command()(plan.plan)
app.command()(bench.bench)
app.command()(doctor.doctor)
app.add_typer(ext.app, name="ext")


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Continue speech from a prompt recording, for as long as asked."""
    if version:
        typer.echo(f"speechssm {speechssm.__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; an error of ours is one sentence and exit code 1, never a traceback."""
    stopping.listen()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name may be any bytes
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else 0)
    except SpeechSSMError as error:
        _fail(_with_notes(error, str(error)), 1)
    except typer.TyperException as error:
        # No message: the help text was asked for, or shown because there were no arguments.
        if message := error.format_message():
            _fail(f"{message.rstrip('.')}: see 'speechssm --help'.", error.exit_code)
        sys.exit(error.exit_code)
    except stopping.Stopped as error:
        word = "interrupted" if error.code == stopping.INTERRUPTED else "terminated"
        _fail(_with_notes(error, word), int(error.code or 0))
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", stopping.INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output went away; there is nobody left to tell.
        _forget_output()
        sys.exit(1)
    except MemoryError as error:
        _fail(
            _with_notes(error, "there is not enough memory: close other programs, or use a smaller bundle"), 1
        )
    except OSError as error:
        # Files are the business of audio, bundles and snapshots; what is left is the terminal.
        _forget_output()
        _fail(_with_notes(error, f"cannot go on: {error.strerror or error}"), 1)


def _with_notes(error: BaseException, message: str) -> str:
    """``message``, and what is known about the file that was being written."""
    return "; ".join([message, *getattr(error, "__notes__", ())])


def _forget_output() -> None:
    """Keep the interpreter from writing once more, at exit, to what can no longer be written to."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int) -> NoReturn:
    stopping.deaf()
    with contextlib.suppress(OSError):
        print(f"speechssm: {one_line(message)}", file=sys.stderr)
    sys.exit(code)
