"""Which rules apply: prefixes, one text of them, and none left."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoints import random_tensor, write_safetensors
from weightguard import WeightguardError, audit
from weightguard.rules.selection import Selection


@pytest.mark.parametrize("codes", ["WG2,WG101", "wg2, wg101", ("WG2", "WG101"), ["wg101", "WG2"]])
def test_codes_are_a_sequence_or_one_text(codes: str | list[str]) -> None:
    assert Selection.of(codes).codes == Selection.of(["WG2", "WG101"]).codes
    assert "WG201" not in Selection.of(ignore=codes).codes


@pytest.mark.parametrize("codes", ["W,,G", "WG2,", ["WG2,WG3"], "XY"])
def test_what_is_no_code_is_named(codes: str | list[str]) -> None:
    with pytest.raises(WeightguardError, match="no rule has the code"):
        Selection.of(codes)


def test_nothing_left_to_check_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeightguardError, match="nothing would be checked"):
        Selection.of("WG2", "WG")
    model = write_safetensors(tmp_path / "m.safetensors", {"w": random_tensor("F32", (8, 64))})
    with pytest.raises(WeightguardError, match="compare with a manifest"):
        audit(model, select="WG4,WG305")
    assert audit(model, select="WG2").complete
