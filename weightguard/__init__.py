"""weightguard: know that the weights you audit, upload and serve are the weights you trust.

``audit(path)`` says whether a checkpoint is sound, ``fingerprint(path)`` makes its manifest,
``verify(path, manifest)`` says whether it is the one that was attested, ``gate(path, policy)``
whether a policy lets it pass, ``diff(base, new)`` how far two checkpoints are apart.
"""

from weightguard.attest import fingerprint
from weightguard.audit import audit, verify
from weightguard.catalogue import RULES, Rule, Severity
from weightguard.checkpoint import Checkpoint, open_checkpoint
from weightguard.diff import diff
from weightguard.errors import CheckpointError, IntegrityError, ManifestError, WeightguardError
from weightguard.finding import Coverage, Finding, Location, Report
from weightguard.gate import gate
from weightguard.manifest import Manifest
from weightguard.policy import Policy, PolicyError, read_policy
from weightguard.salient import OutlierChannel, RecurringChannel, Salience, SuperWeight
from weightguard.tensor import DType, TensorView
from weightguard.version import VERSION

__version__ = VERSION

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
    "Policy",
    "PolicyError",
    "RecurringChannel",
    "Report",
    "Rule",
    "Salience",
    "Severity",
    "SuperWeight",
    "TensorView",
    "WeightguardError",
    "audit",
    "diff",
    "fingerprint",
    "gate",
    "open_checkpoint",
    "read_policy",
    "verify",
]
