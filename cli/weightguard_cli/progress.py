"""A progress bar on stderr: work done, rate, time left; nothing unless stderr is a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self, TypeAlias

from weightguard_cli.style import stderr_is_terminal

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


Unit: TypeAlias = Literal["bytes", "steps"]


class ProgressBar:
    """A callable for the core's ``progress``; the bar appears with the first work it reports.

    Used as a context manager, so that the terminal is restored whatever happens.
    """

    def __init__(self, task: str, unit: Unit = "bytes"):
        self._task, self._unit = task, unit
        self._shown = stderr_is_terminal()
        self._bar: tuple[Progress, TaskID] | None = None

    def __call__(self, done: int, total: int) -> None:
        """Show ``done`` of ``total`` bytes or steps."""
        if not self._shown:
            return
        if self._bar is None:
            self._bar = _start(self._task, self._unit, total)
        progress, task = self._bar
        progress.update(task, completed=done, total=total)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._bar is not None:
            self._bar[0].stop()


def _start(task: str, unit: Unit, total: int) -> tuple[Progress, TaskID]:
    # rich takes a tenth of a second to import: only where there is something to show
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    amounts = (
        (DownloadColumn(), TransferSpeedColumn()) if unit == "bytes" else (MofNCompleteColumn(),)
    )
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *amounts,
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    progress.start()
    return progress, progress.add_task(task, total=total)
