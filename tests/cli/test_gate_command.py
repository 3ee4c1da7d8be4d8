"""``weightguard gate`` as a user meets it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.checkpoints import random_tensor, write_safetensors
from tests.signers import write_key
from weightguard.policy import read_policy
from weightguard.policy.document import Policy
from weightguard_cli.main import main

HOSTILE = "\x1b[31m::error::x|<script>##["


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    folder.mkdir()
    write_safetensors(folder / "m.safetensors", {"w": random_tensor("F32", (64, 64))})
    return folder


def test_init_writes_a_policy_once(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gate", "--init"]) == 0
    assert read_policy(Path("weightguard.toml")) == Policy()
    written = Path("weightguard.toml").read_bytes()
    assert main(["gate", "model"]) == 0
    assert "under the policy" in capsys.readouterr().out
    assert main(["gate", "--init"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert Path("weightguard.toml").read_bytes() == written
    assert main(["gate", "--init", "--policy", "other.toml"]) == 0
    Path("link.toml").symlink_to("dangling.toml")
    assert main(["gate", "--init", "--policy", "link.toml"]) == 2
    assert not Path("dangling.toml").exists()
    assert main(["gate", "--init", "model"]) == 2
    assert main(["gate", "--init", "--policy", "pyproject.toml"]) == 2
    assert not Path("pyproject.toml").exists()


def test_without_a_policy_it_is_said_how_to_get_one(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gate", "model"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "weightguard gate --init" in captured.err
    assert len(captured.err.splitlines()) == 1
    assert main(["gate"]) == 2


def test_the_policy_decides_what_fails(model: Path) -> None:
    Path("weightguard.toml").write_text('fail-on = "critical"\nlimits.tensors = 0')
    assert main(["gate", "model"]) == 0
    assert main(["gate", "model", "--fail-on", "error"]) == 1


def test_a_policy_beside_the_weights_is_said_to_be(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / "weightguard.toml").write_text("")
    os.chdir(model)
    assert main(["gate", "."]) == 2
    assert "lies with the checkpoint" in capsys.readouterr().err
    assert main(["gate", ".", "--policy", "weightguard.toml"]) == 0
    assert "whether the policy is yours" in capsys.readouterr().out


def test_equality_is_claimed_only_where_it_was_checked(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = 'manifest = { path = "m.json", required = false }\n'
    Path("weightguard.toml").write_text(text)
    assert main(["gate", "model"]) == 0
    assert capsys.readouterr().out.startswith("SOUND: ")
    assert main(["manifest", "model", "-o", "m.json"]) == 0
    capsys.readouterr()
    assert main(["gate", "model"]) == 0
    assert capsys.readouterr().out.startswith("EQUAL: ")
    write_safetensors(model / "m.safetensors", {"w": random_tensor("F32", (64, 64), 5)})
    assert main(["gate", "model"]) == 1
    assert capsys.readouterr().out.startswith("DIFFERENT: ")
    Path("weightguard.toml").write_text(text + 'rules.severity = { WG4 = "info", WG3 = "info" }')
    assert main(["gate", "model"]) == 0
    assert capsys.readouterr().out.startswith("SOUND: nothing above info")


def test_a_signature_that_is_not_required_is_said_to_be_unchecked(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private, _ = write_key(Path(), "key")
    Path("weightguard.toml").write_text('signature = { public-key = "key.pub", required = false }')
    assert main(["gate", "model"]) == 0
    assert "there is no signature, and the policy requires none" in capsys.readouterr().out
    assert main(["sign", "model", "--key", str(private)]) == 0
    capsys.readouterr()
    assert main(["gate", "model"]) == 0
    assert "no signature" not in capsys.readouterr().out


def test_a_mistyped_checkpoint_is_what_is_told(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("weightguard.toml").write_text("")
    assert main(["gate", "modle"]) == 2
    assert "'modle' cannot be opened: No such file or directory" in capsys.readouterr().out


def test_one_pass_makes_several_reports(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("weightguard.toml").write_text("limits.tensors = 0")
    names = ("json", "sarif", "junit", "markdown", "html")
    asked = [part for name in names for part in ("--report", f"{name}=out.{name}")]
    assert main(["gate", "model", *asked]) == 1
    assert capsys.readouterr().out.startswith("REFUSED: 1 error finding\n")
    assert all("WG515" in Path(f"out.{name}").read_text() for name in names)
    assert all(
        "weightguard.toml" in Path(f"out.{name}").read_text() for name in ("markdown", "html")
    )
    assert json.loads(Path("out.json").read_text())["policy"].endswith("weightguard.toml")
    # earlier reports may be replaced, weights may not
    assert main(["gate", "model", *asked]) == 1
    before = (model / "m.safetensors").read_bytes()
    assert main(["gate", "model", "--report", "json=model/m.safetensors"]) == 2
    assert main(["gate", "model", "--report", "json=weightguard.toml"]) == 2
    assert (model / "m.safetensors").read_bytes() == before
    for wrong in ("json", "pdf=x", "json=", "=x"):
        assert main(["gate", "model", "--report", wrong]) == 2


def test_several_checkpoints_one_after_another(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("weightguard.toml").write_text("limits.tensors = 1")
    (tmp_path / "large").mkdir()
    tensors = {name: random_tensor("F32", (64,)) for name in "ab"}
    write_safetensors(tmp_path / "large" / "m.safetensors", tensors)
    assert main(["gate", "model", "model"]) == 0
    assert main(["gate", "large", "model"]) == 1
    assert main(["gate", "model", "nowhere", "large"]) == 2
    capsys.readouterr()
    assert main(["gate", "model", "large", "-o", "x"]) == 2
    assert "one PATH" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [f'"{HOSTILE.encode("unicode_escape").decode()}" = 1', f'fail-on = "{HOSTILE[5:]}"',
     f'[drift]\nbase = "{HOSTILE[5:]}"', f'[allow]\ndtypes = ["{HOSTILE[5:]}"]'],
)  # fmt: skip
def test_a_hostile_policy_forges_no_output(
    text: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("weightguard.toml").write_text(text.replace("\\x1b", "\\u001b"))
    assert main(["gate", "model"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert "\x1b" not in line
    assert "<script" not in line
    assert "##[" not in line
    assert line.startswith("weightguard: ")


@pytest.mark.parametrize("form", ["text", "json", "sarif", "junit", "markdown", "html"])
def test_drift_is_told_in_every_format(
    form: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_safetensors(Path("base.safetensors"), {"w": random_tensor("F32", (64, 64), seed=9)})
    Path("weightguard.toml").write_text('drift.base = "base.safetensors"\ndrift.max-change = 0.001')
    assert main(["gate", "model", "--format", form]) == 1
    captured = capsys.readouterr()
    assert "WG60" in captured.out
    assert captured.err == ""


@pytest.mark.parametrize(
    ("policy", "where"),
    [
        ('[rules]\n\nselect = ["WG4"]', "weightguard.toml', line 3: rules.select leaves nothing"),
        ('[signature]\npublic-key = "absent"', "line 2: signature.public-key cannot be used: "),
        ('[signature]\ncertificates = ["absent"]', "line 2: signature.certificates cannot be used"),
        (
            '[drift]\n\nbase = "absent"',
            "absent' cannot be opened: No such file or directory. Check",
        ),
        (
            '[rules]\nselect = [\n"WG1",',
            "no TOML: Invalid value (at the end of the document, line 3)",
        ),
    ],
)
def test_what_a_policy_names_and_is_not_there_is_an_error_with_its_line(
    model: Path, capsys: pytest.CaptureFixture[str], policy: str, where: str
) -> None:
    Path("weightguard.toml").write_text(policy)
    assert main(["gate", "model"]) == 2
    said = capsys.readouterr().err
    assert where in said
    assert len(said.splitlines()) == 1


def test_the_line_is_that_of_the_projects_file(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("pyproject.toml").write_text('[tool.x]\n[tool.weightguard.drift]\nbase = "absent"\n')
    assert main(["gate", "model"]) == 2
    assert "'pyproject.toml', line 3: drift.base" in capsys.readouterr().err.replace(
        f"{Path.cwd()}/", ""
    )


def test_filling_the_trust_cache_is_a_check_like_any_other(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path.cwd() / "cache"))
    os.utime(model / "m.safetensors", (1, 1))
    assert main(["manifest", "model", "-o", "m.weightguard.json"]) == 0
    Path("weightguard.toml").write_text("")
    verdicts = []
    capsys.readouterr()
    for options in ([], ["--trust-cache"]):
        main(["gate", "model", "--manifest", "m.weightguard.json", *options])
        verdicts.append(capsys.readouterr().out.splitlines()[0])
    assert verdicts == ["EQUAL: the one tensor is that of the manifest"] * 2
