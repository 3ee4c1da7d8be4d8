"""PyTorch: run a checkpoint's model, and hold a live one to what a sound one does.

``calibrate(path, manifest)`` adds to a manifest what running the model teaches;
``compare_canary(model, manifest)`` runs the canary of a live model beside it;
``load_verified(path, manifest)`` reads weights and verifies the very bytes it returns;
``guard(model, manifest)`` keeps the weights of a served model what they are. Importing this
package imports neither torch nor transformers; calling it does.
"""

from weightguard_integrations.torch.calibrate import calibrate
from weightguard_integrations.torch.canary import CanaryComparison, compare_canary
from weightguard_integrations.torch.guarding import guard
from weightguard_integrations.torch.packing import packed_pieces
from weightguard_integrations.torch.parallel import GroupRanks, Slice, verify_parallel
from weightguard_integrations.torch.torch_guard import TorchGuard
from weightguard_integrations.torch.verified import load_verified
from weightguard_integrations.torch.verified_model import load_verified_model

__all__ = [
    "CanaryComparison",
    "GroupRanks",
    "Slice",
    "TorchGuard",
    "calibrate",
    "compare_canary",
    "guard",
    "load_verified",
    "load_verified_model",
    "packed_pieces",
    "verify_parallel",
]
