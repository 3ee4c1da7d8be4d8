import subprocess
import sys

import pytest

from tests.checkpoints import random_tensor, write_safetensors
from tests.signers import write_authority, write_key
from weightguard_cli.main import main

MANIFEST = "model.weightguard.json"


@pytest.fixture
def keys(tmp_path):
    return write_key(tmp_path, "key")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model").mkdir()
    write_safetensors(
        tmp_path / "model/model.safetensors", {"a": random_tensor("BF16", (16, 32), 1)}
    )
    return tmp_path / "model"


def run(*arguments) -> int:
    return main([*map(str, arguments)])


def test_sign_verify_and_damage(folder, keys, capsys):
    assert run("sign", folder, "--key", keys[0]) == 0
    assert "signs every file" in capsys.readouterr().out
    verify = ("verify", folder, folder / MANIFEST, "--public-key", keys[1])
    assert run(*verify) == 0
    out = capsys.readouterr().out
    assert out.startswith("EQUAL: the one tensor is that of the manifest, and all files are signed")
    (folder / "tokenizer.json").write_text("{}")
    assert run(*verify) == 1
    out = capsys.readouterr().out
    assert out.startswith("UNTRUSTED")
    assert "WG508 unsigned-file" in out


def test_a_demanded_signature_that_is_not_there_fails_whatever_fails_else(folder, keys, capsys):
    assert run("sign", folder, "--key", keys[0]) == 0
    verify = ("verify", folder, folder / MANIFEST, "--public-key", keys[1], "--fail-on", "critical")
    assert run(*verify) == 0
    signature = folder / "model.sig"
    (folder / "tokenizer.json").write_text("{}")
    assert run(*verify) == 1
    (folder / "tokenizer.json").unlink()
    for spoil in (
        signature.unlink,
        lambda: signature.write_text("{}"),
        lambda: signature.unlink() or signature.symlink_to("/etc/passwd"),
    ):
        spoil()
        capsys.readouterr()
        assert run(*verify) == 1
        assert "1 critical finding" in capsys.readouterr().out.splitlines()[0]


def test_changed_weights_are_not_signed(folder, keys, capsys):
    assert run("manifest", folder, "-o", folder / MANIFEST) == 0
    write_safetensors(folder / "model.safetensors", {"a": random_tensor("BF16", (16, 32), 2)})
    assert run("sign", folder, "--key", keys[0]) == 1
    taken = capsys.readouterr()
    assert "WG401" in taken.out
    assert "not signed" in taken.err
    assert not (folder / "model.sig").exists()


def test_passwords_come_from_the_environment(folder, tmp_path, monkeypatch, capsys):
    private, public = write_key(tmp_path, "locked", password="hunter2")
    assert run("sign", folder, "--key", private) == 2
    assert "--password-env" in capsys.readouterr().err
    assert run("sign", folder, "--key", private, "--password-env", "NOT_SET") == 2
    monkeypatch.setenv("KEY_PASSWORD", "wrong")
    assert run("sign", folder, "--key", private, "--password-env", "KEY_PASSWORD") == 2
    assert "wrong" in capsys.readouterr().err
    monkeypatch.setenv("KEY_PASSWORD", "hunter2")
    assert run("sign", folder, "--key", private, "--password-env", "KEY_PASSWORD") == 0
    assert run("verify", folder, folder / MANIFEST, "--public-key", public) == 0


def test_a_key_that_others_can_read_is_warned_of(folder, keys, capsys):
    keys[0].chmod(0o644)
    assert run("sign", folder, "--key", keys[0]) == 0
    assert "others can read the private key" in capsys.readouterr().err


def test_what_is_no_key_is_not_warned_of(folder, keys, tmp_path, capsys):
    junk = tmp_path / "junk.pem"
    for data in (b"junk", keys[1].read_bytes()):
        junk.write_bytes(data)
        junk.chmod(0o644)
        assert run("sign", folder, "--key", junk) == 2
        said = capsys.readouterr().err
        assert "warning" not in said
        assert "Give " in said


def test_a_signature_that_is_cut_is_to_be_fetched_or_made_again(folder, keys, capsys):
    assert run("sign", folder, "--key", keys[0]) == 0
    for data in (b"", (folder / "model.sig").read_bytes()[:50]):
        (folder / "model.sig").write_bytes(data)
        assert run("verify", folder, folder / MANIFEST, "--public-key", keys[1]) == 1
        assert "Do: Fetch the signature again, or have the folder signed" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--key", "K", "--sigstore"),
        ("--sigstore", "--password-env", "X"),
        ("--key", "K", "--chain", "C"),
        ("--key", "K", "--identity-token-env", "X"),
        ("--key", "absent.pem"),
    ],
)
def test_contradictory_options_of_sign(folder, options, capsys):
    assert run("sign", folder, *options) == 2
    assert capsys.readouterr().err.startswith("weightguard: ")


@pytest.mark.parametrize(
    "options",
    [
        ("--public-key", "P", "--certificate-chain", "C"),
        ("--identity", "me"),
        ("--identity-provider", "https://x"),
        ("--signature", "S"),
        ("--trust-config", "T"),
        ("--public-key", "absent.pub"),
    ],
)
def test_contradictory_options_of_verify(folder, keys, options, capsys):
    assert run("sign", folder, "--key", keys[0]) == 0
    capsys.readouterr()
    assert run("verify", folder, folder / MANIFEST, *options) == 2
    assert capsys.readouterr().err.startswith("weightguard: ")


def test_without_the_extra_the_error_says_what_to_install(folder, keys):
    code = (
        "import sys; sys.modules['model_signing'] = None\n"
        "from weightguard_cli.main import main\n"
        f"sys.exit(main(['sign', {str(folder)!r}, '--key', {str(keys[0])!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'weightguard-integrity[sign]'" in done.stderr
    assert [path.name for path in folder.iterdir()] == ["model.safetensors"]


def test_the_library_adds_nothing_to_what_is_told(folder, tmp_path):
    certified = write_authority(tmp_path, "code", "code")
    chain = ("--certificate", certified["leaf"], "--chain", certified["intermediate"])
    assert run("sign", folder, "--key", certified["key"], *chain) == 0
    command = [sys.executable, "-m", "weightguard_cli", "verify", folder, folder / MANIFEST]
    command += ["--certificate-chain", certified["root"]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_target_that_cannot_be_written_is_told_before_the_work(folder, keys, capsys):
    assert run("sign", folder, "--key", keys[0], "--signature", folder / "no/such/model.sig") == 2
    assert [path.name for path in folder.iterdir()] == ["model.safetensors"]
