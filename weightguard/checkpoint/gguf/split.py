"""Split GGUF models: which files belong together, and whether they agree about it.

Source: llama.cpp's gguf-split. Each part says its number (from 0), how many parts there are, and
how many tensors all of them hold; parts are named ``NAME-00001-of-00003.gguf``, from 1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from weightguard.checkpoint.container import ParsedFile
from weightguard.checkpoint.files import CheckpointFile
from weightguard.checkpoint.gguf.cursor import Cursor
from weightguard.checkpoint.gguf.metadata import FindingLog, GgufHeader, integer, read_header
from weightguard.checkpoint.names import shown
from weightguard.errors import malformed
from weightguard.finding import Finding, finding

MAX_PARTS = 4096
"""Parts of one model; real ones have a few dozen."""

NUMBER_KEY, COUNT_KEY, TENSORS_KEY = "split.no", "split.count", "split.tensors.count"

_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


def split_names(file: CheckpointFile) -> tuple[str, ...]:
    """Return the names of all parts of the model that ``file`` is a part of, in order.

    There are none where the model is in one file. Raises CheckpointError as
    ``read_header`` does, and WG109 where name and metadata contradict each other, WG116 for
    more than ``MAX_PARTS`` parts.
    """
    header = read_header(Cursor(file), FindingLog(file))
    number, count = _declared(header, file)
    if count > MAX_PARTS:
        raise malformed("WG116", f"{shown(file.name)} is one of {count} parts", file=file.name)
    match = _NAME.fullmatch(file.name)
    named = (int(match["number"]), int(match["count"])) if match else (1, 1)
    if named != (number + 1, count):
        raise malformed(
            "WG109",
            f"{shown(file.name)} is not named as part {number + 1} of {count}, which it says it is",
            file=file.name,
            offset=0,
            remedy="Give the parts of the model their original names, all in one folder.",
        )
    if match is None:
        return ()
    return tuple(f"{match['stem']}-{part:05}-of-{count:05}.gguf" for part in range(1, count + 1))


def check_split(parts: Sequence[tuple[CheckpointFile, ParsedFile]]) -> tuple[Finding, ...]:
    """Return the WG109 findings about ``parts``, all parts of a model in order."""
    findings = []
    total = sum(len(parsed.tensors) for _, parsed in parts)
    for number, (file, parsed) in enumerate(parts):
        expected = {NUMBER_KEY: number, COUNT_KEY: len(parts), TENSORS_KEY: total}
        for key, value in expected.items():
            said = parsed.metadata.get(key)
            if said != str(value) and not (said is None and key == TENSORS_KEY):
                words = "does not say" if said is None else f"says {shown(said)} for"
                message = f"{shown(file.name)} {words} {key}, which is {value}"
                findings.append(finding("WG109", message, file=file.name, offset=0))
    return tuple(findings)


def _declared(header: GgufHeader, file: CheckpointFile) -> tuple[int, int]:
    if COUNT_KEY not in header.values and NUMBER_KEY not in header.values:
        return 0, 1
    number, count = integer(header, NUMBER_KEY), integer(header, COUNT_KEY)
    if count == 0:
        # written for a model in one piece by some versions of the tool
        return 0, 1
    if number is None or count is None or not 0 <= number < count:
        raise malformed(
            "WG109",
            f"{shown(file.name)} is part {number} of {count} by its metadata",
            file=file.name,
            offset=0,
        )
    return number, count
