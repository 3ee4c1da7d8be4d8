"""The program: runs a command and gives every outcome its exit status; nothing else escapes."""

from __future__ import annotations

# nothing but what is loaded anyway, so that an interrupt meets ``main`` as early as can be
import os
import sys

from weightguard_cli.status import CLEAN, INCOMPLETE, INTERRUPTED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    import click

DEBUG = "WEIGHTGUARD_DEBUG"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; see ``weightguard_cli.status``."""
    try:
        _prepare_streams()
        return _run(arguments)
    except KeyboardInterrupt:
        return _interrupted()
    except BrokenPipeError:
        from weightguard_cli.output import abandon_output

        abandon_output()
        return CLEAN
    except Exception as error:  # noqa: BLE001 - the last line of defence: no traceback for users
        if os.environ.get(DEBUG) == "1":
            import traceback

            traceback.print_exc()
        _say(_failure(error))
        return INCOMPLETE


def _run(arguments: Sequence[str] | None) -> int:
    import click

    from weightguard_cli.group import cli

    # click's own main maps a closed pipe to 1, which would read as "findings"
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with cli.make_context("weightguard", given) as context:
            status = cli.invoke(context)
    except click.exceptions.Exit as ending:
        return ending.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return INCOMPLETE
    except click.ClickException as error:
        _say(_usage(error))
        return INCOMPLETE
    except click.Abort:
        return _interrupted()
    return status if isinstance(status, int) else CLEAN


def _prepare_streams() -> None:
    """Keep a narrow encoding, a warning of some library, from breaking or cluttering output."""
    import io
    import warnings

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if not sys.warnoptions and os.environ.get(DEBUG) != "1":
        warnings.simplefilter("ignore")


def _interrupted() -> int:
    _say("interrupted")
    return INTERRUPTED


def _usage(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    hint = f" Try '{context.command_path} --help'." if context is not None else ""
    return error.format_message() + hint


def _failure(error: Exception) -> str:
    ours = sys.modules.get("weightguard.errors")
    if ours is not None and isinstance(error, ours.CheckpointError):
        return _refusal(error)
    if ours is not None and isinstance(error, ours.WeightguardError):
        return str(error)
    if isinstance(error, MemoryError):
        return "not enough memory: a checkpoint of many tensors needs a few kB for each of them"
    if isinstance(error, OSError):
        named = f": {error.filename!r}" if error.filename else ""
        return f"{error.strerror or error}{named}"
    return (
        f"internal error, {type(error).__name__}: {error} "
        f"(this is a bug: please report it with what {DEBUG}=1 shows)"
    )


def _refusal(error: Exception) -> str:
    found = getattr(error, "finding", None)
    if found is None:
        return str(error)
    place = "" if found.location.file is None else f" in {found.location.file[:200]!r}"
    at = "" if found.location.offset is None else f" at byte {found.location.offset}"
    return f"{found.rule}{place}{at}: {found.message}. {found.remedy}"


def _say(message: str) -> None:
    import contextlib

    import click

    from weightguard_cli.escape import escape_text

    with contextlib.suppress(OSError):
        click.echo(f"weightguard: {escape_text(message)}", err=True)
