"""safetensors files: a length, a JSON header, and tensors that tile the rest."""

from weightguard.checkpoint.safetensors.model import parse_safetensors

__all__ = ["parse_safetensors"]
