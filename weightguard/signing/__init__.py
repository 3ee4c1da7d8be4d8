"""Signatures over a model's folder, in the format of the OpenSSF model-signing library.

``sign`` writes one, ``verify_signature`` checks one, ``verify_signed`` also checks the weights
against the signed manifest. The library comes with the extra ``sign`` and is imported when a
signature is made or checked.
"""

from weightguard.signing.parties import (
    Certificate,
    CertifiedKey,
    KeyFileError,
    PrivateKey,
    PublicKey,
    Signer,
    Sigstore,
    SigstoreLogin,
    Trusted,
)
from weightguard.signing.sign import Signed, sign
from weightguard.signing.verification import SIGNATURE_NAME, verify_signature
from weightguard.signing.verify_signed import verify_signed

__all__ = [
    "SIGNATURE_NAME",
    "Certificate",
    "CertifiedKey",
    "KeyFileError",
    "PrivateKey",
    "PublicKey",
    "Signed",
    "Signer",
    "Sigstore",
    "SigstoreLogin",
    "Trusted",
    "sign",
    "verify_signature",
    "verify_signed",
]
