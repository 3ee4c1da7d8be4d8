"""Cryptographic tensor digests and fast block digests (fingerprint-v1, sections 1 to 3)."""

from __future__ import annotations

import hashlib
import struct
from typing import Literal, Protocol, TypeAlias

import blake3
import xxhash

BLOCK_BYTES = 1 << 20
BLOCK_DIGEST: Literal["xxh3-128/1MiB"] = "xxh3-128/1MiB"
BLOCK_DIGEST_BYTES = 16

DigestAlgorithm: TypeAlias = Literal["blake3", "sha256"]
DIGEST_ALGORITHMS: tuple[DigestAlgorithm, ...] = ("blake3", "sha256")


class Hasher(Protocol):
    """The part of hashlib's interface that digests need; updates release the GIL."""

    def update(self, data: memoryview | bytes, /) -> object:
        """Take in more bytes."""
        ...

    def hexdigest(self) -> str:
        """Return the digest so far in lower-case hex."""
        ...


def new_hasher(algorithm: DigestAlgorithm) -> Hasher:
    """Return a fresh hasher of the named algorithm."""
    if algorithm == "blake3":
        return blake3.blake3()
    return hashlib.sha256()


def tensor_hasher(algorithm: DigestAlgorithm, dtype: str, shape: tuple[int, ...]) -> Hasher:
    """Return a hasher that has taken in a tensor's prefix and awaits its canonical bytes."""
    hasher = new_hasher(algorithm)
    hasher.update(
        b"weightguard-tensor-v1\0"
        + dtype.encode("ascii")
        + b"\0"
        + struct.pack(f"<{1 + len(shape)}Q", len(shape), *shape)
    )
    return hasher


def block_digest(data: memoryview) -> bytes:
    """Return the 16-byte XXH3-128 of one block."""
    return xxhash.xxh3_128_digest(data)


def block_count(nbytes: int) -> int:
    """Return the number of blocks of ``nbytes`` canonical bytes."""
    return -(-nbytes // BLOCK_BYTES)
