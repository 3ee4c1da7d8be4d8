"""The pages of the rules: what each one means, why it matters, how to fix it, an example.

They are Markdown, ``docs/rules/CODE.md`` in the source and ``weightguard/docs/rules`` where the
package is installed.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent
FOLDERS = (_PACKAGE / "docs" / "rules", _PACKAGE.parent / "docs" / "rules")
"""Where pages are, the installed ones first; one of them is there."""


def page(code: str) -> str:
    """Return the page of rule ``code`` as Markdown. Raises FileNotFoundError for none."""
    folder = next((folder for folder in FOLDERS if folder.is_dir()), FOLDERS[0])
    return (folder / f"{code}.md").read_text("utf-8")
