"""Recognising a file's format by its content, never by its name."""

from __future__ import annotations

from typing import Literal, TypeAlias

from weightguard.checkpoint.files import CheckpointFile
from weightguard.checkpoint.names import shown
from weightguard.errors import CheckpointError, malformed

Format: TypeAlias = Literal["safetensors", "gguf", "torch", "onnx", "index"]

HEAD_BYTES = 512

_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_GGUF = (b"GGUF", b"FUGG")
# protocols 2 to 5, and the opcodes that begin what torch and pickle write
_PICKLE_PROTOCOLS, _PICKLE_STARTS = b"\x02\x03\x04\x05", b"\x8a\x95}](c\x8c."
_JSON_SPACE = b" \t\r\n"
_LFS_POINTER = b"version https://git-lfs"


def recognise(file: CheckpointFile) -> Format | None:
    """Return the format of a file, or None; reads a few hundred bytes, more only for ONNX.

    Old PyTorch pickles and tar archives count as torch, whose parser refuses them with a hint;
    any JSON object counts as an index.
    """
    head = _head(file)
    # first, because a header's length can spell any other magic in its lower four bytes
    if head[4:9] == b"\0\0\0\0{":
        return "safetensors"
    if head.startswith(_GGUF):
        return "gguf"
    if head.startswith(_ZIP) or _is_legacy_torch(head):
        return "torch"
    if head.lstrip(_JSON_SPACE)[:1] == b"{" and b"\0" not in head:
        return "index"
    if _is_damaged_safetensors(head):
        return "safetensors"
    from weightguard.checkpoint.onnx import is_onnx

    return "onnx" if is_onnx(file) else None


def unrecognised(file: CheckpointFile) -> CheckpointError:
    """Return the error for a file whose content is no checkpoint, with a hint at what it is."""
    if file.size == 0:
        return malformed("WG102", f"{shown(file.name)} is empty", file=file.name, offset=0)
    head = _head(file)
    what, remedy = "is no format that weightguard reads", None
    if head.startswith(_LFS_POINTER):
        what = "is a Git LFS pointer, not the file it points to"
        remedy = "Fetch the content with 'git lfs pull'."
    elif head.lstrip(_JSON_SPACE)[:1] == b"<":
        what = "is a web page or XML, probably a server's error message"
        remedy = "Fetch the file again, with the access its server asks for."
    elif not any(head):
        what = "begins with zeros only, as an interrupted download leaves them"
        remedy = "Fetch the file again."
    return malformed("WG101", f"{shown(file.name)} {what}", file=file.name, offset=0, remedy=remedy)


def _head(file: CheckpointFile) -> bytes:
    return file.read(0, min(HEAD_BYTES, file.size), limit=HEAD_BYTES)


def _is_legacy_torch(head: bytes) -> bool:
    pickled = (
        len(head) > 2
        and head[0] == 0x80
        and head[1] in _PICKLE_PROTOCOLS
        and head[2] in _PICKLE_STARTS
    )
    return pickled or head[257:262] == b"ustar"


def _is_damaged_safetensors(head: bytes) -> bool:
    """Whether a header's text follows a length that no header has, or lost its first brace."""
    text = head[8:72]
    if text.startswith(b'{"'):
        return text.isascii()
    return head[4:8] == b"\0\0\0\0" and b'"' in text and text[1:].isascii()
