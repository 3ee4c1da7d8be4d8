"""The command group; a command's module is imported when the command is asked for."""

from __future__ import annotations

from importlib import import_module

import click

COMMANDS = (
    "audit", "manifest", "verify", "repair", "sign", "gate", "diff", "calibrate", "ternarize",
    "inspect", "inject", "rules",
)  # fmt: skip
"""Each is a function of the same name in the module of the same name."""


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports them one by one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands' names in the order of their use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, or None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        command = getattr(import_module(f"weightguard_cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command


def _show_version(ctx: click.Context, _parameter: click.Parameter, asked: bool) -> None:
    if not asked or ctx.resilient_parsing:
        return
    from weightguard import __version__

    click.echo(f"weightguard {__version__}")
    ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
def cli() -> None:
    """Know that the weights you audit, upload and serve are the weights you trust.

    Exit status: 0 clean, 1 findings at or above --fail-on, 2 could not complete,
    130 interrupted.
    """
