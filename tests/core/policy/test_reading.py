"""Policies from files: found where they may be, and every mistake named with its place."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from weightguard.catalogue import Severity
from weightguard.finding import finding
from weightguard.policy import PolicyError, find_policy, read_policy, write_template
from weightguard.policy.document import Policy, size_in_bytes


def policy(tmp_path: Path, text: str, name: str = "weightguard.toml") -> Policy:
    path = tmp_path / name
    path.write_text(text)
    return read_policy(path)


def test_an_empty_policy_demands_nothing(tmp_path: Path) -> None:
    assert policy(tmp_path, "") == Policy()
    assert Policy().least_failing is Severity.ERROR


def test_the_template_is_a_policy_that_runs_every_rule(tmp_path: Path) -> None:
    path = tmp_path / "weightguard.toml"
    write_template(path)
    assert read_policy(path) == Policy()
    before = path.read_bytes()
    with pytest.raises(PolicyError, match="exists already"):
        write_template(path)
    assert path.read_bytes() == before


def test_the_template_is_valid_with_everything_in_it_wanted(tmp_path: Path) -> None:
    path = tmp_path / "weightguard.toml"
    write_template(path)
    wanted = re.sub(r"^# (?=[a-z\[][\w.-]* ?=|\[)", "", path.read_text(), flags=re.MULTILINE)
    full = policy(tmp_path, wanted)
    fields = ("manifest", "signature", "calibration", "super_weights", "drift")
    assert all(getattr(full, name) is not None for name in fields)
    assert full.allow.formats == ("safetensors", "gguf")
    assert full.rules.tensor[0].severity == {"WG204": "error"}


def test_a_table_of_pyproject(tmp_path: Path) -> None:
    text = '[project]\nname = "x"\n[tool.weightguard]\nfail-on = "warning"\n'
    assert policy(tmp_path, text, "pyproject.toml").fail_on == "warning"
    wrong = '[tool.weightguard.rules]\nselct = ["WG1"]\n'
    with pytest.raises(PolicyError, match=r"line 2: rules\.selct .*did you mean 'select'"):
        policy(tmp_path, wrong, "pyproject.toml")
    with pytest.raises(PolicyError, match=r"no table \[tool\.weightguard\]"):
        policy(tmp_path, "[tool.other]\n", "pyproject.toml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fail-on = \n", r"no TOML: .*line 1"),
        ('[rules]\nselct = ["WG1"]', r"line 2: rules\.selct is no key .*did you mean 'select'\?"),
        ("[rule]\n", r"line 1: rule is no key of a policy; did you mean 'rules'\?"),
        ('[[rules.tensor]]\ntensors = ["a"]\nignor = []', r"line 3: rules\.tensor\.ignor .*ignore"),
        ("fail-on = 3", r"line 1: fail-on is not valid: expected text, got a whole number\.$"),
        ('\nfail-on = "eror"', r"line 2: fail-on is 'eror', .* error and critical; .*'error'\?$"),
        ('fail-on = "x"', r"fail-on is 'x', which is none of info, warning, error and critical\.$"),
        ('rules.severity.WG2 = "infos"', r"line 1: rules\.severity\.WG2 is 'infos', .*'info'\?$"),
        ('[rules]\nselect = ["WG1", 2]', r"line 2: rules\.select is not valid: expected text, got"),
        ('[rules]\nselect = "WG1"', r"line 2: rules\.select is not valid: expected a list, got"),
        ('rules = "all"', r"line 1: rules is not valid: expected a table, got text"),
        ('[rules]\nignore = ["WG2O1"]', r"line 2: rules\.ignore .*did you mean WG\d{3}"),
        ('[rules.severity]\nWG999 = "info"', r"line 2: rules\.severity\.WG999 is wrong: no"),
        ("[[rules.tensor]]\ntensors = []", r"line 2: rules\.tensor\.tensors .*length >= 1\.$"),
        ("[[rules.tensor]]", r"line 1: rules\.tensor is not valid: it lacks the key 'tensors'\.$"),
        ("[signature]\ncertificates = []", r"line 2: signature\.certificates .*length >= 1\.$"),
        ("[tool.weightguard]", r"line 1: tool\.weightguard is for a pyproject\.toml"),
        ('[rules]\nignore = ["WG"]', "nothing would be checked"),
        ('[allow]\ndtypes = ["BF61"]', r"line 2: allow\.dtypes .*did you mean 'BF16'"),
        (
            '[allow]\nformats = ["pickle"]',
            r"line 2: allow\.formats is 'pickle', which is none of safetens",
        ),
        ('[limits]\nfile-size = "5 GX"', r"line 2: limits\.file-size .*'5 GX' is no size"),
        ("[limits]\ntensors = -1", r"line 2: limits\.tensors is not valid"),
        ("[limits]\ntensors = true", r"line 2: limits\.tensors is not valid"),
        ("[manifest]\nrequired = true", r"line 1: manifest .*lacks the key 'path'"),
        ("[limits]\nfile-size = []", r"expected a whole number or text, got a list\.$"),
        ('[manifest]\npath = "{nme}.json"', r"line 2: manifest\.path may hold"),
        ('[rules]\nselect = ["WG2"]\n[manifest]\npath = "m"', r"line 3: manifest .*select it"),
        ("[calibration]\n", r"line 1: calibration .*\[manifest\] names none"),
        ('[super-weights]\nlineage = "SmolLM-135M"', r"line 2: super-weights\.lineage .*Known are"),
        ("[signature]\n", r"line 1: signature needs one of public-key"),
        ('[signature]\nidentity = "a@b"', "line 1: .*identity and identity-provider together"),
        ('[drift]\nbase = "b"\nmax-change = -0.1', r"line 3: drift\.max-change is not valid"),
        ('[drift]\nbase = "b"\nmax-change = nan', r"line 3: drift\.max-change"),
        ("version = 2", r"line 1: version is 2, which this weightguard is too old for"),
        ("version = 0", r"line 1: version is not valid"),
        ("a" + ".a" * 100_000 + " = 1", "has too many dots"),
        ("[a" + ".a" * 17 + "]", "has too many dots"),
        ("a = {b" + ".'b'" * 17 + " = 1}", "has too many dots"),
        ("a = " + "[" * 5000 + "]" * 5000, "nested too deeply|no TOML|no key"),
    ],
)
def test_a_mistake_is_named_with_its_place(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=words) as caught:
        policy(tmp_path, text)
    assert str(tmp_path / "weightguard.toml") in str(caught.value)


def test_a_mistake_in_a_later_table_of_a_list_is_on_its_line(tmp_path: Path) -> None:
    text = """
[[rules.tensor]]
tensors = ["a"]
severity = { WG2 = "info" }
[[rules.tensor]]
tensors = ["b"]
[rules.tensor.severity]
WG3 = "info"
[[rules.tensor]]
tensors = ["c"]
severity.WG4 = "info"
"""
    for old, new, line in (
        ('["a"]', '["a", 1]', 3),
        ('["b"]', '["b", 1]', 6),
        ("WG3", "WG33", 8),
        ('"b"]', '"b"]\nx = 1', 7),
        ('["c"]', "[]", 10),
        ("WG4", "WG44", 11),
    ):
        with pytest.raises(PolicyError, match=rf"line {line}: rules\.tensor\."):
            policy(tmp_path, text.replace(old, new))


def test_dots_in_strings_comments_and_numbers_are_no_keys(tmp_path: Path) -> None:
    dots = "." * 1000
    text = f"""
# {dots}
[tool.other]
versions = [{"1.5, " * 100}]
one = "{dots} \\" {dots}"
two = '{dots}'
three = \"\"\"{dots}
{dots} " {dots} \\\"\"\" {dots}\"\"\"
four = '''{dots}
{dots} ' {dots}'''
[tool.weightguard] # {dots}
fail-on = "warning"
"""
    assert policy(tmp_path, text, "pyproject.toml").fail_on == "warning"


def test_a_byte_order_mark_is_read_past(tmp_path: Path) -> None:
    (tmp_path / "weightguard.toml").write_bytes(b'\xef\xbb\xbffail-on = "info"\r\n')
    assert read_policy(tmp_path / "weightguard.toml").fail_on == "info"


def test_the_template_is_no_project(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="name another file"):
        write_template(tmp_path / "pyproject.toml")
    assert not (tmp_path / "pyproject.toml").exists()


def test_a_checkpoint_that_is_not_there_is_not_blamed_on_the_policy(tmp_path: Path) -> None:
    (tmp_path / "weightguard.toml").write_text("")
    assert find_policy(tmp_path / "nowhere", tmp_path) == tmp_path / "weightguard.toml"
    (tmp_path / "weightguard.toml").unlink()
    with pytest.raises(PolicyError, match=r"^there is no checkpoint .*nowhere', and there is no"):
        find_policy(tmp_path / "nowhere", tmp_path)


def test_what_is_no_file_of_reasonable_size_is_no_policy(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.toml"
    os.mkfifo(fifo)
    huge = tmp_path / "huge.toml"
    with huge.open("wb") as file:
        file.truncate(1 << 40)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    for path, words in (
        (tmp_path, "no regular file|Is a directory"),
        (fifo, "no regular file"),
        (huge, "more than 262144 bytes"),
        (binary, "no UTF-8"),
        (tmp_path / "none.toml", "No such file"),
    ):
        with pytest.raises(PolicyError, match=words):
            read_policy(path)


def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    (root / ".git").mkdir(parents=True)
    (root / "a" / "b").mkdir(parents=True)
    return root


def test_the_nearest_policy_up_to_the_root_of_the_repository(tmp_path: Path) -> None:
    root, model = repository(tmp_path), tmp_path / "model"
    model.mkdir()
    (tmp_path / "weightguard.toml").write_text("")
    with pytest.raises(PolicyError, match="--init"):
        find_policy(model, root / "a" / "b")
    (root / "pyproject.toml").write_text("[project]\n")
    with pytest.raises(PolicyError, match="--init"):
        find_policy(model, root / "a" / "b")
    (root / "pyproject.toml").write_text("[tool.weightguard]\n")
    assert find_policy(model, root / "a" / "b") == root / "pyproject.toml"
    (root / "weightguard.toml").write_text("")
    assert find_policy(model, root / "a" / "b") == root / "weightguard.toml"
    (root / "a" / "weightguard.toml").write_text("")
    assert find_policy(model, root / "a" / "b") == root / "a" / "weightguard.toml"


def test_without_a_repository_only_the_folder_itself(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "weightguard.toml").write_text("")
    with pytest.raises(PolicyError, match="--init"):
        find_policy(tmp_path / "model", inner)


def test_never_the_policy_of_the_checkpoint(tmp_path: Path) -> None:
    root = repository(tmp_path)
    model = root / "a"
    (model / "weightguard.toml").write_text("")
    (model / "b" / "weightguard.toml").write_text("")
    for start in (model, model / "b"):
        with pytest.raises(PolicyError, match="lies with the checkpoint"):
            find_policy(model, start)
    (root / "weightguard.toml").write_text("")
    assert find_policy(model, model / "b") == root / "weightguard.toml"
    weights = model / "m.safetensors"
    weights.write_bytes(b"")
    assert find_policy(weights, model) == root / "weightguard.toml"
    link = tmp_path / "link"
    link.symlink_to(model)
    assert find_policy(link, model / "b") == root / "weightguard.toml"


@pytest.mark.parametrize(
    ("size", "expected"),
    [(7, 7), ("7 B", 7), ("2 kB", 2000), ("1.5 GB", 1_500_000_000), ("2MiB", 2 << 20),
     ("1 TiB", 1 << 40), ("0 KiB", 0)],
)  # fmt: skip
def test_sizes(size: int | str, expected: int) -> None:
    assert size_in_bytes(size) == expected


@pytest.mark.parametrize("size", ["", "5", "GB", "-1 GB", "1e9 B", "1 gb", "1 iB", "1 GBB", "∞ B"])
def test_what_is_no_size(size: str) -> None:
    with pytest.raises(ValueError, match="no size"):
        size_in_bytes(size)


def test_severities_and_exceptions(tmp_path: Path) -> None:
    rules = policy(
        tmp_path,
        """
        [rules.severity]
        WG2 = "warning"
        wg205 = "critical"
        [[rules.tensor]]
        tensors = ["*.embed.weight", "lora_?"]
        ignore = ["WG203"]
        severity = { WG2 = "info" }
        """,
    )

    def judged(code: str, tensor: str | None) -> str | None:
        found = rules.judge(finding(code, "m", tensor=tensor))
        return None if found is None else found.severity

    assert judged("WG203", "a.weight") == "warning"
    assert judged("WG205", "a.weight") == "critical"
    assert judged("WG205", None) == "critical"
    assert judged("WG205", "a.embed.weight") == "info"
    assert judged("WG203", "lora_A") is None
    assert judged("WG203", "lora_AB") == "warning"
    assert judged("WG401", "lora_A") == "critical"
