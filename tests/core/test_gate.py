"""The gate: each demand of a policy, in one pass over the bytes."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints import Tensors, random_tensor, write_safetensors, write_sharded
from tests.real_models import smollm2_bf16
from tests.signers import model_signing, write_authority, write_key
from weightguard import ManifestError, Report, audit, fingerprint, gate, open_checkpoint
from weightguard.catalogue import Severity
from weightguard.checkpoint.files import CheckpointFile
from weightguard.checkpoint.unfinished import JOURNAL
from weightguard.errors import WeightguardError
from weightguard.policy import Policy, PolicyError
from weightguard.policy.reading import parse_policy
from weightguard.signing import CertifiedKey, PrivateKey, Signed, sign

TENSORS: Tensors = {
    "a.weight": random_tensor("BF16", (64, 128), 1),
    "b.weight": random_tensor("F32", (16, 64), 2),
    "c.bias": random_tensor("F32", (64,), 3),
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", TENSORS)
    return folder


def policy(text: str) -> Policy:
    return parse_policy(text, Path("weightguard.toml"))


def judged(path: Path, text: str, tmp_path: Path, **options: object) -> Report:
    source = tmp_path / "weightguard.toml"
    return gate(path, policy(text), source=source, **options)  # type: ignore[arg-type]


def codes(report: Report) -> list[str]:
    return [found.rule for found in report.findings]


def test_what_may_be_half_written_does_not_pass(model: Path, tmp_path: Path) -> None:
    (model / JOURNAL).touch()
    report = judged(model, "", tmp_path)
    assert codes(report) == ["WG123"]
    assert report.at_least(Severity.ERROR)
    (model / "model.safetensors").write_bytes(b"\xff" * 100)
    assert set(codes(judged(model, "", tmp_path))) > {"WG123"}


def test_no_demand_is_an_audit(model: Path, tmp_path: Path) -> None:
    report = judged(model, "", tmp_path)
    assert report.complete
    assert report.policy == str(tmp_path / "weightguard.toml")
    plain = audit(model)
    assert (report.findings, report.coverage, report.salience) == (
        plain.findings,
        plain.coverage,
        plain.salience,
    )


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ('allow.formats = ["gguf"]', "WG513", "the format is safetensors, the policy allows gguf"),
        ('allow.dtypes = ["F32"]', "WG514", "dtype BF16 of 1 tensor"),
        ("limits.file-size = 100", "WG515", "the policy allows 100"),
        ('limits.total-size = "1 kB"', "WG515", "all files have"),
        ("limits.tensors = 2", "WG515", "there are 3 tensors"),
        ('manifest.path = "no.json"', "WG511", "there is no manifest at"),
        ('super-weights.lineage = "HuggingFaceTB/SmolLM2-1.7B"', "WG516", "nothing shows"),
    ],
)
def test_a_demand_that_is_not_met(
    text: str, code: str, words: str, model: Path, tmp_path: Path
) -> None:
    (found,) = judged(model, text, tmp_path).findings
    assert found.rule == code
    assert words in found.message


@pytest.mark.parametrize(
    "text",
    [
        'allow.formats = ["gguf", "safetensors"]',
        'allow.dtypes = ["F32", "BF16"]',
        'limits.file-size = "1 MB"\nlimits.total-size = "1 MB"\nlimits.tensors = 3',
        'manifest.path = "no.json"\nmanifest.required = false',
    ],
)
def test_a_demand_that_is_met(text: str, model: Path, tmp_path: Path) -> None:
    assert judged(model, text, tmp_path).findings == ()


@pytest.mark.parametrize(
    ("pattern", "place"),
    [
        ("manifests/{name}.weightguard.json", "manifests/model.weightguard.json"),
        ("{checkpoint}/weights.json", "model/weights.json"),
    ],
)
def test_the_manifest_is_where_the_policy_says(
    pattern: str, place: str, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "manifests").mkdir()
    with fingerprint(model) as manifest:
        manifest.write(tmp_path / place)
    text = f'manifest.path = "{pattern}"'
    assert judged(model, text, tmp_path).findings == ()
    assert judged(model / "model.safetensors", text, tmp_path).findings == ()
    changed = {**TENSORS, "c.bias": random_tensor("F32", (64,), 4)}
    write_safetensors(model / "model.safetensors", changed)
    assert "WG401" in codes(judged(model, text, tmp_path))


def test_a_manifest_in_the_checkpoint_does_not_lead_out_of_it(model: Path, tmp_path: Path) -> None:
    with fingerprint(model) as manifest:
        manifest.write(tmp_path / "outside.json")
    (model / "m.json").symlink_to(tmp_path / "outside.json")
    with pytest.raises(PolicyError, match="leads out of the checkpoint's folder"):
        judged(model, 'manifest.path = "{checkpoint}/m.json"', tmp_path)


def test_a_manifest_of_a_newer_version_is_refused(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    with fingerprint(model) as manifest:
        manifest.write(path)
    path.write_text(path.read_text().replace("weightguard-manifest-v1", "weightguard-manifest-v2"))
    with pytest.raises(ManifestError, match="too old for: update it"):
        judged(model, 'manifest.path = "m.json"', tmp_path)


def test_a_calibration_is_demanded_of_the_manifest(model: Path, tmp_path: Path) -> None:
    with fingerprint(model) as manifest:
        manifest.write(tmp_path / "m.json")
    text = 'manifest.path = "m.json"\ncalibration.required = true'
    (found,) = judged(model, text, tmp_path).findings
    assert (found.rule, found.message) == ("WG512", "the manifest holds no calibration")


def test_rules_that_compare_need_a_manifest(model: Path, tmp_path: Path) -> None:
    text = 'rules.select = ["WG4"]'
    lenient = f'{text}\nmanifest = {{ path = "m.json", required = false }}'
    for useless in (text, lenient):
        with pytest.raises(WeightguardError, match="nothing would be checked"):
            judged(model, useless, tmp_path)
    assert codes(judged(model, f'{text}\nmanifest.path = "m.json"', tmp_path)) == ["WG511"]
    with fingerprint(model) as manifest:
        manifest.write(tmp_path / "m.json")
    assert judged(model, lenient, tmp_path).findings == ()
    assert judged(model, text, tmp_path, manifest=tmp_path / "m.json").findings == ()


def test_rules_are_chosen_and_regraded(model: Path, tmp_path: Path) -> None:
    zero = {**TENSORS, "b.weight": ("F32", (16, 64), bytes(4096))}
    write_safetensors(model / "model.safetensors", zero)
    assert codes(judged(model, "", tmp_path)) == ["WG203"]
    assert judged(model, 'rules.ignore = ["WG203"]', tmp_path).findings == ()
    (found,) = judged(model, 'rules.severity = { WG2 = "info" }', tmp_path).findings
    assert found.severity == "info"
    text = '[[rules.tensor]]\ntensors = ["b.*"]\nignore = ["WG20"]'
    assert judged(model, text, tmp_path).findings == ()


def test_a_demand_holds_whatever_rules_are_selected(model: Path, tmp_path: Path) -> None:
    text = 'rules.select = ["WG2"]\nlimits.tensors = 2'
    assert codes(judged(model, text, tmp_path)) == ["WG515"]


def test_what_ends_the_reading_is_never_ignored(model: Path, tmp_path: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    report = judged(model, 'rules.select = ["WG2"]\nrules.severity = {WG1 = "info"}', tmp_path)
    assert not report.complete
    assert report.findings[0].severity == "error"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_safetensors(tmp_path / "base.safetensors", TENSORS)


def moved(name: str, factor: float) -> Tensors:
    dtype, shape, data = TENSORS[name]
    values = np.frombuffer(data, "<f4")
    noise = np.random.default_rng(9).standard_normal(len(values)).astype("<f4")
    noise *= np.float32(factor * np.linalg.norm(values) / np.linalg.norm(noise))
    return {**TENSORS, name: (dtype, shape, (values + noise).astype("<f4").tobytes())}


@pytest.mark.parametrize(
    ("tensors", "extra", "expected"),
    [
        (TENSORS, "", []),
        (moved("b.weight", 0.09), "", []),
        (moved("b.weight", 0.11), "", ["WG601"]),
        (moved("b.weight", 0.11), 'drift.replaced = ["b.*"]', []),
        (moved("b.weight", 0.01), 'drift.changed = ["a.*"]', ["WG603"]),
        (moved("b.weight", 3), "", ["WG602"]),
        ({**TENSORS, "b.weight": random_tensor("F32", (64, 16), 2)}, "", ["WG602"]),
        ({**TENSORS, "d": random_tensor("F32", (64,))}, "", ["WG604"]),
        ({**TENSORS, "d": random_tensor("F32", (64,))}, 'drift.added = ["?"]', []),
        ({n: t for n, t in TENSORS.items() if n[0] != "a"}, "", ["WG605"]),
        ({n: t for n, t in TENSORS.items() if n[0] != "a"}, 'drift.removed = ["a.*"]', []),
    ],
)
def test_drift_from_a_base(
    tensors: Tensors, extra: str, expected: list[str], model: Path, base: Path, tmp_path: Path
) -> None:
    write_safetensors(model / "model.safetensors", tensors)
    text = f'drift.base = "{base.name}"\ndrift.max-change = 0.1\n{extra}'
    assert codes(judged(model, text, tmp_path)) == expected


def test_values_that_are_no_longer_finite_are_beyond_every_limit(
    model: Path, base: Path, tmp_path: Path
) -> None:
    nan = np.frombuffer(TENSORS["c.bias"][2], "<f4").copy()
    nan[7] = np.nan
    write_safetensors(
        model / "model.safetensors", {**TENSORS, "c.bias": ("F32", (64,), nan.tobytes())}
    )
    text = f'drift.base = "{base.name}"\ndrift.max-change = 1000'
    assert codes(judged(model, text, tmp_path)) == ["WG201", "WG601"]


def test_bases_that_are_none(model: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"drift.base names '.*none', which cannot be read"):
        judged(model, 'drift.base = "none"', tmp_path)
    write_safetensors(tmp_path / "other.safetensors", {"x": random_tensor("F32", (8, 8))})
    with pytest.raises(PolicyError, match="is another model"):
        judged(model, 'drift.base = "other.safetensors"', tmp_path)
    with fingerprint(model) as manifest:
        manifest.write(tmp_path / "m.json")
    with pytest.raises(PolicyError, match="a manifest, which holds no weights"):
        judged(model, 'drift.base = "m.json"', tmp_path)


def test_a_base_that_ends_early_while_it_is_read_is_no_fault_of_the_checkpoint(
    model: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = CheckpointFile.read_into

    def failing(file: CheckpointFile, offset: int, buffer: memoryview) -> None:
        if file.name == base.name and offset > 4096:
            base.write_bytes(base.read_bytes()[:4096])
        read(file, offset, buffer)

    monkeypatch.setattr(CheckpointFile, "read_into", failing)
    with pytest.raises(WeightguardError, match=r"the base cannot be read: .* ends at byte"):
        judged(model, f'drift.base = "{base.name}"', tmp_path)


@pytest.fixture
def bytes_read(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Count the bytes that are read of each file of a checkpoint."""
    counts: dict[str, int] = {}
    lock = threading.Lock()
    read = CheckpointFile.read_into

    def counting(file: CheckpointFile, offset: int, buffer: memoryview) -> None:
        with lock:
            counts[file.name] = counts.get(file.name, 0) + len(buffer)
        read(file, offset, buffer)

    monkeypatch.setattr(CheckpointFile, "read_into", counting)
    return counts


def test_a_thousand_tensors_cost_one_pass(bytes_read: dict[str, int], tmp_path: Path) -> None:
    counts = bytes_read
    # large enough not to be looked at again: see rules/absurd.py
    tensor = random_tensor("BF16", (64, 512))
    shards = [{f"t.{s}.{n}": tensor for n in range(100)} for s in range(10)]
    model = write_sharded(tmp_path / "model", shards)
    base = tmp_path / "base"
    shutil.copytree(model, base)
    with fingerprint(model) as manifest:
        manifest.write(tmp_path / "m.json")
    counts.clear()
    report = judged(
        model,
        """
        manifest.path = "m.json"
        limits.total-size = "1 GB"
        allow.dtypes = ["BF16"]
        drift.base = "base"
        drift.max-change = 0.1
        """,
        tmp_path,
    )
    assert report.findings == ()
    assert report.coverage.tensors_checked == 1000
    for number in range(1, 11):
        name = f"model-{number:05}-of-00010.safetensors"
        size = (model / name).stat().st_size
        # of model and base together; their first bytes are looked at twice
        assert 2 * size <= counts[name] <= 2 * (size + 4096)


@pytest.mark.real
def test_the_lineage_of_a_real_model(tmp_path: Path) -> None:
    text = 'super-weights.lineage = "HuggingFaceTB/SmolLM2-135M-Instruct"\nrules.select = ["WG1"]'
    assert judged(smollm2_bf16(), text, tmp_path).findings == ()
    data = bytearray(smollm2_bf16().read_bytes())
    with open_checkpoint(smollm2_bf16()) as opened:
        name = "model.layers.11.mlp.down_proj.weight"
        (tensor,) = [tensor for tensor in opened.tensors if tensor.name == name]
        assert tensor.offset is not None
        place = tensor.offset + 2 * tensor.element((507, 1229))
    data[place : place + 2] = bytes(2)
    (tmp_path / "model.safetensors").write_bytes(data)
    (found,) = judged(tmp_path / "model.safetensors", text, tmp_path).findings
    assert found.rule == "WG516"
    assert found.location.element == (507, 1229)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("keys")
    private, public = write_key(folder, "release")
    other = write_key(folder, "other")[1]
    return {"private": private, "release.pub": public, "other.pub": other}


def test_a_signature_by_whom_the_policys_authority_certified(model: Path, tmp_path: Path) -> None:
    good, other = write_authority(tmp_path, "good"), write_authority(tmp_path, "other")
    text = 'signature.certificates = ["good-root.crt", "good-intermediate.crt"]'
    sign(model, CertifiedKey(PrivateKey(good["key"]), good["leaf"]))
    assert judged(model, text, tmp_path).findings == ()
    signature = model / "model.sig"
    for authority, found in ((good, []), (other, ["WG504"])):
        signature.unlink()
        run = model_signing(
            "sign", "certificate", model, "--signature", signature,
            "--private_key", authority["key"], "--signing_certificate", authority["leaf"],
            "--certificate_chain", authority["intermediate"],
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        assert codes(judged(model, text, tmp_path)) == found
    signature.unlink()
    with pytest.raises(WeightguardError, match="cannot read the certificate"):
        judged(model, 'signature.certificates = ["none.crt"]', tmp_path)


def test_the_signature_of_whom_the_policy_names(
    model: Path, tmp_path: Path, keys: dict[str, Path]
) -> None:
    for name in ("release.pub", "other.pub"):
        shutil.copy(keys[name], tmp_path / name)
    text = (
        'signature.public-key = "release.pub"\n'
        'manifest.path = "{checkpoint}/model.weightguard.json"'
    )
    assert codes(judged(model, text, tmp_path)) == ["WG501", "WG511"]
    lenient = 'signature = { public-key = "release.pub", required = false }'
    assert codes(judged(model, lenient, tmp_path)) == []
    assert isinstance(sign(model, PrivateKey(keys["private"])), Signed)
    assert codes(judged(model, text, tmp_path)) == []
    assert codes(judged(model, text.replace("release", "other"), tmp_path)) == ["WG504"]
    (model / "extra.py").write_text("1")
    assert codes(judged(model, text, tmp_path)) == ["WG508"]
    (model / "extra.py").unlink()
    # weights and manifest replaced together: the signature does not follow
    changed = {**TENSORS, "c.bias": random_tensor("F32", (64,), 8)}
    write_safetensors(model / "model.safetensors", changed)
    with fingerprint(model) as manifest:
        manifest.write(model / "model.weightguard.json")
    found = codes(judged(model, text, tmp_path))
    assert "WG506" in found
    assert "WG401" not in found


@pytest.mark.parametrize("signed", [True, False])
def test_a_key_that_is_missing_is_no_finding(signed: bool, model: Path, tmp_path: Path) -> None:
    if signed:
        (model / "model.sig").write_text("{}")
    for text in ("", "\nsignature.required = false"):
        with pytest.raises(WeightguardError, match=r"none\.pub"):
            judged(model, f'signature.public-key = "none.pub"{text}', tmp_path)
