"""ONNX models, read from the protobuf wire format by a bounded walker (docs/adr/0002)."""

from weightguard.checkpoint.onnx.model import is_onnx, parse_onnx

__all__ = ["is_onnx", "parse_onnx"]
