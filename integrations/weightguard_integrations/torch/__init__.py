"""PyTorch: run a checkpoint's model, and hold a live one to what a sound one does.

``calibrate(path, manifest)`` adds to a manifest what running the model teaches;
``compare_canary(model, manifest)`` runs the canary of a live model beside it;
``guard(model, manifest)`` keeps the weights of a served one what they are. Importing this
package imports neither torch nor transformers; calling it does.
"""

from weightguard_integrations.torch.calibrate import calibrate
from weightguard_integrations.torch.canary import CanaryComparison, compare_canary
from weightguard_integrations.torch.guarding import TorchGuard, guard

__all__ = ["CanaryComparison", "TorchGuard", "calibrate", "compare_canary", "guard"]
