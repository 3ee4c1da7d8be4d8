"""The gate's page: its policy is one, and every key of a policy is on it."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import yaml

from weightguard.policy.document import Policy
from weightguard.policy.reading import parse_policy, table_of

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "gate.md").read_text()


def keys(kind: type[msgspec.Struct], prefix: str = "") -> set[str]:
    found = set()
    for field in msgspec.structs.fields(kind):
        inner = table_of(field.type)
        name = prefix + field.encode_name
        found |= {name} if inner is None else keys(inner, name + ".")
    return found


def test_the_example_is_a_policy() -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    policy = parse_policy(example, Path("weightguard.toml"))
    assert policy.drift is not None
    assert policy.drift.replaced == ("lm_head.weight",)
    assert policy.fail_on == "warning"


def test_every_key_is_explained_and_no_other() -> None:
    table = PAGE.partition("| key | meaning |")[2].partition("\n\n")[0]
    cells = [row.split("|")[1] for row in table.splitlines()[2:]]
    explained = {name for cell in cells for name in re.findall(r"`([a-z.-]+)`", cell)}
    assert explained - {"rules.tensor"} == keys(Policy)


def test_the_pipelines_name_what_is_there() -> None:
    examples = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    action, hooks = map(yaml.safe_load, examples)
    inputs = yaml.safe_load((ROOT / "action.yml").read_text())["inputs"]
    assert set(action["steps"][1]["with"]) <= set(inputs)
    (known,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert hooks["repos"][0]["hooks"] == [{"id": known["id"]}]
