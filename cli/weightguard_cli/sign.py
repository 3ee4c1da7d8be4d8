"""``weightguard sign``: vouch for a folder, its manifest and its weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from weightguard_cli.options import CHECKPOINT, NamedPath, threads_option

if TYPE_CHECKING:
    from weightguard.finding import Report
    from weightguard.signing import PrivateKey, Signed, Signer


@click.command()
@click.argument("folder", type=CHECKPOINT)
@click.option("--key", type=NamedPath(), metavar="K", help="The PEM private key to sign with.")
@click.option(
    "--password-env",
    metavar="NAME",
    help="The environment variable with the key's password; asked for on a terminal without it.",
)
@click.option(
    "--certificate", type=NamedPath(), metavar="C", help="The PEM certificate of the key."
)
@click.option(
    "--chain",
    type=NamedPath(),
    multiple=True,
    metavar="C",
    help="Certificates between it and the root, to travel with the signature; repeatable.",
)
@click.option(
    "--sigstore", is_flag=True, help="Sign with an OIDC identity through sigstore; needs a network."
)
@click.option(
    "--identity-token-env",
    metavar="NAME",
    help="The environment variable with an identity token for --sigstore.",
)
@click.option(
    "--signature",
    type=NamedPath(),
    metavar="S",
    help="Where to write the signature; model.sig in FOLDER by default.",
)
@threads_option
def sign(
    *,
    folder: Path,
    key: Path | None,
    password_env: str | None,
    certificate: Path | None,
    chain: tuple[Path, ...],
    sigstore: bool,
    identity_token_env: str | None,
    signature: Path | None,
    threads: int | None,
) -> int:
    """Sign all files of FOLDER, in the format of the OpenSSF model-signing tool.

    The manifest is written first where FOLDER has none. Where it has one, the weights must
    equal it: if they do not, nothing is signed. `model_signing verify` accepts the signature,
    and so does `weightguard verify FOLDER M --public-key P`.

    Exit status: 0 signed, 1 the weights differ from the manifest, 2 could not complete.
    """
    from weightguard.finding import Report
    from weightguard.signing import CertifiedKey, SigstoreLogin
    from weightguard.signing import sign as make
    from weightguard_cli.notice import tell_slow_scan
    from weightguard_cli.output import deliver
    from weightguard_cli.progress import ProgressBar
    from weightguard_cli.status import CLEAN

    _check_options(key, password_env, certificate, chain, sigstore, identity_token_env)
    signer: Signer
    if key is None:
        signer = SigstoreLogin(_variable(identity_token_env))
    else:
        signer = _private_key(key, password_env)
        if certificate is not None:
            signer = CertifiedKey(signer, certificate, chain)
    tell_slow_scan()
    with ProgressBar("sign") as progress:
        done = make(folder, signer, signature=signature, threads=threads, progress=progress)
    if key is not None:
        _tell_exposed(key)
    if isinstance(done, Report):
        return _refuse(done)
    deliver(_told(done), None)
    return CLEAN


def _check_options(
    key: Path | None,
    password_env: str | None,
    certificate: Path | None,
    chain: tuple[Path, ...],
    sigstore: bool,
    identity_token_env: str | None,
) -> None:
    if (key is None) != sigstore:
        raise click.UsageError("give either --key or --sigstore.")
    if key is None and (password_env or certificate):
        raise click.UsageError("--password-env and --certificate go with --key.")
    if chain and certificate is None:
        raise click.UsageError("--chain goes with --certificate.")
    if identity_token_env and not sigstore:
        raise click.UsageError("--identity-token-env goes with --sigstore.")


def _variable(name: str | None) -> str | None:
    if name is None:
        return None
    value = os.environ.get(name)
    if not value:
        raise click.UsageError(f"the environment variable {name!r} is not set, or empty.")
    return value


def _private_key(path: Path, password_env: str | None) -> PrivateKey:
    import getpass
    import sys

    from weightguard.signing import PrivateKey
    from weightguard.signing.pem import is_encrypted
    from weightguard_cli.style import is_terminal

    password = _variable(password_env)
    if password is None and is_encrypted(path) and is_terminal(sys.stdin):
        password = getpass.getpass("Password of the private key: ")
    return PrivateKey(path, password)


def _tell_exposed(key: Path) -> None:
    from weightguard.signing.pem import is_exposed
    from weightguard_cli.escape import escape_text

    if is_exposed(key):
        words = f"others can read the private key {str(key)!r}; `chmod 600` it, or make a new one"
        click.echo(f"weightguard: warning: {escape_text(words)}", err=True)


def _refuse(report: Report) -> int:
    import sys

    from weightguard_cli.formats.text import report_text
    from weightguard_cli.output import deliver
    from weightguard_cli.status import FINDINGS, INCOMPLETE
    from weightguard_cli.style import Style
    from weightguard_cli.verdict import Scope

    deliver(report_text(report, Scope(True), Style.of(sys.stdout)), None)
    click.echo("weightguard: not signed: these are not the weights of the manifest", err=True)
    return FINDINGS if report.complete else INCOMPLETE


def _told(done: Signed) -> str:
    from weightguard_cli.escape import escape_name

    manifest = "written now" if done.attested else "which the weights equal"
    return (
        f"Wrote {escape_name(str(done.signature))}: it signs every file of the folder, "
        f"with the manifest {escape_name(done.manifest.name)}, {manifest}.\n"
    )
