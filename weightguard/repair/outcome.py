"""What a repair did, and what it left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from weightguard.catalogue import Severity
from weightguard.finding import Report


@dataclass(frozen=True, slots=True)
class TensorRepair:
    """One tensor whose digest is the manifest's again; ``blocks`` by the source that gave them."""

    tensor: str
    file: str
    blocks: dict[str, int]


@dataclass(frozen=True, slots=True)
class ContainerRepair:
    """A file whose header, metadata, padding or length is as ``source`` has it again.

    ``source`` is "parity", or "golden copy" for a file that could not be opened. ``attested`` says
    that a digest in the manifest covers these bytes; of a golden copy's only file digests do.
    """

    file: str
    nbytes: int
    source: Literal["parity", "golden copy"]
    attested: bool


@dataclass(frozen=True, slots=True)
class Shortfall:
    """Blocks that are lost still, and the number of parity's groups that they lie in."""

    blocks: int
    groups: int


@dataclass(frozen=True, slots=True)
class RepairOutcome:
    """The outcome of a repair.

    ``report`` is that of the result, verified after it was written: its findings are what remains.
    ``output`` is where the result is, None where nothing was written: there was nothing to heal,
    or nothing could be healed. ``resumed`` says that an unfinished repair in place was finished
    first, ``discarded`` that its files were replaced by what is attested, and its journal removed.
    ``copied`` are files beside the weights that went into the new folder; ``left_out``
    counts links out of the folder, pipes and devices that did not. ``fetched`` counts the bytes of
    tensors that were read from the golden copy, ``refused`` names those whose blocks there are
    not the manifest's. ``shortfall`` is what parity, where the manifest has it, was too little for;
    ``unused`` says why it was not used although it should have been.
    """

    report: Report
    tensors: tuple[TensorRepair, ...] = ()
    containers: tuple[ContainerRepair, ...] = ()
    output: str | None = None
    resumed: bool = False
    discarded: bool = False
    copied: tuple[str, ...] = ()
    left_out: int = 0
    fetched: int = 0
    refused: tuple[str, ...] = ()
    shortfall: Shortfall | None = None
    unused: str | None = None
    schema: Literal["weightguard-repair-v1"] = "weightguard-repair-v1"

    @property
    def healed(self) -> bool:
        """Whether nothing remains: the result was read to its end and found no error."""
        return self.report.complete and not self.report.at_least(Severity.ERROR)
