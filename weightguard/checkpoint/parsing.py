"""From a recognised format to its parser."""

from __future__ import annotations

from weightguard.checkpoint.container import ParsedFile
from weightguard.checkpoint.files import CheckpointFile, Folder
from weightguard.checkpoint.recognise import Format, unrecognised


def parse(file: CheckpointFile, format_: Format, folder: Folder) -> ParsedFile:
    """Return what the parser of ``format_`` finds in ``file``; CheckpointError where it refuses.

    Parsers are imported when needed: an audit of one format starts without the others.
    """
    match format_:
        case "safetensors":
            from weightguard.checkpoint.safetensors import parse_safetensors

            return parse_safetensors(file)
        case "gguf":
            from weightguard.checkpoint.gguf import parse_gguf

            return parse_gguf(file)
        case "torch":
            from weightguard.checkpoint.torch_zip import parse_torch

            return parse_torch(file)
        case "onnx":
            from weightguard.checkpoint.onnx import parse_onnx

            return parse_onnx(file, folder)
        case "index":
            raise unrecognised(file)
