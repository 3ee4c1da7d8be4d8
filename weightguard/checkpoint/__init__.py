"""Checkpoints at rest: every supported file format, read without trusting a byte of it."""

from weightguard.checkpoint.container import Checkpoint, ParsedFile, StoredChecksum
from weightguard.checkpoint.opening import open_checkpoint

__all__ = ["Checkpoint", "ParsedFile", "StoredChecksum", "open_checkpoint"]
