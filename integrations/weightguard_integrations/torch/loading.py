"""From a local checkpoint to a model that runs: never a download, never code of the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightguard.checkpoint import Checkpoint
from weightguard.errors import WeightguardError

if TYPE_CHECKING:
    from torch import nn

CONFIG = "config.json"
MAX_CONFIG_BYTES = 1 << 24
MAX_REASON_CHARACTERS = 300

# what foreign loaders raise for a checkpoint that they cannot make a model of
_LOADER_ERRORS = (
    ValueError, KeyError, IndexError, TypeError, AttributeError, NotImplementedError, OSError,
    ImportError, RuntimeError, AssertionError, ArithmeticError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A causal language model in float32 on the CPU, and its tokenizer where there is one.

    float32 holds every value of the usual checkpoint dtypes exactly and rounds 2^16 times finer
    than bfloat16: what is measured is the weights and not the arithmetic.
    """

    model: nn.Module
    config: Any
    encode: Callable[[str], list[int]] | None
    vocabulary: int


def check_loadable(path: Path, checkpoint: Checkpoint) -> None:
    """Raise WeightguardError where it is plain before loading that no model can be made of it."""
    place, options = _place(path, checkpoint)
    _refuse_unusable(place, gguf="gguf_file" in options)


def load_model(path: Path, checkpoint: Checkpoint) -> LoadedModel:
    """Load the checkpoint at ``path``, for which ``check_loadable`` has passed.

    Raises WeightguardError where transformers cannot make a causal language model of it.
    """
    place, options = _place(path, checkpoint)
    model = _load(path, place, options)
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    return LoadedModel(model, model.config, _encoder(place, options, vocabulary), vocabulary)


def _place(path: Path, checkpoint: Checkpoint) -> tuple[Path, dict[str, Any]]:
    """Return the folder to load from, and what else says what to load."""
    if path.is_dir():
        if checkpoint.format == "gguf":
            raise WeightguardError(f"{path} holds a GGUF checkpoint: name the .gguf file itself.")
        return path, {}
    if checkpoint.format == "gguf":
        return path.parent, {"gguf_file": path.name}
    raise WeightguardError(
        f"{path.name} alone does not say what model it is of: name the folder that holds it "
        f"with its {CONFIG}, or a GGUF file."
    )


def _refuse_unusable(place: Path, *, gguf: bool) -> None:
    if (place / "adapter_config.json").exists():
        raise WeightguardError(
            f"{place} holds adapter_config.json, which names weights outside of it. "
            "Merge the adapter into a folder of its own and calibrate that."
        )
    if gguf:
        return
    config = place / CONFIG
    if not config.is_file():
        raise WeightguardError(
            f"{place} has no {CONFIG}, so nothing says what model the weights are of. "
            f"Add the model's {CONFIG}."
        )
    document = _read_config(config)
    from transformers import CONFIG_MAPPING

    kind = document.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise WeightguardError(
            f"transformers does not know the architecture {kind!r} of {config}"
            f"{' (code that comes with a model is never run)' if 'auto_map' in document else ''}. "
            "Use a version that knows it, or a checkpoint of a known architecture."
        )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError("it is larger than any configuration")
        document = json.loads(path.read_bytes())
        if not isinstance(document, dict):
            raise TypeError("it is no JSON object")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise WeightguardError(f"cannot read {path}: {error}. Restore it.") from error
    return document


def _load(path: Path, place: Path, options: dict[str, Any]) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    if "gguf_file" in options:
        options = {**options, "quantization_config": GgufConfig(dequantize=True)}
    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(
            str(place),
            **options,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            # a configuration may name a kernel to be fetched; eager attention is plain torch
            attn_implementation="eager",
            # both to be refused below, in words of ours
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except _LOADER_ERRORS as error:
        raise WeightguardError(
            f"transformers cannot load {path} as a causal language model: {_reason(error)} "
            "Use a checkpoint and a version of transformers that fit each other."
        ) from error
    _refuse_incomplete(path, model, loaded)
    return model.eval()


def _refuse_incomplete(path: Path, model: Any, loaded: dict[str, Any]) -> None:
    """Refuse a model of which transformers made up a part."""
    mismatched = sorted(key[0] for key in loaded["mismatched_keys"])
    missing = sorted(set(loaded["missing_keys"]) - set(mismatched))
    if mismatched:
        raise WeightguardError(
            f"{len(mismatched)} weights of {path} have other shapes than its {CONFIG} says, the "
            f"first {mismatched[0]!r}: it would run with random numbers in their place. "
            f"Use the {CONFIG} that belongs to the weights."
        )
    inside = f"{model.base_model_prefix}."
    if missing and not any(name.startswith(inside) for name in missing):
        raise WeightguardError(
            f"{path} has no language model head ({missing[0]!r} is missing), so it predicts no "
            "token and there is no loss to measure. Calibrate a causal language model."
        )
    if missing:
        raise WeightguardError(
            f"{path} lacks {len(missing)} weights that its model needs, the first {missing[0]!r}: "
            f"it would run with random numbers. Use the {CONFIG} that belongs to the weights."
        )


def _encoder(
    place: Path, options: dict[str, Any], vocabulary: int
) -> Callable[[str], list[int]] | None:
    """Return text to token ids, or None where there is no usable tokenizer."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(place), **options, local_files_only=True, trust_remote_code=False
        )
        trial = tokenizer("The quick brown fox, 1 2 3.")["input_ids"]
    except _LOADER_ERRORS:
        return None  # token ids do without
    if len(set(trial)) < 4 or not all(0 <= token < vocabulary for token in trial):
        return None  # it is empty, or of another model

    def encode(text: str) -> list[int]:
        return [int(token) for token in tokenizer(text)["input_ids"]]

    return encode


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:MAX_REASON_CHARACTERS].rstrip(".") + "."
