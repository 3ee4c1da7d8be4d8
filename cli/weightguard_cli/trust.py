"""Options that say whose signature is trusted, and what they amount to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from weightguard_cli.options import Command, NamedPath

if TYPE_CHECKING:
    from weightguard.signing import Trusted


@dataclass(frozen=True, slots=True)
class Trust:
    """The values of the options."""

    public_key: Path | None
    certificate_chain: tuple[Path, ...]
    identity: str | None
    identity_provider: str | None
    trust_config: Path | None

    def signer(self) -> Trusted | None:
        """Return whom to trust, None where no option is given; UsageError for a contradiction."""
        from weightguard.signing import Certificate, PublicKey, Sigstore

        asked = (self.public_key, self.certificate_chain, self.identity or self.identity_provider)
        if sum(map(bool, asked)) > 1:
            raise click.UsageError(
                "give one of --public-key, --certificate-chain and --identity, not several."
            )
        if self.trust_config and not self.identity:
            raise click.UsageError("--trust-config goes with --identity.")
        if self.public_key is not None:
            return PublicKey(self.public_key)
        if self.certificate_chain:
            return Certificate(self.certificate_chain)
        if self.identity and self.identity_provider:
            return Sigstore(self.identity, self.identity_provider, self.trust_config)
        if self.identity or self.identity_provider:
            raise click.UsageError("--identity and --identity-provider go together.")
        return None


def trust_options(command: Command) -> Command:
    """Add the options; they arrive as the fields of ``Trust``, and as ``signature``."""
    for option in reversed(
        (
            click.option(
                "--public-key",
                type=NamedPath(),
                metavar="P",
                help="Demand a signature by the private half of this PEM key.",
            ),
            click.option(
                "--certificate-chain",
                type=NamedPath(),
                multiple=True,
                metavar="C",
                help="Demand a signature that these PEM certificates certify; repeatable.",
            ),
            click.option("--identity", metavar="ID", help="Demand a sigstore signature by ID."),
            click.option("--identity-provider", metavar="URL", help="Who vouches for --identity."),
            click.option(
                "--trust-config",
                type=NamedPath(),
                metavar="FILE",
                help="Sigstore's roots of trust, instead of the public ones.",
            ),
            click.option(
                "--signature",
                type=NamedPath(),
                metavar="S",
                help="The signature; model.sig in the folder by default.",
            ),
        )
    ):
        command = option(command)
    return command
