"""repair and inject as commands: what they print, and how they end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import random_tensor, write_safetensors
from tests.damaged import MIB, attest, contents, flip, overwrite, parity_of, write_model
from weightguard.repair.journal import locked
from weightguard_cli.main import main
from weightguard_cli.repair import repaired_name

SECOND = "model-00002-of-00002.safetensors"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


@pytest.fixture
def manifest(model: Path, tmp_path: Path) -> Path:
    return attest(model, tmp_path / "m.weightguard.json", parity=True)


def lose_two(model: Path) -> None:
    for block in (2, 4):
        overwrite(model / SECOND, block * MIB + 10_000, os.urandom(300_000))


def output_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_a_healed_checkpoint_ends_with_0_and_says_by_what(
    model: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = contents(model)
    flip(model / SECOND, 5000)
    overwrite(model / SECOND, 2 * MIB + 10_000, os.urandom(300_000))
    assert main(["repair", str(model), str(manifest)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("HEALED: ")
    assert f"1 block by residues and 1 block by parity  {SECOND}  c\n" in text
    assert f"  result    {tmp_path / 'model.repaired'}\n" in text
    assert "copied as they are, not checked: sub/notes.txt and tokenizer.json\n" in text
    assert "EQUAL: " in text
    assert contents(tmp_path / "model.repaired") == sound
    assert main(["repair", str(model), str(manifest)]) == 2
    assert "exists" in capsys.readouterr().err


def test_damage_that_remains_ends_with_1(
    model: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lose_two(model)
    before = contents(model)
    assert main(["repair", str(model), str(manifest), "-o", str(tmp_path / "out")]) == 1
    text = capsys.readouterr().out
    assert text.startswith("NOT HEALED: nothing could be restored, and nothing was changed\n")
    assert "DIFFERENT: 1 critical finding" in text
    flip(model / "model-00001-of-00002.safetensors", 400)
    assert main(["repair", str(model), str(manifest), "--in-place", "--format", "json"]) == 1
    document = output_of(capsys)
    assert document["schema"] == "weightguard-repair-v1"
    assert [t["tensor"] for t in document["tensors"]] == ["a"]
    assert [f["location"]["tensor"] for f in document["report"]["findings"]] == ["c"]
    assert contents(model) == before


def test_parity_that_does_not_suffice_ends_with_1_and_names_the_golden_copy(
    model: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    golden = write_model(tmp_path / "golden")
    os.truncate(model / SECOND, 3 * MIB)
    assert main(["repair", str(model), str(manifest)]) == 1
    text = capsys.readouterr().out
    assert "parity does not suffice: 8 blocks lost in 1 group" in text
    assert "(--golden)" in text
    assert main(["repair", str(model), str(manifest), "--no-parity"]) == 2
    assert "(--golden), or fetch them again" in capsys.readouterr().out
    overwrite(model / SECOND, 0, b"x" * 8)
    parity_of(manifest).write_bytes(b"")
    assert main(["repair", str(model), str(manifest), "--golden", f"file://{golden}"]) == 0
    text = capsys.readouterr().out
    assert "gone without parity: " in text
    assert "of header, metadata or length by golden copy" in text
    assert f"header and metadata of {SECOND} are the golden copy's" in text
    assert contents(tmp_path / "model.repaired") == contents(golden)


def test_a_sound_checkpoint_ends_with_0(
    model: Path, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["repair", str(model), str(manifest), "--in-place"]) == 0
    assert capsys.readouterr().out.startswith("INTACT: nothing was damaged\n")


def test_a_copy_of_a_sound_checkpoint_is_called_so(
    model: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["repair", str(model), str(manifest), "-o", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert text.startswith("INTACT: nothing was damaged\n")
    assert "the result is a copy, the same as what was given\n" in text
    assert contents(tmp_path / "out") == contents(model)


def test_an_index_stands_for_its_folder(
    model: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = model / "model.safetensors.index.json"
    sound = contents(model)
    flip(model / SECOND, 5000)
    before = contents(model)
    assert main(["repair", str(index), str(manifest), "-o", str(model / "new")]) == 2
    assert "several files" in capsys.readouterr().err
    assert main(["repair", str(index), str(manifest)]) == 0
    assert contents(model) == before
    healed = contents(tmp_path / "model.repaired")
    assert healed == {name: sound[name] for name in healed}
    assert len(healed) == 3
    assert repaired_name(Path("m/big-00001-of-00002.gguf")) == Path.cwd() / "m.repaired"
    assert repaired_name(Path("m/big.gguf")) == Path.cwd() / "m" / "big.repaired.gguf"


def test_a_journal_of_what_was_replaced_is_told(
    model: Path, manifest: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = (model / SECOND).read_bytes()
    flip(model / SECOND, 5000)
    arguments = ["repair", str(model), str(manifest), "--in-place"]
    with monkeypatch.context() as patch:
        patch.setattr("weightguard.repair.run.apply_journal", lambda *_: False)
        main(arguments)
    capsys.readouterr()
    assert main(["verify", str(model), str(manifest)]) == 1
    assert "error WG123 unfinished-repair\n" in capsys.readouterr().out
    before = contents(model)
    assert main(["manifest", str(model), "-o", str(model / "new.weightguard.json")]) == 2
    error = capsys.readouterr().err
    assert "was interrupted" in error
    assert "--in-place" in error
    assert contents(model) == before
    (model / SECOND).write_bytes(b"".join((sound[:5000], b"zz", sound[5002:])))
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "was replaced or changed since" in error
    assert "Delete that file and repair again" in error
    (model / SECOND).write_bytes(sound)
    assert main(["verify", str(model), str(manifest)]) == 1
    assert capsys.readouterr().out.startswith("UNFINISHED: 1 error finding\n")
    assert main(arguments) == 0
    assert "finished from its journal" in capsys.readouterr().out
    assert main(["verify", str(model), str(manifest)]) == 0


@pytest.mark.parametrize("kind", ["parity gone", "parity altered", "parity cut", "sidecar gone",
                                  "golden other",
                                  "golden gone", "two targets", "busy", "no manifest"])  # fmt: skip
def test_what_cannot_be_done_ends_with_2_and_changes_nothing(
    model: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    lose_two(model)
    before = contents(model)
    arguments = ["repair", str(model), str(manifest), "--in-place"]
    other = write_safetensors(
        tmp_path / "o.safetensors", {"c": random_tensor("F16", (5, 1000, 1000))}
    )
    match kind:
        case "parity gone":
            parity_of(manifest).unlink()
        case "parity altered":
            flip(parity_of(manifest), 5000)
        case "parity cut":
            os.truncate(parity_of(manifest), 100_000)
        case "sidecar gone":
            next(tmp_path.glob("*.sidecar")).unlink()
        case "golden other":
            arguments += ["--golden", str(other)]
        case "golden gone":
            arguments += ["--golden", str(tmp_path / "nothing")]
        case "two targets":
            arguments += ["-o", str(tmp_path / "out")]
        case "no manifest":
            arguments[2] = str(other)
    if kind == "busy":
        with locked(model):
            assert main(arguments) == 2
    else:
        assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("weightguard: ")
    assert "internal error" not in captured.err
    assert contents(model) == before
    if kind.startswith(("parity", "sidecar")):
        assert "Fetch it again from where the manifest came" in captured.err
    assert ("--no-parity" in captured.err) == kind.startswith("parity")


def limited(size: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process that cannot make a file longer than ``size``."""
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size},) * 2);"
        "from weightguard_cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )


def test_a_limit_on_file_sizes_is_a_full_disk(model: Path, manifest: Path, tmp_path: Path) -> None:
    """RLIMIT_FSIZE in a process of its own: every write fails where the limit is reached."""
    overwrite(model / SECOND, 2 * MIB + 10_000, os.urandom(300_000))
    before, around = contents(model), {p.name for p in tmp_path.iterdir()}
    for how in (["--in-place"], ["-o", str(tmp_path / "out")]):
        done = limited(500_000, "repair", str(model), str(manifest), *how)
        assert done.returncode == 2
        assert "File too large" in done.stderr
        assert "Traceback" not in done.stderr
        assert contents(model) == before
        assert {p.name for p in tmp_path.iterdir()} == around


def test_growth_that_a_limit_forbids_leaves_no_file_half_extended(
    model: Path, manifest: Path, tmp_path: Path
) -> None:
    size = (model / SECOND).stat().st_size
    os.truncate(model / SECOND, size - 300_000)
    before = contents(model)
    done = limited(size - 100_000, "repair", str(model), str(manifest), "--in-place")
    assert done.returncode == 2
    assert "longer by 300,000 bytes" in done.stderr
    assert "File too large" in done.stderr
    assert contents(model) == before
    assert main(["repair", str(model), str(manifest), "--in-place"]) == 0


def test_a_drill_from_injection_to_repair(
    model: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "drill"
    arguments = ["inject", str(model), "-o", str(damaged), "--flip", "b:3,5:30", "--zero", "n:7"]
    assert main([*arguments, "--random", "3", "--seed", "5", "--truncate", "9"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Wrote {damaged} with 6 changes:\n  flipped bit 30 of b[3,5], ")
    assert "zeroed 4 bytes of n[7], " in text
    assert f"cut 9 bytes off {SECOND} at byte " in text
    assert main(["repair", str(damaged), str(manifest), "--in-place"]) == 0
    assert contents(damaged) == contents(model)
    capsys.readouterr()
    again = [*arguments[:3], str(tmp_path / "again"), *arguments[4:], "--format", "json"]
    assert main(again) == 0
    assert [c["kind"] for c in output_of(capsys)["changes"]] == ["flip", "zero"]


@pytest.mark.parametrize(
    "options",
    [[], ["--flip", "b"], ["--flip", "b:x:1"], ["--flip", "b:0,0:x"], ["--truncate", "x"],
     ["--zero", "b:x"], ["--flip", "nothing:0:0"], ["--random", "0"]],
)  # fmt: skip
def test_a_drill_that_says_nothing_ends_with_2(
    model: Path, tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inject", str(model), "-o", str(tmp_path / "out"), *options]) == 2
    assert capsys.readouterr().err.startswith("weightguard: ")
    assert not (tmp_path / "out").exists()


def test_hostile_names_do_not_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "\x1b[31m\n::error::x|<script>"
    model = write_safetensors(tmp_path / "m.safetensors", {name: random_tensor("F32", (64, 64))})
    manifest = attest(model, tmp_path / "m.weightguard.json", parity=True)
    flip(model, model.stat().st_size - 3)
    assert main(["repair", str(model), str(manifest)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\n::error" not in out
