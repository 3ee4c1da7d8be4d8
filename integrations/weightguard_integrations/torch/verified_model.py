"""A transformers model of verified bytes: what was hashed is what it computes with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from weightguard.checkpoint import open_checkpoint
from weightguard.errors import WeightguardError
from weightguard_integrations.torch.loading import check_loadable
from weightguard_integrations.torch.manifests import PathOrManifest
from weightguard_integrations.torch.stack import require_torch
from weightguard_integrations.torch.verified import load_verified

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_verified_model(
    folder: Path | str, manifest: PathOrManifest, *, threads: int | None = None
) -> PreTrainedModel:
    """Return the causal language model in ``folder``, in evaluation mode, in the weights' dtype.

    The weights are read once, hashed as they are read, and put into the model from memory: no
    file of weights is opened again. Its configuration is read from the folder and is not attested.
    Raises what ``load_verified`` raises, and WeightguardError for a folder that no causal
    language model can be made of, or of which a part would be random.
    """
    require_torch()
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    place = Path(folder)
    with open_checkpoint(place) as checkpoint:
        check_loadable(place, checkpoint)
    state = load_verified(place, manifest, threads=threads)
    config = AutoConfig.from_pretrained(str(place), local_files_only=True, trust_remote_code=False)
    dtypes = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    with torch.device("meta"):
        kind = AutoModelForCausalLM.from_config(config, trust_remote_code=False).__class__
    model, loaded = kind.from_pretrained(
        None,
        config=config,
        state_dict=state,
        dtype=dtypes.pop() if len(dtypes) == 1 else torch.float32,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    wrong = sorted({*loaded["missing_keys"], *(key[0] for key in loaded["mismatched_keys"])})
    if wrong:
        raise WeightguardError(
            f"{len(wrong)} weights of {str(place)!r:.200} are missing or of another shape, the "
            f"first {wrong[0]!r:.200}: the model would run with random numbers. "
            "Use the config.json that belongs to the weights."
        )
    left = sorted(loaded["unexpected_keys"])
    if left:
        raise WeightguardError(
            f"the model of config.json has no place for {len(left)} weights of "
            f"{str(place)!r:.200}, the first {left[0]!r:.200}. Use the config.json that belongs "
            "to the weights."
        )
    made: PreTrainedModel = model.eval()
    return made
