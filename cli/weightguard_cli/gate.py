"""``weightguard gate``: may this checkpoint pass, under the policy of those who ask?"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from weightguard_cli.options import (
    CHECKPOINT,
    MANIFEST,
    SEVERITIES,
    Copies,
    NamedPath,
    output_option,
    report_format_options,
    threads_option,
)

if TYPE_CHECKING:
    from weightguard.policy import Policy
    from weightguard_cli.conclude import Delivery


@click.command()
@click.argument("paths", type=CHECKPOINT, nargs=-1, metavar="PATH...")
@click.option("--policy", type=NamedPath(), metavar="FILE", help="The policy; found if not given.")
@click.option("--manifest", type=MANIFEST, metavar="M", help="In place of the policy's manifest.")
@click.option("--init", is_flag=True, help="Write a commented policy, and never over a file.")
@click.option(
    "--trust-cache",
    is_flag=True,
    help="Do not read shards that look unchanged since an earlier run; the report names them.",
)
@click.option(
    "--fail-on",
    type=click.Choice(SEVERITIES),
    help="Least severity that makes the exit status 1; the policy's if not given.",
)
@threads_option
@report_format_options
@output_option
def gate(
    *,
    paths: tuple[Path, ...],
    policy: Path | None,
    manifest: Path | None,
    init: bool,
    trust_cache: bool,
    copies: Copies,
    fail_on: str | None,
    threads: int | None,
    output_format: str,
    output: Path | None,
) -> int:
    """Judge the checkpoint at PATH by a policy, in one pass over its bytes; or one after another.

    The policy is weightguard.toml, or [tool.weightguard] of pyproject.toml, of this folder or the
    nearest above it in the repository; never one that lies with the checkpoint.

    Exit status: 0 it may pass, 1 it may not, 2 could not complete.
    """
    from weightguard_cli.conclude import Delivery

    if init:
        return _write_policy(policy, paths)
    if not paths:
        raise click.UsageError("Missing argument 'PATH'.")
    if len(paths) > 1 and (output or copies or manifest or output_format != "text"):
        raise click.UsageError("--manifest, -o, --report and --format take one PATH.")
    return max(
        _judge(
            path, policy, manifest, trust_cache, threads,
            lambda least: Delivery(output_format, output, fail_on or least, copies),
        )
        for path in paths
    )  # fmt: skip


def _write_policy(policy: Path | None, paths: tuple[Path, ...]) -> int:
    from weightguard.policy import write_template
    from weightguard.policy.reading import POLICY_NAME
    from weightguard_cli.escape import escape_name
    from weightguard_cli.status import CLEAN

    if paths:
        raise click.UsageError("--init writes a policy and checks nothing: leave out PATH.")
    target = policy or Path(POLICY_NAME)
    write_template(target)
    click.echo(f"{escape_name(str(target))}: a policy that runs every rule; edit it to demand more")
    return CLEAN


def _judge(
    path: Path,
    policy: Path | None,
    manifest: Path | None,
    trust_cache: bool,
    threads: int | None,
    delivery: Callable[[str], Delivery],
) -> int:
    from weightguard.gate import gate as examine
    from weightguard.gate import manifest_path
    from weightguard.policy import Policy, find_policy, read_policy
    from weightguard.requirements import signature_path
    from weightguard_cli.conclude import conclude
    from weightguard_cli.verdict import Scope

    source = policy or find_policy(path)
    rules = read_policy(source)
    going = delivery(rules.fail_on)
    going.check(path, source, *([manifest] if manifest else []))
    recorded = manifest_path(path, rules, source.parent, manifest)
    compared = recorded is not None and recorded.exists()
    # by every rule as it is: only then may the verdict speak of equality
    whole = compared and rules.rules == Policy().rules
    signature = signature_path(path, rules, source.parent)
    # one that is there is checked, whether it is required or not
    signed = signature is not None and os.path.lexists(signature)
    return conclude(
        "gate",
        lambda progress: examine(
            path,
            rules,
            source=source,
            manifest=manifest,
            trust_cache=trust_cache,
            threads=threads,
            progress=progress,
        ),
        Scope(
            whole,
            tuple(_unchecked(path, rules, source, compared, signed)),
            signed=signed,
        ),
        going,
    )


def _unchecked(
    path: Path, rules: Policy, source: Path, compared: bool, signed: bool
) -> Iterator[str]:
    from weightguard.policy.reading import lies_with

    if lies_with(source, path):
        yield "whether the policy is yours: it lies in the checkpoint's folder"
    if not compared:
        yield "equality with trusted weights (there is no manifest)"
    if rules.rules.select:
        yield f"rules other than {', '.join(rules.rules.select)} (the policy's select)"
    if rules.rules.ignore:
        yield f"rules {', '.join(rules.rules.ignore)} (the policy's ignore)"
    if rules.signature is None:
        yield "who made the checkpoint (the policy asks for no signature)"
    elif not signed and not rules.signature.required:
        yield "who made the checkpoint (there is no signature, and the policy requires none)"
