"""A signature from a stranger: whatever is in the file, there is a finding and no exception."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.checkpoints import random_tensor, write_safetensors
from tests.signers import write_authority, write_key
from weightguard.signing import (
    Certificate,
    CertifiedKey,
    PrivateKey,
    PublicKey,
    sign,
    verify_signature,
)

JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(), st.just({}), st.just([]), st.just([{}])
)


@pytest.fixture(scope="module", params=["key", "certificate"])
def case(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    model = folder / "model"
    model.mkdir()
    write_safetensors(model / "model.safetensors", {"a": random_tensor("BF16", (4, 4), 1)})
    if request.param == "key":
        private, public = write_key(folder, "key")
        signer, trusted = PrivateKey(private), PublicKey(public)
    else:
        paths = write_authority(folder, "ca")
        signer = CertifiedKey(PrivateKey(paths["key"]), paths["leaf"], (paths["intermediate"],))
        trusted = Certificate((paths["root"],))
    sign(model, signer)
    assert verify_signature(model, trusted) == ()
    return model, trusted, (model / "model.sig").read_bytes()


def places(value, path=()):
    """Return the path of everything in a JSON value but itself."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, inner in items:
        found.append((*path, key))
        if isinstance(inner, dict | list):
            found += places(inner, (*path, key))
    return found


FUZZ = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(data=st.data())
def test_a_replaced_part(case, data):
    model, trusted, original = case
    bundle = json.loads(original)
    path = data.draw(st.sampled_from(places(bundle)))
    target = bundle
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = data.draw(JUNK)
    (model / "model.sig").write_text(json.dumps(bundle))
    found = verify_signature(model, trusted)
    assert {f.rule for f in found} <= {"WG502", "WG503", "WG504"}


@FUZZ
@given(data=st.data())
def test_a_changed_byte(case, data):
    model, trusted, original = case
    changed = bytearray(original)
    changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    (model / "model.sig").write_bytes(changed)
    found = verify_signature(model, trusted)
    assert {f.rule for f in found} <= {"WG502", "WG503", "WG504"}
