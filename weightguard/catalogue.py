"""The catalogue of rules: stable codes, default severities, and what each one tells a user.

Codes never change meaning and are never reused. WG1xx file and format safety, WG2xx numeric
health, WG3xx super weights and outlier channels, WG4xx equality with a manifest, WG5xx
provenance, WG6xx drift between checkpoints, WG9xx run time.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal

SeverityLabel = Literal["info", "warning", "error", "critical"]
SEVERITY_LABELS: tuple[SeverityLabel, ...] = ("info", "warning", "error", "critical")


class Severity(enum.IntEnum):
    """How bad a finding is; ordered, so that ``severity >= Severity.ERROR`` reads as said."""

    INFO = 0
    WARNING = 1
    ERROR = 2
    CRITICAL = 3

    @property
    def label(self) -> SeverityLabel:
        """The lower-case word used in every output."""
        return SEVERITY_LABELS[self]


@dataclass(frozen=True, slots=True)
class Rule:
    """One kind of deviation: its code, a short name, and the words that explain it.

    ``remedy`` is the default advice; a finding may carry a more precise one.
    """

    code: str
    name: str
    severity: Severity
    summary: str
    why: str
    remedy: str


_FETCH_AGAIN = "Fetch the file again from its source and compare its SHA-256."
_INFO, _WARNING, _ERROR, _CRITICAL = Severity

_RULES = (
    Rule(
        "WG101",
        "unrecognised-format",
        _ERROR,
        "The file is no checkpoint format that weightguard reads.",
        "An error page or a pointer file saved under a weight file's name loads nowhere.",
        "Give a safetensors, GGUF, PyTorch zip or ONNX file, or a folder that holds them.",
    ),
    Rule(
        "WG102",
        "truncated",
        _ERROR,
        "The file ends before the bytes its header promises.",
        "Interrupted downloads and full disks leave files that some loaders accept in silence.",
        _FETCH_AGAIN,
    ),
    Rule(
        "WG103",
        "malformed-header",
        _ERROR,
        "The file's header or structure contradicts its format.",
        "A damaged or hostile header makes loaders misread tensors, hang or crash.",
        _FETCH_AGAIN,
    ),
    Rule(
        "WG104",
        "duplicate-tensor",
        _ERROR,
        "Two tensors of one file bear the same name.",
        "Loaders keep one of them, and not all keep the same one.",
        "Write the checkpoint again with unique names.",
    ),
    Rule(
        "WG105",
        "untiled-data",
        _ERROR,
        "Tensor data has holes or overlaps, or bytes that belong to no tensor.",
        "Bytes outside every tensor can carry a payload; overlapping ones alias silently.",
        "Write the checkpoint again with a library that packs tensors without gaps.",
    ),
    Rule(
        "WG106",
        "bad-extent",
        _ERROR,
        "A tensor's offset or length lies outside the file, wraps around or is unaligned.",
        "Reading it would fault, or read bytes of something else.",
        _FETCH_AGAIN,
    ),
    Rule(
        "WG107",
        "size-mismatch",
        _ERROR,
        "A tensor's stored size contradicts its dtype and shape.",
        "Loaders pad, cut or misread such a tensor.",
        "Write the checkpoint again from its source.",
    ),
    Rule(
        "WG108",
        "unknown-dtype",
        _ERROR,
        "A tensor has a dtype that the format does not define or weightguard does not know.",
        "Its bytes cannot be interpreted, so nothing about it can be checked.",
        "Update weightguard, or convert the tensor to a dtype of the format's specification.",
    ),
    Rule(
        "WG109",
        "index-mismatch",
        _ERROR,
        "The shard index and the shards disagree.",
        "A missing, extra or misplaced tensor is loaded from the wrong shard or not at all.",
        "Fetch index and shards again from one revision.",
    ),
    Rule(
        "WG110",
        "path-escape",
        _CRITICAL,
        "A file name or link leads out of the checkpoint's folder.",
        "Following it would read files that are no part of the checkpoint.",
        "Do not load this checkpoint; ask its publisher for a clean one.",
    ),
    Rule(
        "WG111",
        "not-a-regular-file",
        _ERROR,
        "A FIFO, device, socket or folder stands where a weight file should be.",
        "Loaders hang on it or read without end.",
        "Replace it with the weight file.",
    ),
    Rule(
        "WG112",
        "unsafe-pickle",
        _CRITICAL,
        "The pickle asks for something other than tensors and containers.",
        "Unpickling it would run code of the file's author; weightguard did not.",
        "Do not load this file; convert the weights to safetensors in a sandbox.",
    ),
    Rule(
        "WG113",
        "record-checksum",
        _CRITICAL,
        "A record's bytes contradict the checksum stored beside them.",
        "The file was damaged after it was written; torch.load returns it without an error.",
        _FETCH_AGAIN,
    ),
    Rule(
        "WG114",
        "legacy-pickle",
        _ERROR,
        "The file is in PyTorch's old non-zip format.",
        "It can only be read by running its pickle, and it has no checksums.",
        "Load it in a sandbox and save it again with torch.save or as safetensors.",
    ),
    Rule(
        "WG115",
        "hostile-name",
        _WARNING,
        "A name holds control characters or is longer than any real one.",
        "Such names forge log lines and terminal output.",
        "Rename the tensor; real frameworks use printable identifiers.",
    ),
    Rule(
        "WG116",
        "limit-exceeded",
        _ERROR,
        "A count or length in the file exceeds every real checkpoint's.",
        "Honouring it would exhaust memory or time.",
        "If the checkpoint is genuine, report it so that the limit can be raised.",
    ),
    Rule(
        "WG117",
        "unsafe-zip",
        _ERROR,
        "The zip archive has duplicate, compressed, encrypted or inconsistent records.",
        "Two readers of such an archive can see different tensors.",
        "Write the file again with torch.save.",
    ),
    Rule(
        "WG118",
        "blob-digest",
        _CRITICAL,
        "A cached blob's bytes contradict the SHA-256 in its own name.",
        "The download cache holds something other than the hub published.",
        "Delete the blob and download it again.",
    ),
    Rule(
        "WG119",
        "unsupported-feature",
        _ERROR,
        "The file uses a part of its format that weightguard does not read.",
        "What is not read is not checked, so the audit cannot vouch for it.",
        "Convert the checkpoint as the message says.",
    ),
    Rule(
        "WG120",
        "bad-config",
        _ERROR,
        "config.json is unreadable or no JSON object.",
        "Loaders build the model from it.",
        "Fetch config.json again.",
    ),
    Rule(
        "WG121",
        "extra-file",
        _WARNING,
        "The folder holds a weight file that is no part of its checkpoint.",
        "Some loaders read every weight file they find, others only the listed ones.",
        "Remove the file, or list it in the index.",
    ),
    Rule(
        "WG122",
        "missing-file",
        _ERROR,
        "A file of the checkpoint is missing or cannot be opened.",
        "A loader fails without it, or goes on without the weights it holds.",
        "Fetch the missing file, or check the path and its permissions.",
    ),
    Rule(
        "WG201",
        "nan",
        _CRITICAL,
        "A tensor holds NaN.",
        "One NaN weight reaches every output.",
        "Restore the tensor from a trusted copy.",
    ),
    Rule(
        "WG202",
        "infinity",
        _CRITICAL,
        "A tensor holds infinities.",
        "One infinite weight turns its output channel into Inf or NaN.",
        "Restore the tensor from a trusted copy.",
    ),
    Rule(
        "WG203",
        "all-zero",
        _ERROR,
        "A weight matrix is zero everywhere.",
        "A lost block, an unwritten shard or an untrained tensor looks like this.",
        "Restore the tensor; where zeros are meant, as before training, ignore this rule.",
    ),
    Rule(
        "WG204",
        "constant",
        _WARNING,
        "A weight matrix holds one value everywhere.",
        "A filled or untrained tensor looks like this.",
        "Restore the tensor; if it is meant, ignore this rule for it.",
    ),
    Rule(
        "WG205",
        "dead-rows",
        _WARNING,
        "Rows of a weight matrix are zero while others are not.",
        "Zeroed pages and lost blocks leave dead output channels; a part of a row is not seen.",
        "Compare with a trusted copy; pruned models may ignore this rule.",
    ),
    Rule(
        "WG206",
        "subnormal-flood",
        _WARNING,
        "An unusual share of a tensor's values is subnormal.",
        "Reinterpreted bytes and failed casts show as a flood of tiny numbers.",
        "Check the dtype this tensor was saved with.",
    ),
    Rule(
        "WG207",
        "absurd-value",
        _CRITICAL,
        "Values lie orders of magnitude beyond everything else in their tensor.",
        "A flipped exponent bit or foreign bytes look like this, and one can ruin a model.",
        "Compare the named elements with a trusted copy and restore them.",
    ),
    Rule(
        "WG208",
        "config-mismatch",
        _ERROR,
        "A tensor's shape contradicts config.json.",
        "The weights belong to another model, or the configuration does.",
        "Fetch weights and config.json from one revision.",
    ),
    Rule(
        "WG209",
        "raw-statistics",
        _INFO,
        "Statistics of a tensor were taken on its raw blocks.",
        "weightguard does not dequantise this type, so numeric rules cannot judge its values.",
        "Nothing to do: the bytes are hashed and compared like any others.",
    ),
    Rule(
        "WG210",
        "no-tensors",
        _WARNING,
        "The checkpoint holds no tensor.",
        "An emptied file has nothing wrong in it, and a model loaded from it has random weights.",
        "Fetch the checkpoint again, or give the file that holds its weights.",
    ),
    Rule(
        "WG301",
        "super-weight-lost",
        _CRITICAL,
        "A published super weight of the base model is zero, all but zero or not finite.",
        "Without it perplexity rises by orders of magnitude, while every other check stays quiet.",
        "Restore the tensor from a trusted copy; nothing else needs to be damaged.",
    ),
    Rule(
        "WG302",
        "super-weight-flipped",
        _CRITICAL,
        "A published super weight has the opposite sign of its published value.",
        "The model hangs on this one value, and its sign is part of it.",
        "Restore the tensor from a trusted copy.",
    ),
    Rule(
        "WG303",
        "super-weight-scaled",
        _ERROR,
        "A published super weight is far from its value, or no outlier of its column any more.",
        "Shrunk to a half, as by quantisers that clip outliers, it costs a quarter more perplexity "
        "and more; what makes it grow sixteen times is no training.",
        "Quantise again with the super weight kept in full precision, or restore the tensor.",
    ),
    Rule(
        "WG304",
        "scale-swallowed",
        _INFO,
        "A quantised block's scale follows an outlier, and its other weights are one value.",
        "An outlier stretches the scale of its block until nothing is left of its neighbours.",
        "Nothing to do for a format that is meant so; a finer format keeps the neighbours.",
    ),
    Rule(
        "WG305",
        "super-weight-changed",
        _CRITICAL,
        "A super weight of the manifest has other bits.",
        "One such change can destroy the model.",
        "Restore the tensor from a trusted copy.",
    ),
    Rule(
        "WG306",
        "outlier-channel-changed",
        _ERROR,
        "The greatest magnitude of an outlier channel differs from the manifest.",
        "Outlier channels carry far more of the signal than others do.",
        "Restore the tensor from a trusted copy.",
    ),
    Rule(
        "WG401",
        "tensor-changed",
        _CRITICAL,
        "A tensor's bytes differ from the manifest.",
        "These are not the weights that were attested.",
        "Restore the tensor from a trusted copy, or attest the new weights on purpose.",
    ),
    Rule(
        "WG402",
        "tensor-missing",
        _CRITICAL,
        "A tensor of the manifest is not in the checkpoint.",
        "Loaders fill missing tensors with random values and only warn.",
        "Fetch the missing shard or tensor.",
    ),
    Rule(
        "WG403",
        "tensor-extra",
        _ERROR,
        "The checkpoint has a tensor that the manifest does not list.",
        "What was not attested must not be loaded.",
        "Remove the tensor, or attest the checkpoint again.",
    ),
    Rule(
        "WG404",
        "tensor-reshaped",
        _CRITICAL,
        "A tensor's shape differs from the manifest.",
        "The same bytes mean other weights in another shape.",
        "Restore the tensor from a trusted copy.",
    ),
    Rule(
        "WG405",
        "tensor-retyped",
        _CRITICAL,
        "A tensor's dtype differs from the manifest.",
        "A cast changes every value; a reinterpretation changes their meaning.",
        "Restore the tensor, or attest the converted checkpoint.",
    ),
    Rule(
        "WG406",
        "tensor-renamed",
        _ERROR,
        "A tensor of the manifest is present under another name.",
        "Loaders match by name and would leave this tensor out.",
        "Rename it back, or attest the renamed checkpoint.",
    ),
    Rule(
        "WG407",
        "file-changed",
        _ERROR,
        "A file's SHA-256 differs from the manifest.",
        "Even with equal tensors, headers and metadata steer what loaders do.",
        _FETCH_AGAIN,
    ),
    Rule(
        "WG408",
        "alias-changed",
        _INFO,
        "Tied names of the manifest are not tied here, or are left out.",
        "Formats differ in whether they keep tied names; the bytes are the attested ones.",
        "Nothing to do unless the loader needs the name.",
    ),
    Rule(
        "WG501",
        "signature-missing",
        _ERROR,
        "A signature is demanded, and there is none.",
        "Without one, whoever could write the folder could write its manifest too.",
        "Fetch the signature with the model, or sign it: weightguard sign FOLDER --key K.",
    ),
    Rule(
        "WG502",
        "signature-malformed",
        _ERROR,
        "The signature is none that can be read.",
        "A signature that cannot be checked vouches for nothing.",
        _FETCH_AGAIN,
    ),
    Rule(
        "WG503",
        "signature-false",
        _CRITICAL,
        "The signature does not fit what it lists.",
        "The signature or its list was changed after signing.",
        "Do not load the model; fetch it again from whom you trust.",
    ),
    Rule(
        "WG504",
        "signed-by-another",
        _CRITICAL,
        "The signature was not made by the key or identity that you trust.",
        "Anybody can sign; only whom you trust counts.",
        "Check that key or identity is the right one; if it is, do not load the model.",
    ),
    Rule(
        "WG505",
        "not-covered",
        _ERROR,
        "The signature does not list a file that it has to cover.",
        "A manifest that is not signed can be replaced together with the weights.",
        "Give the manifest in the signed folder, or sign the folder again with it in place.",
    ),
    Rule(
        "WG506",
        "signed-file-changed",
        _CRITICAL,
        "A file is not the one that was signed.",
        "It was damaged or tampered with after signing.",
        "Fetch the file again from whom you trust.",
    ),
    Rule(
        "WG507",
        "signed-file-missing",
        _ERROR,
        "A file that was signed is not there.",
        "The model is not whole; loaders may fill what is missing with something else.",
        "Fetch the file again from whom you trust.",
    ),
    Rule(
        "WG508",
        "unsigned-file",
        _ERROR,
        "The folder holds a file that was not signed.",
        "Loaders also read code and settings from a folder; what nobody vouched for must not be.",
        "Remove the file, or sign the folder again if it belongs there.",
    ),
    Rule(
        "WG511",
        "manifest-required",
        _CRITICAL,
        "The policy requires a manifest, and there is none where it should be.",
        "Without one nobody can say that these are the weights that were attested.",
        "Attest the weights with `weightguard manifest`, and put the manifest where it should be.",
    ),
    Rule(
        "WG512",
        "calibration-required",
        _ERROR,
        "The policy requires a calibrated manifest, and this one holds no calibration.",
        "Canary, activation bands and confirmed super weights come from running the model once.",
        "Add it with `weightguard calibrate`.",
    ),
    Rule(
        "WG513",
        "format-not-allowed",
        _ERROR,
        "The checkpoint's format is none that the policy allows.",
        "Each format brings its own loader and its own risks.",
        "Convert the checkpoint to a format of the policy.",
    ),
    Rule(
        "WG514",
        "dtype-not-allowed",
        _ERROR,
        "Tensors have a dtype that the policy does not allow.",
        "A dtype that was not expected means another conversion, or another file, than was meant.",
        "Convert the tensors, or allow the dtype.",
    ),
    Rule(
        "WG515",
        "size-limit",
        _ERROR,
        "The checkpoint is larger than the policy allows.",
        "A limit keeps what was not meant to be uploaded or served from passing.",
        "Split or shrink the checkpoint, or raise the limit.",
    ),
    Rule(
        "WG516",
        "lineage-unmatched",
        _ERROR,
        "The super weights are not those of the model that the policy names.",
        "Super weights stay where they are in fine-tuned and quantised descendants of a model.",
        "Check which model this is; name its base in the policy, or restore the weights.",
    ),
    Rule(
        "WG519",
        "shard-trusted",
        _INFO,
        "A shard was not read: an earlier run read it, and it looks unchanged.",
        "Size, times and inode are no proof. Whoever can forge them can change the bytes.",
        "Run without --trust-cache to read every byte.",
    ),
    Rule(
        "WG601",
        "drift-exceeded",
        _ERROR,
        "A tensor is farther from its base than the policy allows.",
        "Fine-tuning moves weights a little; a large move is another training, or damage.",
        "Compare with `weightguard diff BASE NEW`, and raise the limit where the change is meant.",
    ),
    Rule(
        "WG602",
        "tensor-replaced",
        _ERROR,
        "A tensor has nothing left of its base's, or has another shape.",
        "A replaced tensor is new weights under a name that is trusted.",
        "Restore the tensor, or allow its replacement in the policy.",
    ),
    Rule(
        "WG603",
        "frozen-tensor-changed",
        _ERROR,
        "A tensor differs from its base though the policy does not let it change.",
        "Training that was to leave a tensor alone did not, or the file was changed afterwards.",
        "Restore the tensor from the base, or allow it to change in the policy.",
    ),
    Rule(
        "WG604",
        "tensor-added",
        _ERROR,
        "The checkpoint has a tensor that its base does not have.",
        "An added tensor can change what a model does, as an adapter does.",
        "Remove the tensor, or allow it in the policy.",
    ),
    Rule(
        "WG605",
        "tensor-removed",
        _ERROR,
        "The base has a tensor that the checkpoint does not have.",
        "Loaders fill missing tensors with random values and only warn.",
        "Restore the tensor, or allow its removal in the policy.",
    ),
)

RULES: dict[str, Rule] = {rule.code: rule for rule in _RULES}
"""Every rule by its code, in code order."""
