"""Checked products with packed ternary (BitNet b1.58) and int8 weights on a CPU.

``PackedTernary`` and ``PackedInt8`` hold weights in the layout of docs/spec/ternary-layout-v1.md.
``.linear(x)`` quantises each token of x to int8, multiplies exactly in integers, and proves with
check rows that ran through the same kernel that weights, activations, accumulators and scales were
those that were packed. ``TernaryAdapter`` puts them under a guard. Needs the compiled kernel:
without a C++17 compiler at installation, the import says so.
"""

from weightguard_integrations.ternary.engine import (
    available_isas,
    isa,
    num_threads,
    select_isa,
    set_num_threads,
)
from weightguard_integrations.ternary.live import TernaryAdapter
from weightguard_integrations.ternary.matrix import OnFault, PackedMatrix
from weightguard_integrations.ternary.packed import PackedInt8, PackedTernary

__all__ = [
    "OnFault",
    "PackedInt8",
    "PackedMatrix",
    "PackedTernary",
    "TernaryAdapter",
    "available_isas",
    "isa",
    "num_threads",
    "select_isa",
    "set_num_threads",
]
