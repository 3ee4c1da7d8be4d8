"""Every rule has a page, its words are the catalogue's, and its example is what the tool prints."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.live_rule_examples import LIVE
from tests.rule_examples import EXAMPLES, PAGES, REAL, SECTIONS, example, heading, with_example
from weightguard.catalogue import RULES
from weightguard.pages import page

ROOT = Path(__file__).parents[2]
AGAIN = "write the examples again with: python -m tests.rule_examples"


def test_every_rule_has_a_page_and_an_example_and_nothing_else_has() -> None:
    assert {path.stem for path in PAGES.glob("*.md")} == set(RULES), AGAIN
    assert set(EXAMPLES) | set(LIVE) == set(RULES)


@pytest.mark.parametrize("code", RULES)
def test_a_page_says_what_its_rule_says_and_fills_every_section(code: str) -> None:
    rule, text = RULES[code], page(code)
    assert text.startswith(heading(rule))
    parts = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)
    assert tuple(parts[1::2]) == SECTIONS
    assert all(len(body.strip()) > 20 for body in parts[2::2]), "a section is empty"


@pytest.mark.parametrize(
    "code", [pytest.param(c, marks=pytest.mark.real if c in REAL else ()) for c in RULES]
)
def test_the_example_is_what_the_tool_prints(code: str) -> None:
    assert with_example(page(code), example(code)) == page(code), AGAIN


def test_pages_come_with_an_installed_wheel(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    quiet = ["--no-deps", "--no-index", "--no-build-isolation"]
    # without the native scan, which takes a minute to compile and has no part in this
    build = [*pip, "wheel", *quiet, "-C", "wheel.cmake=false", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    subprocess.run([*pip, "install", *quiet, "--target", str(site), str(wheel)], check=True)
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); sys.meta_path[:] = [f for f in sys.meta_path "
        "if 'editable' not in type(f).__module__ + type(f).__name__.lower() "
        "and 'ScikitBuild' not in type(f).__name__]\n"
        "import weightguard; assert weightguard.__file__.startswith(sys.argv[1])\n"
        "from weightguard_cli.main import main; main(['rules', 'WG401']); "
        "main(['audit', 'nothing', '--format', 'html'])"
    )
    command = [sys.executable, "-c", program, str(site)]
    alone = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=tmp_path, env=alone
    )
    assert done.stdout.startswith(page("WG401") + "<!DOCTYPE html>")
