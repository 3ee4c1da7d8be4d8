"""Where the model-signing library signs; everything is imported when it is called."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias

from weightguard.errors import WeightguardError
from weightguard.signing.library import UNREADABLE, reaching_sigstore, reason, require_library
from weightguard.signing.parties import CertifiedKey, PrivateKey, Signer, SigstoreLogin
from weightguard.signing.pem import certificates, certified_key, in_memory, private_key

Pen: TypeAlias = Callable[[Path, Iterable[str]], bytes]
"""Returns the signature over all files of a folder but those named and those of git.

Hashes every file with SHA-256. Raises WeightguardError for a folder with links, pipes or devices,
and where the signer fails.
"""


def pen_of(signer: Signer) -> Pen:
    """Return what signs for ``signer``.

    Raises WeightguardError where a key or certificate cannot be used to sign, or whose signatures
    nobody would accept, and where sigstore cannot be reached.
    """
    require_library()
    config = _signing(signer)
    return lambda folder, left_out: _signature(config, folder, left_out)


def _signature(config: Any, folder: Path, left_out: Iterable[str]) -> bytes:
    from model_signing.hashing import Config as Hashing
    from sigstore.errors import Error

    hashing: Any = Hashing()  # type: ignore[no-untyped-call]
    hashing.set_ignored_paths(paths=left_out, ignore_git_paths=True)
    with in_memory() as target:
        try:
            config.set_hashing_config(hashing).sign(folder, target)
        except (Error, OSError, *UNREADABLE) as error:
            raise WeightguardError(f"cannot sign {str(folder)!r}: {reason(error)}") from error
        return target.read_bytes()


def _signing(signer: Signer) -> Any:
    from model_signing.signing import Config

    config: Any = Config()  # type: ignore[no-untyped-call]
    match signer:
        case PrivateKey():
            with in_memory(_private_pem(signer)) as key:
                return config.use_elliptic_key_signer(private_key=key)
        case CertifiedKey():
            chain = _certified(signer)
            # the library signs with a file's first certificate, and wants a chain that is not empty
            with in_memory(_private_pem(signer.key)) as key, in_memory(chain) as certificate:
                return config.use_certificate_signer(
                    private_key=key,
                    signing_certificate=certificate,
                    certificate_chain=[certificate],
                )
        case SigstoreLogin(token, trust_config):
            with reaching_sigstore():
                return config.use_sigstore_signer(
                    use_ambient_credentials=token is None,
                    identity_token=token,
                    trust_config=trust_config,
                )


def _certified(signer: CertifiedKey) -> bytes:
    """Return the signer's certificate and those that go with it, once they fit its key."""
    if certified_key(signer.certificate) != private_key(signer.key).public_key():
        raise WeightguardError(
            f"the certificate {str(signer.certificate)!r} is for another key than "
            f"{str(signer.key.path)!r}. Give the certificate that was issued for this key, or the "
            "key that belongs to it; `openssl x509 -in C -noout -pubkey` shows whose it is"
        )
    return certificates([signer.certificate, *signer.chain])


def _private_pem(key: PrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return private_key(key).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
