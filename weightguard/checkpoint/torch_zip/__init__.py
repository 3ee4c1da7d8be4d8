"""What torch.save writes, read without torch: a zip of raw storages and one pickle, never run."""

from weightguard.checkpoint.torch_zip.archive import parse_torch

__all__ = ["parse_torch"]
