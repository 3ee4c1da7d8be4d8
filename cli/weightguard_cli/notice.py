"""What a user should know about this installation before it does long work."""

from __future__ import annotations

import click

SLOW_SCAN = (
    "weightguard: installed without its C++ scan; NumPy gives the same results, slower. "
    "Reinstall with a C++17 compiler at hand for full speed."
)


def tell_slow_scan() -> None:
    """Say on standard error that the compiled scan is missing, where it is."""
    from weightguard.scan.kernel import NUMPY, available_isas

    if available_isas() == (NUMPY,):
        click.echo(SLOW_SCAN, err=True)
