"""Who signs and whom to trust: keys, certificates and sigstore identities, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from weightguard.errors import WeightguardError


class KeyFileError(WeightguardError):
    """A file with a key or certificates cannot be read or used; the message says what to do."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """Trust the holder of the private half of this PEM key: P-256, P-384 or P-521."""

    path: Path


@dataclass(frozen=True, slots=True)
class Certificate:
    """Trust whoever these PEM certificates certify for signing; never the system's roots.

    ``chain`` holds at least the root; intermediates may come with the signature.
    """

    chain: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Sigstore:
    """Trust ``identity`` (such as an e-mail address) as certified by the OIDC issuer ``provider``.

    Without ``trust_config``, sigstore's public roots are fetched over the network.
    """

    identity: str
    provider: str
    trust_config: Path | None = None


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """Sign with this PEM key: P-256, P-384 or P-521; ``password`` where it is encrypted."""

    path: Path
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class CertifiedKey:
    """Sign with the key of the first certificate of a file.

    Its other certificates, and those of ``chain``, travel with the signature.
    """

    key: PrivateKey
    certificate: Path
    chain: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class SigstoreLogin:
    """Sign with the identity that a token, the CI system or a browser vouches for, online."""

    token: str | None = field(default=None, repr=False)
    trust_config: Path | None = None


Trusted: TypeAlias = PublicKey | Certificate | Sigstore
Signer: TypeAlias = PrivateKey | CertifiedKey | SigstoreLogin
