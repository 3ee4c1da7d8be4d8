"""GGUF files, versions 2 and 3, single and split, little-endian."""

from weightguard.checkpoint.gguf.model import GGML_TYPES, REMOVED_TYPES, parse_gguf
from weightguard.checkpoint.gguf.split import check_split, split_names

__all__ = ["GGML_TYPES", "REMOVED_TYPES", "check_split", "parse_gguf", "split_names"]
