"""The text of a policy: read from its file and parsed, both within bounds."""

from __future__ import annotations

import os
import re
import stat
import tomllib
from pathlib import Path
from typing import Any

from weightguard.policy.document import PolicyError

MAX_POLICY_BYTES = 256 << 10
MAX_DOTS = 16
"""Dots in one key: tomllib takes n * n steps for one of n parts."""

# each piece ends at the end of the text or line where its quotes do not close: nothing is tried
# twice, so that the time is linear in the text
_NOT_KEYS = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*+(?:""")?'
    r"|'''(?:[^']|'(?!''))*+(?:''')?"
    r'|"(?:[^"\\\n]|\\[^\n])*+"?'
    r"|'[^'\n]*+'?"
    r"|#[^\n]*+",
    re.DOTALL,
)


def read_text(path: Path) -> str:
    """Return the text of a policy's file, without a byte order mark. Raises PolicyError."""
    try:
        # a FIFO must not be waited for
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no file can have this name"
        raise PolicyError(f"cannot read the policy {str(path)!r}: {reason}.") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise PolicyError(f"the policy {str(path)!r} is no regular file.")
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(MAX_POLICY_BYTES + 1)
    if len(data) > MAX_POLICY_BYTES:
        raise PolicyError(
            f"the policy {str(path)!r} has more than {MAX_POLICY_BYTES} bytes: it is none."
        )
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise PolicyError(
            f"the policy {str(path)!r} is no UTF-8 text: byte {error.start}."
        ) from error


def parse_toml(text: str, path: Path) -> dict[str, Any]:
    """Return what TOML says; ``path`` is named in errors. Raises PolicyError."""
    for key in re.split(r"[^\w. \t-]", _NOT_KEYS.sub("", text)):
        if key.count(".") > MAX_DOTS:
            raise PolicyError(f"{str(path)!r}: the key {key.strip()[:40]!r}... has too many dots.")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        last = len(text.rstrip().splitlines())
        words = str(error).replace("at end of document", f"at the end of the document, line {last}")
        raise PolicyError(f"{str(path)!r} is no TOML: {words}.") from error
    except RecursionError as error:
        raise PolicyError(f"{str(path)!r} is nested too deeply.") from error
