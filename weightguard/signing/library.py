"""Where the model-signing library judges signatures; everything is imported when it is called.

Which files there are and what they hold is read by weightguard, so that no name, link or pipe of
a stranger's folder reaches the library when a signature is checked.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from weightguard.checkpoint.files import CheckpointFile
from weightguard.checkpoint.names import shown
from weightguard.checkpoint.strict_json import read_json_object
from weightguard.errors import CheckpointError, WeightguardError
from weightguard.finding import Finding, finding
from weightguard.signing.parties import (
    Certificate,
    PublicKey,
    Sigstore,
    Trusted,
)
from weightguard.signing.pem import (
    certificates,
    in_memory,
    public_key,
)

MAX_SIGNATURE_BYTES = 64 << 20
"""A signature takes about 200 bytes a file."""

_KINDS = {
    "publicKey": "a key",
    "x509CertificateChain": "a certificate",
    "certificate": "a sigstore identity",
}
_MISSING = (
    "signatures need the model-signing library: pip install 'weightguard-integrity[sign]' ({error})"
)
UNREADABLE = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    RecursionError,
    OverflowError,
)
"""What reading a hostile bundle can end in; the library promises no exception of its own."""


@dataclass(frozen=True, slots=True)
class SignedRange:
    """Bytes ``start`` to ``end`` (None is the whole file) of a file, and the digest they had."""

    start: int
    end: int | None
    algorithm: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class SignedList:
    """What a genuine signature says: its files' digests, and paths the signer left out.

    ``by_ranges`` signatures list no empty files.
    """

    files: dict[str, tuple[SignedRange, ...]]
    ignored: frozenset[str]
    by_ranges: bool


def require_library() -> None:
    """Raise WeightguardError where the extra ``sign`` is not installed.

    What the library logs goes where the program's log goes, and nowhere where it has none.
    """
    try:
        import model_signing.signing
        import model_signing.verifying
    except ImportError as error:
        raise WeightguardError(_MISSING.format(error=error)) from error
    del model_signing
    logger = logging.getLogger("model_signing")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())


def reason(error: BaseException) -> str:
    """Return what an error of the library says, and what that came from, such as the network."""
    root = error
    while (inner := root.__cause__ or root.__context__) is not None:
        root = inner
    words = str(error)[:200] or type(error).__name__
    return words if root is error else f"{words} ({str(root)[:200] or type(root).__name__})"


@contextlib.contextmanager
def reaching_sigstore() -> Iterator[None]:
    """Turn what goes wrong while sigstore's roots are fetched into WeightguardError."""
    from sigstore.errors import Error

    try:
        yield
    except (Error, OSError, *UNREADABLE) as error:
        raise WeightguardError(
            f"sigstore's roots of trust cannot be had: {reason(error)}. Check the network, or "
            "give them with --trust-config where there is that option"
        ) from error


Judge: TypeAlias = Callable[[CheckpointFile], SignedList | Finding]
"""Returns what a signature lists, or the finding that says why it is not genuine."""


def judge(trusted: Trusted) -> Judge:
    """Return who tells signatures by ``trusted``; WeightguardError where it cannot be used."""
    require_library()
    config = _verifier(trusted)
    return lambda file: _authenticate(file, trusted, config)


def _authenticate(file: CheckpointFile, trusted: Trusted, config: Any) -> SignedList | Finding:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from OpenSSL import crypto
    from sigstore.errors import Error, VerificationError

    try:
        bundle = read_json_object(file, limit=MAX_SIGNATURE_BYTES, code="WG502")
        refusal = _prepare(bundle, trusted, file.name)
        return refusal or _listed(_verified(config, bundle))
    except CheckpointError as error:
        return error.finding
    except InvalidSignature:
        words = f"{shown(file.name)} is not the signature of what it lists: one of them was changed"
        return finding("WG503", words, file=file.name)
    except (crypto.X509StoreContextError, VerificationError) as error:
        return _by_another(file.name, f"is not by whom you trust: {str(error)[:200]}")
    except (*UNREADABLE, UnsupportedAlgorithm, crypto.Error, Error) as error:
        if "cannot be used for signing" in str(error):
            return _by_another(file.name, "was made with a certificate that is not for signing")
        return _malformed(file.name, f"{type(error).__name__}: {str(error)[:160]}")


def _verifier(trusted: Trusted) -> Any:
    from model_signing.verifying import Config

    config: Any = Config()  # type: ignore[no-untyped-call]
    match trusted:
        case PublicKey(path):
            with in_memory(_public_pem(path)) as copy:
                return config.use_elliptic_key_verifier(public_key=copy)
        case Certificate(chain):
            if not chain:
                # the library would trust every certificate of the public web
                raise WeightguardError("no certificate is given to trust")
            with in_memory(certificates(chain)) as copy:
                return config.use_certificate_verifier(certificate_chain=[copy])
        case Sigstore(identity, provider, trust_config):
            with reaching_sigstore():
                return config.use_sigstore_verifier(
                    identity=identity, oidc_issuer=provider, trust_config=trust_config
                )


def _public_pem(path: Path) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return public_key(path).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _prepare(bundle: dict[str, Any], trusted: Trusted, name: str) -> Finding | None:
    """Return why the bundle cannot be by the trusted signer, or None; names the key in it."""
    material = bundle.get("verificationMaterial")
    if not isinstance(material, dict):
        return _malformed(name, "it names no signer")
    wanted = {PublicKey: "publicKey", Certificate: "x509CertificateChain"}.get(type(trusted))
    if wanted is None:
        return None
    if wanted not in material:
        made = next((words for kind, words in _KINDS.items() if kind in material), "something else")
        return _by_another(name, f"was made with {made}, not with {_KINDS[wanted]}")
    if isinstance(trusted, PublicKey):
        stated = material["publicKey"]
        ours = hashlib.sha256(_public_pem(trusted.path)).hexdigest()
        theirs = stated.get("hint") if isinstance(stated, dict) else None
        if theirs is not None and theirs != ours:
            return _by_another(name, "was made with another key than the public key given")
        # older signatures name no key, of which the library would print a warning
        material["publicKey"] = {"hint": ours}
    return None


def _verified(config: Any, bundle: dict[str, Any]) -> Any:
    """Return the library's list of files, once it has found the signature genuine."""
    from model_signing import hashing, manifest

    received: list[Any] = []

    class Receiver(manifest.Manifest):
        """Stands where the library puts the files it hashed, and takes what they should be."""

        def __eq__(self, other: object) -> bool:
            received.append(other)
            return True

        __hash__ = None  # type: ignore[assignment]

    class NoHashing(hashing.Config):
        """Leaves reading the folder to weightguard."""

        def hash(self, *_: Any, **__: Any) -> manifest.Manifest:
            kind = manifest.SerializationType.from_args(
                {"method": "files", "hash_type": "sha256", "allow_symlinks": False}
            )
            return Receiver("", (), kind)

    with in_memory(json.dumps(bundle).encode()) as copy:
        hashing_config = NoHashing()  # type: ignore[no-untyped-call]
        config.set_hashing_config(hashing_config).verify(Path(), copy)
    return received[0]


def _listed(signed: Any) -> SignedList:
    kind = signed.serialization_type
    by_ranges = kind["method"] == "shards"
    files: dict[str, list[SignedRange]] = {}
    for item in signed.resource_descriptors():
        name, start, end = item.identifier, 0, None
        if by_ranges:
            name, first, last = item.identifier.rsplit(":", 2)
            start, end = int(first), int(last)
        algorithm = item.digest.algorithm.partition("-sharded-")[0]
        ranges = files.setdefault(name, [])
        ranges.append(SignedRange(start, end, algorithm, item.digest.digest_value))
    ignored = frozenset(str(path) for path in kind.get("ignore_paths", ()))
    return SignedList({name: tuple(ranges) for name, ranges in files.items()}, ignored, by_ranges)


def _malformed(name: str, words: str) -> Finding:
    message = f"{shown(name)} is no signature of a model that can be read: {words}"
    return finding("WG502", message, file=name)


def _by_another(name: str, words: str) -> Finding:
    return finding("WG504", f"{shown(name)} {words}", file=name)
