"""What runs in other people's pipelines: each shell is executed, and on hostile input too."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.checkpoints import random_tensor, safetensors_bytes

ROOT = Path(__file__).parent.parent
PROGRAMS = Path(sys.executable).parent
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
STEPS: list[dict[str, Any]] = ACTION["runs"]["steps"]

SOUND = {"a.weight": random_tensor("BF16", (16, 64), 1)}
NAN = {"a.weight": ("BF16", (16, 64), SOUND["a.weight"][2][:-2] + b"\xc0\x7f")}


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    root = tmp_path / "workspace"
    (root / ".git").mkdir(parents=True)
    (root / "weightguard.toml").write_text("")
    for name, tensors in (("good", SOUND), ("bad", NAN)):
        (root / name).mkdir()
        (root / name / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    return root


class Runner:
    """Runs the steps of the composite action as the service does, without the service."""

    def __init__(self, workspace: Path, programs: Path = PROGRAMS, **inputs: str):
        self.workspace, self.programs = workspace, programs
        self.inputs = {n: entry.get("default", "") for n, entry in ACTION["inputs"].items()}
        self.inputs |= {"version": "none", **{n.replace("_", "-"): v for n, v in inputs.items()}}
        self.files = {name: workspace.parent / name for name in ("output", "summary", "temp")}
        self.files["temp"].mkdir(exist_ok=True)
        self.outputs: dict[str, str] = {}
        self.log = ""

    def run(self, number: int) -> int:
        step = STEPS[number]
        for path in (self.files["output"], self.files["summary"]):
            path.touch()
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=self.workspace,
            env={
                "PATH": f"{self.programs}:{os.environ['PATH']}",
                "HOME": str(self.workspace.parent),
                "RUNNER_TEMP": str(self.files["temp"]),
                "GITHUB_OUTPUT": str(self.files["output"]),
                "GITHUB_STEP_SUMMARY": str(self.files["summary"]),
                **{name: self._value(text) for name, text in step["env"].items()},
            },
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        self.log += done.stdout + done.stderr
        lines = self.files["output"].read_text().splitlines()
        self.outputs = dict(line.split("=", 1) for line in lines)
        return done.returncode

    def job(self) -> int:
        """Run install, gate and verdict; return the status that the job ends with."""
        for number in (0, 1):
            status = self.run(number)
            if status:
                return status
        return self.run(3)

    def _value(self, text: str) -> str:
        known = {f"inputs.{name}": value for name, value in self.inputs.items()}
        known["github.action_path"] = str(ROOT)
        known["steps.gate.outputs.status"] = self.outputs.get("status", "")
        found = re.fullmatch(r"\$\{\{ ([a-z._-]+) \}\}", text)
        assert found, text
        return known[found[1]]


def test_no_input_is_pasted_into_a_shell() -> None:
    runs = [step["run"] for step in STEPS if "run" in step]
    assert len(runs) == 3
    assert not any("${{" in run for run in runs)
    assert all(step["shell"] == "bash" for step in STEPS if "run" in step)
    used = {name for step in STEPS for name in re.findall(r"inputs\.([a-z-]+)", str(step))}
    assert used == set(ACTION["inputs"])


def test_sound_weights_pass(workspace: Path) -> None:
    runner = Runner(workspace, path="good")
    assert runner.job() == 0, runner.log
    assert "SOUND" in runner.files["summary"].read_text()
    assert '"2.1.0"' in Path(runner.outputs["sarif"]).read_text()


def test_damaged_weights_do_not_pass(workspace: Path) -> None:
    runner = Runner(workspace, path="bad")
    assert runner.job() == 1
    assert runner.outputs["status"] == "1"
    assert "WG201" in runner.files["summary"].read_text()
    assert "WG201" in Path(runner.outputs["sarif"]).read_text()


def test_inputs_reach_the_gate(workspace: Path) -> None:
    (workspace / "strict.toml").write_text("limits.tensors = 0")
    assert Runner(workspace, path="good", policy="strict.toml").job() == 1
    assert Runner(workspace, path="bad", policy="strict.toml", fail_on="critical").job() == 1
    assert Runner(workspace, path="good", policy="strict.toml", fail_on="critical").job() == 0
    assert Runner(workspace, path="good", manifest="none.json").job() == 2


HOSTILE = [
    "$(touch pwned)",
    "`touch pwned`",
    "; touch pwned #",
    "good\n::error::forged\nstatus=0",
    "good && touch pwned",
    "--init",
    "--policy=/dev/null",
    "' ; touch pwned ; '",
    "nowhere",
    "",
]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_path_is_only_a_path(hostile: str, workspace: Path) -> None:
    before = sorted(workspace.rglob("*"))
    runner = Runner(workspace, path=hostile)
    assert runner.job() == 2, runner.log
    assert sorted(workspace.rglob("*")) == before
    assert not any(line.lstrip().startswith("::") for line in runner.log.splitlines())
    assert runner.outputs["status"] == "2"
    assert runner.files["summary"].read_text()


@pytest.mark.parametrize("name", ["policy", "manifest", "fail_on"])
@pytest.mark.parametrize("hostile", ["$(touch pwned)", "; touch pwned", "--init", "x\nstatus=0"])
def test_other_inputs_are_only_values(name: str, hostile: str, workspace: Path) -> None:
    before = sorted(workspace.rglob("*"))
    runner = Runner(workspace, path="good", **{name: hostile})
    assert runner.job() == 2, runner.log
    assert sorted(workspace.rglob("*")) == before


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    """A folder with a python3 that only writes down what it was asked to do."""
    folder = tmp_path / "stub"
    folder.mkdir()
    script = folder / "python3"
    script.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > "$HOME/asked"\n')
    script.chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("version", "extras", "asked"),
    [
        ("", "", str(ROOT)),
        ("", "sign", f"{ROOT}[sign]"),
        ("0.1.0", "", "weightguard-integrity==0.1.0"),
        ("1.2.0rc1", "sign,torch", "weightguard-integrity[sign,torch]==1.2.0rc1"),
    ],
)
def test_what_is_installed(
    version: str, extras: str, asked: str, workspace: Path, stub: Path
) -> None:
    runner = Runner(workspace, stub, path="good", version=version, extras=extras)
    assert runner.run(0) == 0, runner.log
    assert (workspace.parent / "asked").read_text().splitlines() == [
        "-m", "pip", "install", "--quiet", "--", asked,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("version", "extras"),
    [("1.0 --index-url=http://x", ""), ("$(touch pwned)", ""), ("x", ""), ("", "a] @ http://x"),
     ("", "sign;touch pwned"), ("1.0\n2.0", "")],
)  # fmt: skip
def test_nothing_hostile_is_installed(
    version: str, extras: str, workspace: Path, stub: Path
) -> None:
    assert Runner(workspace, stub, path="good", version=version, extras=extras).run(0) == 2
    assert not (workspace.parent / "asked").exists()


def hook(workspace: Path, *files: str) -> subprocess.CompletedProcess[str]:
    (entry,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert all(re.search(entry["files"], file) for file in files)
    program, *rest = shlex.split(entry["entry"])
    return subprocess.run(
        [PROGRAMS / program, *rest, *entry["args"], *files],
        cwd=workspace,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_pre_commit_hook(workspace: Path) -> None:
    good, bad = "good/model.safetensors", "bad/model.safetensors"
    assert hook(workspace, good).returncode == 0
    both = hook(workspace, good, bad)
    assert both.returncode == 1
    assert "WG201" in both.stdout
    dashed = workspace / "--init.safetensors"
    dashed.write_bytes((workspace / good).read_bytes())
    refused = hook(workspace, dashed.name)
    assert refused.returncode == 2
    assert "lies with the checkpoint" in refused.stderr


@pytest.mark.parametrize(
    ("checkpoint", "status"),
    [("good", 0), ("bad", 1), ("$(touch pwned)", 2), ("--init", 2), ("; touch pwned", 2)],
)
def test_the_gitlab_job(checkpoint: str, status: int, workspace: Path) -> None:
    document = yaml.safe_load((ROOT / "examples" / "ci" / "gitlab.yml").read_text())
    (job,) = document.values()
    before = {path.name for path in workspace.iterdir()}
    done = subprocess.run(
        ["sh", "-e", "-c", "\n".join(job["script"])],
        cwd=workspace,
        env={
            "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
            **job["variables"],
            "WEIGHTGUARD_INSTALL": "",
            "CHECKPOINT": checkpoint,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    made = {path.name for path in workspace.iterdir()} - before
    written = {"gate.junit.xml", "gate.html"}
    assert made == written if status < 2 else made <= written
    if status < 2:
        tree = ET.parse(workspace / job["artifacts"]["reports"]["junit"])
        assert len([*tree.iter("failure")]) == status
        assert job["artifacts"]["paths"] == ["gate.html"]
