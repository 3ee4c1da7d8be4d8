"""The examples do what the README says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from weightguard import audit

ROOT = Path(__file__).parent.parent


def test_the_shipped_damage_is_found(tmp_path: Path) -> None:
    target = tmp_path / "opt.safetensors"
    script = ROOT / "examples" / "shipped_damage.py"
    subprocess.run([sys.executable, str(script), str(target)], check=True)
    (found,) = audit(target).findings
    assert (found.rule, found.evidence["count"]) == ("WG207", 6)
    assert found.location.element == divmod(1_234_001, 1024)
