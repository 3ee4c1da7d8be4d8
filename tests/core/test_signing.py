import base64
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.checkpoints import random_tensor, write_sharded
from tests.signers import model_signing, write_authority, write_key
from weightguard import ManifestError, Report, WeightguardError
from weightguard.checkpoint.unfinished import JOURNAL
from weightguard.signing import (
    Certificate,
    CertifiedKey,
    PrivateKey,
    PublicKey,
    Signed,
    Sigstore,
    SigstoreLogin,
    sign,
    verify_signature,
    verify_signed,
)

MANIFEST = "model.weightguard.json"
SHARD = "model-00001-of-00002.safetensors"


def codes(findings) -> list[str]:
    return [f.rule for f in findings]


def make_model(folder: Path) -> Path:
    write_sharded(
        folder,
        [{"a": random_tensor("BF16", (16, 32), 1)}, {"b": random_tensor("F32", (8, 8), 2)}],
    )
    (folder / "config.json").write_text('{"hidden_size": 32}')
    (folder / "sub").mkdir()
    (folder / "sub" / "notes.txt").write_text("notes")
    return folder


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return write_key(tmp_path_factory.mktemp("keys"), "key")


@pytest.fixture(scope="module")
def signed_once(tmp_path_factory, keys):
    folder = make_model(tmp_path_factory.mktemp("signed") / "model")
    outcome = sign(folder, PrivateKey(keys[0]))
    assert isinstance(outcome, Signed)
    assert outcome.attested
    return folder


@pytest.fixture
def signed(signed_once, tmp_path):
    return Path(shutil.copytree(signed_once, tmp_path / "model"))


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_what_we_sign_the_real_program_accepts_and_so_do_we(tmp_path, curve):
    private, public = write_key(tmp_path, "key", curve)
    folder = make_model(tmp_path / "model")
    sign(folder, PrivateKey(private))
    run = model_signing(
        "verify", "key", folder, "--signature", folder / "model.sig", "--public_key", public
    )
    assert (run.returncode, run.stdout.strip()) == (0, "Verification succeeded"), run.stderr
    report = verify_signed(folder, folder / MANIFEST, PublicKey(public))
    assert report.complete
    assert report.findings == ()


def test_what_the_real_program_signs_we_accept(tmp_path, keys):
    folder = make_model(tmp_path / "model")
    run = model_signing(
        "sign", "key", folder, "--signature", folder / "model.sig", "--private_key", keys[0]
    )
    assert run.returncode == 0, run.stderr
    assert verify_signature(folder, PublicKey(keys[1])) == ()
    (folder / SHARD).write_bytes(b"other")
    assert codes(verify_signature(folder, PublicKey(keys[1]))) == ["WG506"]


@pytest.mark.parametrize("algorithm", ["sha256", "blake2", "blake3"])
@pytest.mark.parametrize("by_ranges", [False, True])
def test_every_way_the_library_hashes_is_understood(tmp_path, keys, algorithm, by_ranges):
    from model_signing import hashing, signing

    folder = make_model(tmp_path / "model")
    (folder / "empty").touch()
    config = hashing.Config()
    if by_ranges:
        config.use_shard_serialization(hashing_algorithm=algorithm, shard_size=100)
    else:
        config.use_file_serialization(hashing_algorithm=algorithm)
    config.set_ignored_paths(paths=["model.sig", "sub"])
    signer = signing.Config().use_elliptic_key_signer(private_key=keys[0])
    signer.set_hashing_config(config).sign(folder, folder / "model.sig")
    assert verify_signature(folder, PublicKey(keys[1])) == ()
    with (folder / SHARD).open("ab") as file:
        file.write(b"x")
    assert codes(verify_signature(folder, PublicKey(keys[1]))) == ["WG506"]
    with (folder / SHARD).open("r+b") as file:
        file.truncate(120)
    assert codes(verify_signature(folder, PublicKey(keys[1]))) == ["WG506"]


def flip(path: Path, offset: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def bundle_edit(folder: Path, change: Callable[[dict], None]) -> None:
    path = folder / "model.sig"
    bundle = json.loads(path.read_text())
    change(bundle)
    path.write_text(json.dumps(bundle))


def payload_edit(old: bytes, new: bytes) -> Callable[[dict], None]:
    def change(bundle: dict) -> None:
        envelope = bundle["dsseEnvelope"]
        payload = base64.b64decode(envelope["payload"])
        assert old in payload
        envelope["payload"] = base64.b64encode(payload.replace(old, new)).decode()

    return change


def sidecar(folder: Path) -> Path:
    return next(folder.glob("*.sidecar"))


FAULTS: dict[str, tuple[Callable[[Path], object], str, str | None]] = {
    "a weight": (lambda f: flip(f / SHARD), "WG506", SHARD),
    "a configuration": (lambda f: flip(f / "config.json"), "WG506", "config.json"),
    "a manifest": (lambda f: flip(f / MANIFEST, 5), "WG506", MANIFEST),
    "a manifest's end": (lambda f: (f / MANIFEST).open("a").write("\n"), "WG506", MANIFEST),
    "a sidecar": (lambda f: flip(sidecar(f)), "WG506", None),
    "a file in a folder": (lambda f: flip(f / "sub/notes.txt"), "WG506", "sub/notes.txt"),
    "a missing file": (lambda f: (f / "config.json").unlink(), "WG507", "config.json"),
    "a missing folder": (lambda f: shutil.rmtree(f / "sub"), "WG507", "sub/notes.txt"),
    "an extra file": (lambda f: (f / "modeling.py").touch(), "WG508", "modeling.py"),
    "an extra file below": (lambda f: (f / "sub/x").touch(), "WG508", "sub/x"),
    "an extra link": (lambda f: (f / "x").symlink_to("/etc/passwd"), "WG508", "x"),
    "an extra pipe": (lambda f: os.mkfifo(f / "pipe"), "WG508", "pipe"),
    "a hostile name": (lambda f: (f / "x\x1b[2J|<script>").touch(), "WG508", "x\x1b[2J|<script>"),
    "no Unicode": (lambda f: (f / os.fsdecode(b"x\xff")).touch(), "WG508", "x\\udcff"),
    "a missing signature": (lambda f: (f / "model.sig").unlink(), "WG501", "model.sig"),
    "an empty signature": (lambda f: (f / "model.sig").write_bytes(b""), "WG502", "model.sig"),
    "a bomb": (lambda f: (f / "model.sig").write_text("[" * 100000), "WG502", "model.sig"),
    "another document": (lambda f: (f / "model.sig").write_text("{}"), "WG502", "model.sig"),
    "no signature in it": (
        lambda f: bundle_edit(f, lambda b: b["dsseEnvelope"].update(signatures=[])),
        "WG502",
        "model.sig",
    ),
    "wrong types": (
        lambda f: bundle_edit(f, lambda b: b.update(dsseEnvelope=7)),
        "WG502",
        "model.sig",
    ),
    "another media type": (
        lambda f: bundle_edit(f, lambda b: b.update(mediaType="x")),
        "WG502",
        "model.sig",
    ),
    "a changed list": (
        lambda f: bundle_edit(f, payload_edit(b"config.json", b"konfig.json")),
        "WG503",
        "model.sig",
    ),
    "a way out in the list": (
        lambda f: bundle_edit(f, payload_edit(b"config.json", b"../../../etc")),
        "WG503",
        "model.sig",
    ),
    "a certificate": (
        lambda f: bundle_edit(
            f, lambda b: b.update(verificationMaterial={"x509CertificateChain": {}})
        ),
        "WG504",
        "model.sig",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_the_finding_it_should_be(signed, keys, name):
    damage, code, file = FAULTS[name]
    damage(signed)
    found = verify_signature(signed, PublicKey(keys[1]), must_cover=[signed / MANIFEST])
    assert code in codes(found)
    place = file or sidecar(signed).name
    assert place in [f.location.file for f in found if f.rule == code]
    assert all(f.rule.startswith("WG5") for f in found)
    assert {f.severity for f in found} == {"critical"}


def test_a_link_or_pipe_in_place_of_a_signed_file(signed, keys):
    (signed / "config.json").unlink()
    os.mkfifo(signed / "config.json")
    (signed / "sub/notes.txt").unlink()
    (signed / "sub/notes.txt").symlink_to("/etc/passwd")
    assert codes(verify_signature(signed, PublicKey(keys[1]))) == ["WG110", "WG111"]


def test_a_signature_that_is_no_file_of_the_folder(signed, keys):
    (signed / "model.sig").unlink()
    os.mkfifo(signed / "model.sig")
    (found,) = verify_signature(signed, PublicKey(keys[1]))
    assert (found.rule, found.severity) == ("WG111", "critical")
    (signed / "model.sig").unlink()
    (signed / "model.sig").symlink_to("/etc/passwd")
    assert codes(verify_signature(signed, PublicKey(keys[1]))) == ["WG110"]


def test_a_huge_signature_is_not_read(signed, keys):
    os.truncate(signed / "model.sig", 1 << 40)
    assert codes(verify_signature(signed, PublicKey(keys[1]))) == ["WG116"]


def test_many_unsigned_files_are_summed_up(signed, keys):
    for number in range(150):
        (signed / f"extra-{number:03}").touch()
    found = verify_signature(signed, PublicKey(keys[1]))
    assert codes(found) == ["WG508"] * 101
    assert {f.evidence.get("count") for f in found} == {None, 150}


def test_another_key_even_under_the_first_ones_name(signed, keys, tmp_path):
    _, other = write_key(tmp_path, "other")
    assert codes(verify_signature(signed, PublicKey(other))) == ["WG504"]
    bundle_edit(signed, lambda b: b["verificationMaterial"].update(publicKey={}))
    assert codes(verify_signature(signed, PublicKey(other))) == ["WG503"]
    assert verify_signature(signed, PublicKey(keys[1])) == ()


def test_a_genuine_signature_by_a_hostile_signer_leads_nowhere(tmp_path, keys):
    from model_signing import hashing, manifest, signing

    folder = make_model(tmp_path / "model")

    class Hostile(hashing.Config):
        def hash(self, model_path, **_):
            real = super().hash(model_path)
            digest = next(iter(real.resource_descriptors())).digest
            names = ["../../../etc/passwd", "/etc/passwd", "a/../b", "nul\0", "x" * 5000]
            kind = manifest.SerializationType.from_args(real.serialization_type)
            return manifest.Manifest("m", [kind.new_item(n, digest) for n in names], kind)

    config = signing.Config().use_elliptic_key_signer(private_key=keys[0])
    config.set_hashing_config(Hostile()).sign(folder, tmp_path / "s.sig")
    found = verify_signature(folder, PublicKey(keys[1]), signature=tmp_path / "s.sig")
    assert {f.rule for f in found} <= {"WG110", "WG122", "WG507", "WG508"}
    assert codes(found).count("WG110") == 4


def test_a_manifest_that_is_not_covered(signed, keys, tmp_path):
    shutil.copy(signed / MANIFEST, tmp_path / MANIFEST)
    shutil.copy(sidecar(signed), tmp_path / sidecar(signed).name)
    report = verify_signed(signed, tmp_path / MANIFEST, PublicKey(keys[1]))
    assert codes(report.findings) == ["WG505", "WG505"]


def test_changed_weights_are_told_by_both_and_located(signed, keys):
    flip(signed / SHARD)
    report = verify_signed(signed, signed / MANIFEST, PublicKey(keys[1]))
    assert report.complete
    assert {"WG401", "WG506"} <= set(codes(report.findings))


def test_a_manifest_nobody_can_read_is_told_by_its_signature(signed, keys):
    flip(sidecar(signed))
    report = verify_signed(signed, signed / MANIFEST, PublicKey(keys[1]))
    assert not report.complete
    assert codes(report.findings) == ["WG506"]


def test_a_manifest_that_is_unreadable_though_signed_is_an_error(tmp_path, keys):
    folder = make_model(tmp_path / "model")
    (folder / "m.json").write_text("{}")
    model_signing(
        "sign", "key", folder, "--signature", folder / "model.sig", "--private_key", keys[0]
    )
    with pytest.raises(ManifestError):
        verify_signed(folder, folder / "m.json", PublicKey(keys[1]))


def test_weights_that_differ_from_their_manifest_are_not_signed(signed, keys):
    before = (signed / "model.sig").read_bytes()
    flip(signed / SHARD)
    outcome = sign(signed, PrivateKey(keys[0]))
    assert isinstance(outcome, Report)
    assert "WG401" in codes(outcome.findings)
    assert (signed / "model.sig").read_bytes() == before


def test_signing_again_keeps_the_manifest(signed, keys):
    before = (signed / MANIFEST).read_bytes()
    outcome = sign(signed, PrivateKey(keys[0]))
    assert isinstance(outcome, Signed)
    assert not outcome.attested
    assert (signed / MANIFEST).read_bytes() == before
    assert verify_signature(signed, PublicKey(keys[1])) == ()


def test_a_signature_never_replaces_anything_else(signed, keys):
    before = (signed / SHARD).read_bytes()
    with pytest.raises(WeightguardError, match="is no signature"):
        sign(signed, PrivateKey(keys[0]), signature=signed / SHARD)
    assert (signed / SHARD).read_bytes() == before


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: os.mkfifo(f / "sub/pipe"), "'sub/pipe' is no regular file"),
        (lambda f: (f / "link").symlink_to("config.json"), "'link' is no regular file"),
        (lambda f: (f / "sub" / os.fsdecode(b"x\xff")).touch(), "not Unicode text"),
        (lambda f: [(f / f"{n}.weightguard.json").touch() for n in "ab"], "several manifests"),
        (lambda f: (f / JOURNAL).touch(), "interrupted: nothing was signed.*--in-place.*delete"),
        (lambda f: (f / "sub" / JOURNAL).touch(), "interrupted: nothing was signed"),
    ],
)
def test_a_folder_that_cannot_be_signed_stays_as_it_is(tmp_path, keys, spoil, words):
    folder = make_model(tmp_path / "model")
    spoil(folder)
    before = sorted(folder.rglob("*"))
    with pytest.raises(WeightguardError, match=words):
        sign(folder, PrivateKey(keys[0]))
    assert sorted(folder.rglob("*")) == before


def test_a_signature_may_lie_elsewhere(tmp_path, keys):
    folder, target = make_model(tmp_path / "model"), tmp_path / "elsewhere.sig"
    sign(folder, PrivateKey(keys[0]), signature=target)
    assert verify_signature(folder, PublicKey(keys[1]), signature=target) == ()
    assert codes(verify_signature(folder, PublicKey(keys[1]))) == ["WG501"]
    (folder / "model.sig").touch()
    assert codes(verify_signature(folder, PublicKey(keys[1]), signature=target)) == ["WG508"]


def test_certificates_both_ways(tmp_path):
    good, other = write_authority(tmp_path, "good"), write_authority(tmp_path, "other")
    folder = make_model(tmp_path / "model")
    signer = CertifiedKey(PrivateKey(good["key"]), good["leaf"], (good["intermediate"],))
    sign(folder, signer)
    run = model_signing(
        "verify", "certificate", folder, "--signature", folder / "model.sig",
        "--certificate_chain", good["root"],
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    trusted = Certificate((good["root"],))
    assert verify_signature(folder, trusted) == ()
    assert codes(verify_signature(folder, Certificate((other["root"],)))) == ["WG504"]
    bundle_edit(folder, payload_edit(b"config.json", b"konfig.json"))
    assert codes(verify_signature(folder, trusted)) == ["WG503"]
    run = model_signing(
        "sign", "certificate", folder, "--signature", folder / "model.sig",
        "--private_key", good["key"], "--signing_certificate", good["leaf"],
        "--certificate_chain", good["intermediate"],
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert verify_signature(folder, trusted) == ()


def verified_by_the_program(folder: Path, *trusted: Path) -> bool:
    chain = [option for path in trusted for option in ("--certificate_chain", path)]
    run = model_signing(
        "verify", "certificate", folder, "--signature", folder / "model.sig", *chain
    )
    return run.returncode == 0


@pytest.mark.parametrize("leaf_for", ["signing", "code"])
def test_a_certificate_without_a_chain(tmp_path, leaf_for):
    good = write_authority(tmp_path, "good", leaf_for)
    folder = make_model(tmp_path / "model")
    sign(folder, CertifiedKey(PrivateKey(good["key"]), good["leaf"]))
    whole = (good["root"], good["intermediate"])
    assert verified_by_the_program(folder, *whole)
    assert verify_signature(folder, Certificate(whole)) == ()
    assert not verified_by_the_program(folder, good["root"])
    assert codes(verify_signature(folder, Certificate((good["root"],)))) == ["WG504"]


def test_a_certificate_that_signs_itself(tmp_path):
    own = write_authority(tmp_path, "own", roles=("leaf",))
    folder = make_model(tmp_path / "model")
    sign(folder, CertifiedKey(PrivateKey(own["key"]), own["leaf"]))
    assert verified_by_the_program(folder, own["leaf"])
    assert verify_signature(folder, Certificate((own["leaf"],))) == ()


def test_certificates_in_one_file_travel_together(tmp_path):
    good = write_authority(tmp_path, "good")
    full = tmp_path / "fullchain.crt"
    full.write_bytes(good["leaf"].read_bytes() + good["intermediate"].read_bytes())
    folder = make_model(tmp_path / "model")
    sign(folder, CertifiedKey(PrivateKey(good["key"]), full))
    assert verified_by_the_program(folder, good["root"])
    assert verify_signature(folder, Certificate((good["root"],))) == ()


def test_a_certificate_that_is_not_for_signing(tmp_path):
    wrong = write_authority(tmp_path, "wrong", "web")
    folder = make_model(tmp_path / "model")
    before = sorted(folder.iterdir())
    with pytest.raises(WeightguardError, match=r"not for signing.*digitalSignature"):
        sign(folder, CertifiedKey(PrivateKey(wrong["key"]), wrong["leaf"]))
    assert sorted(folder.iterdir()) == before
    run = model_signing(
        "sign", "certificate", folder, "--signature", folder / "model.sig",
        "--private_key", wrong["key"], "--signing_certificate", wrong["leaf"],
        "--certificate_chain", wrong["intermediate"],
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert not verified_by_the_program(folder, wrong["root"])
    assert codes(verify_signature(folder, Certificate((wrong["root"],)))) == ["WG504"]


def test_what_is_no_certificate_to_sign_with(tmp_path, keys):
    folder = make_model(tmp_path / "model")
    (tmp_path / "empty").touch()
    for path, words in {keys[1]: "holds no PEM", tmp_path / "empty": "holds no PEM",
                        tmp_path / "absent": "cannot read the certificate"}.items():  # fmt: skip
        with pytest.raises(WeightguardError, match=words):
            sign(folder, CertifiedKey(PrivateKey(keys[0]), path))
    assert not (folder / MANIFEST).exists()


def test_no_certificate_means_no_trust_in_the_public_web(signed):
    with pytest.raises(WeightguardError, match="no certificate is given"):
        verify_signature(signed, Certificate(()))


def test_a_certificate_of_another_key(tmp_path, keys):
    good = write_authority(tmp_path, "good")
    folder = make_model(tmp_path / "model")
    before = sorted(folder.iterdir())
    with pytest.raises(WeightguardError, match="is for another key"):
        sign(folder, CertifiedKey(PrivateKey(keys[0]), good["leaf"]))
    assert sorted(folder.iterdir()) == before


def test_the_key_is_looked_at_before_the_signature(signed, tmp_path):
    (signed / "model.sig").unlink()
    with pytest.raises(WeightguardError, match="cannot read the public key"):
        verify_signature(signed, PublicKey(tmp_path / "none.pub"))
    with pytest.raises(WeightguardError, match="cannot read the certificate"):
        verify_signature(signed, Certificate((tmp_path / "none.crt",)))


def test_a_signature_that_cannot_be_written_is_told_by_its_own_name(signed, keys, monkeypatch):
    def full(suffix, prefix, folder):
        raise OSError(errno.EROFS, "Read-only file system", f"{folder}/{prefix}abcd{suffix}")

    before = (signed / "model.sig").read_bytes()
    monkeypatch.setattr("tempfile.mkstemp", full)
    with pytest.raises(WeightguardError, match=r"model\.sig': Read-only") as caught:
        sign(signed, PrivateKey(keys[0]))
    assert ".tmp" not in str(caught.value)
    assert (signed / "model.sig").read_bytes() == before


def test_unusable_roots_of_sigstore(signed, tmp_path):
    (tmp_path / "trust.json").write_text("{}")
    trusted = Sigstore("me@example.com", "https://accounts.example.com", tmp_path / "trust.json")
    with pytest.raises(WeightguardError, match="roots of trust cannot be had"):
        verify_signature(signed, trusted)
    folder = make_model(tmp_path / "unsigned")
    before = sorted(folder.iterdir())
    with pytest.raises(WeightguardError, match="roots of trust cannot be had"):
        sign(folder, SigstoreLogin("token", tmp_path / "trust.json"))
    assert sorted(folder.iterdir()) == before


def test_what_the_network_said_is_told():
    from weightguard.signing.library import reaching_sigstore

    def refresh():
        try:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        except OSError as error:
            raise ValueError("no metadata") from error

    words = r"cannot be had: no metadata \(\[Errno 111\] Connection refused\)\. Check the network"
    with pytest.raises(WeightguardError, match=words), reaching_sigstore():
        refresh()


def test_encrypted_keys(tmp_path):
    private, public = write_key(tmp_path, "key", password="secret")
    folder = make_model(tmp_path / "model")
    before = sorted(folder.iterdir())
    with pytest.raises(WeightguardError, match="is encrypted"):
        sign(folder, PrivateKey(private))
    with pytest.raises(WeightguardError, match="password is wrong"):
        sign(folder, PrivateKey(private, "guess"))
    assert sorted(folder.iterdir()) == before
    sign(folder, PrivateKey(private, "secret"))
    assert verify_signature(folder, PublicKey(public)) == ()
    assert "secret" not in repr(PrivateKey(private, "secret"))


def test_keys_that_cannot_be_used(tmp_path, keys):
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    folder = make_model(tmp_path / "model")
    key = rsa.generate_private_key(65537, 2048)
    rsa_private, rsa_public = tmp_path / "rsa.pem", tmp_path / "rsa.pub"
    rsa_private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    rsa_public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    small, _ = write_key(tmp_path, "small", ec.SECP256K1())
    junk = tmp_path / "junk"
    junk.write_bytes(b"\0" * 100)
    os.mkfifo(tmp_path / "pipe")
    huge = tmp_path / "huge"
    huge.touch()
    os.truncate(huge, 1 << 40)
    before = sorted(folder.iterdir())
    for path, words in {
        rsa_private: "another kind",
        small: "curve secp256k1",
        keys[1]: "is a public key",
        junk: "no PEM private key",
        tmp_path / "absent": "cannot read",
        tmp_path / "pipe": "not a regular file",
        huge: "above the limit",
        tmp_path: "not a regular file",
    }.items():
        with pytest.raises(WeightguardError, match=words):
            sign(folder, PrivateKey(path))
    make_signature_of = PrivateKey(keys[0])
    assert sorted(folder.iterdir()) == before
    sign(folder, make_signature_of)
    for path, words in {
        rsa_public: "another kind",
        keys[0]: "is a private key",
        junk: "no PEM public key",
        tmp_path / "absent": "cannot read",
        tmp_path / "pipe": "not a regular file",
    }.items():
        with pytest.raises(WeightguardError, match=words):
            verify_signature(folder, PublicKey(path))
