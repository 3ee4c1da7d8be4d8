"""Repair: residues, parity and a golden copy, each accepted only by the manifest's digests."""

from weightguard.repair.outcome import ContainerRepair, RepairOutcome, Shortfall, TensorRepair
from weightguard.repair.run import Means, repair, repair_in_place

__all__ = [
    "ContainerRepair",
    "Means",
    "RepairOutcome",
    "Shortfall",
    "TensorRepair",
    "repair",
    "repair_in_place",
]
