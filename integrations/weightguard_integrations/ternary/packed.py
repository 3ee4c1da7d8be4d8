"""The two kinds of packed matrices, and what they are made from."""

from __future__ import annotations

from typing import Any, Literal, Self

from weightguard_integrations.ternary import imports
from weightguard_integrations.ternary.matrix import PackedMatrix
from weightguard_integrations.ternary.operands import Array


class PackedTernary(PackedMatrix):
    """Weights of {-1, 0, 1}, four to a byte, with one scale, or one an output row."""

    ternary = True
    kind = "packed ternary"

    @classmethod
    def from_master(cls, weight: Array, *, name: str = "weight", golden: bool = False) -> Self:
        """Quantise float weights [N, K] by their mean magnitude (arXiv 2402.17764) and pack them.

        Raises TypeError and ValueError for weights that are no finite matrix.
        """
        return cls.from_int8(*imports.absmean(weight), name=name, golden=golden)

    @classmethod
    def from_hugging_face(
        cls, packed: Array, weight_scale: Any, *, scale_divides: bool, name: str = "weight",
        golden: bool = False,
    ) -> Self:  # fmt: skip
        """Pack transformers' BitNet uint8 [N/4, K]: row n + i * N/4 lies in bits 2i of row n.

        ``scale_divides`` for ``BitLinear``, whose outputs are divided by ``weight_scale``;
        ``AutoBitLinear`` multiplies. Raises ValueError for codes that are no weight.
        """
        return cls.from_int8(
            imports.hugging_face(packed),
            imports.hugging_face_scale(weight_scale, divides=scale_divides),
            name=name,
            golden=golden,
        )

    @classmethod
    def from_gguf(
        cls, blocks: Array, kind: Literal["TQ1_0", "TQ2_0"], *, name: str = "weight",
        golden: bool = False,
    ) -> Self:  # fmt: skip
        """Pack GGML blocks, uint8 [N, bytes of a row], whose scales are equal in each row.

        Raises ValueError for others: this layout has one scale a row.
        """
        return cls.from_int8(*imports.gguf(blocks, kind), name=name, golden=golden)


class PackedInt8(PackedMatrix):
    """int8 weights with one scale an output row, under the same check: lm_head and the like."""

    ternary = False
    kind = "packed int8"

    @classmethod
    def from_float(cls, weight: Array, *, name: str = "weight", golden: bool = False) -> Self:
        """Quantise float weights [N, K] by the greatest magnitude of each row, and pack them."""
        return cls.from_int8(*imports.absmax_rows(weight), name=name, golden=golden)
