"""weightguard: know that the weights you audit, upload and serve are the weights you trust.

``audit(path)`` says whether a checkpoint is sound, ``fingerprint(path)`` makes its manifest,
``verify(path, manifest)`` says whether it is the one that was attested.
"""

from weightguard.attest import fingerprint
from weightguard.audit import audit, verify
from weightguard.catalogue import RULES, Rule, Severity
from weightguard.checkpoint import Checkpoint, open_checkpoint
from weightguard.errors import CheckpointError, IntegrityError, ManifestError, WeightguardError
from weightguard.finding import Coverage, Finding, Location, Report
from weightguard.manifest import Manifest
from weightguard.salient import OutlierChannel, RecurringChannel, Salience, SuperWeight
from weightguard.tensor import DType, TensorView

__version__ = "0.1.0"

__all__ = [
    "RULES",
    "Checkpoint",
    "CheckpointError",
    "Coverage",
    "DType",
    "Finding",
    "IntegrityError",
    "Location",
    "Manifest",
    "ManifestError",
    "OutlierChannel",
    "RecurringChannel",
    "Report",
    "Rule",
    "Salience",
    "Severity",
    "SuperWeight",
    "TensorView",
    "WeightguardError",
    "audit",
    "fingerprint",
    "open_checkpoint",
    "verify",
]
