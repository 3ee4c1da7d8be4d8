"""PyTorch: run a checkpoint's model and write what a sound one does into its manifest.

``calibrate(path, manifest)`` is the door. Importing this package imports neither torch nor
transformers; calling it does.
"""

from weightguard_integrations.torch.calibrate import calibrate

__all__ = ["calibrate"]
