"""What diff and repair tell beside findings, in every format: true, escaped, bounded, and seen."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from selenium.webdriver.common.by import By

from tests.browser import Browser
from tests.checkpoints import Tensors, random_tensor, write_safetensors
from tests.cli.formats.test_html import MAX_BYTES, browser, image
from tests.cli.formats.test_markdown import readers_view
from tests.cli.formats.test_sarif import VALIDATOR
from tests.reports import HOSTILE
from weightguard import diff
from weightguard.catalogue import Severity
from weightguard.diff import Diff, Move
from weightguard.drift import DriftLimits, Side, TensorChange
from weightguard_cli.diff_account import ORDER, diff_account
from weightguard_cli.formats import FORMATS, render
from weightguard_cli.presentation import Presentation
from weightguard_cli.verdict import Scope

__all__ = ["browser"]


def tuned(folder: Path) -> Diff:
    """Return a diff with a tensor of every status that two checkpoints can have."""
    shape, generator = (64, 64), np.random.default_rng(2)
    base: Tensors = {f"layers.{n}.weight": random_tensor("F32", shape, n) for n in range(7)}
    values = {name: np.frombuffer(data, "<f4").copy() for name, (_, _, data) in base.items()}
    values["layers.1.weight"] += generator.standard_normal(4096, np.float32) * np.float32(0.001)
    values["layers.2.weight"][70] = np.nan
    new = {name: ("F32", shape, v.astype("<f4").tobytes()) for name, v in values.items()}
    new["layers.3.weight"] = random_tensor("F32", shape, 99)
    new["layers.4.weight"] = ("F32", (32, 128), base["layers.4.weight"][2])
    halves = values["layers.5.weight"].astype("<f2")
    new["layers.5.weight"] = ("F16", shape, halves.tobytes())
    new[HOSTILE] = new.pop("layers.6.weight")
    return diff(
        write_safetensors(folder / "base.safetensors", base),
        write_safetensors(folder / "new.safetensors", new),
        limits=DriftLimits(max_change=0.001),
    )


def huge() -> Diff:
    """Return a diff of ten thousand tensors with hostile names and of many channels."""
    side = Side("BF16", (4096, 4096), 1 << 25, "shard", -1.0, 1.0, 0.1)
    changes = tuple(
        TensorChange(
            f"{n:05}.{HOSTILE}", ORDER[n % 9], side, side, 0.001 * (n + 1), 0.9, 7, 1 << 24
        )
        for n in range(10_000)
    )
    moved = tuple(
        Move("row", changes[n % 300].tensor, (n,), 1.0, 2.0, "both") for n in range(30_000)
    )
    return Diff("base", "new", "values", changes, moved)


def told(found: Diff, output_format: str) -> str:
    account = diff_account(found, Severity.ERROR, show_all=False)
    return render(
        output_format, found.report(), Presentation("diff", Scope(False), account=account)
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Diff:
    return tuned(tmp_path_factory.mktemp("diff"))


@pytest.fixture(scope="module")
def page(found: Diff, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "diff.html"
    path.write_text(told(found, "html"), "utf-8")
    return path


def test_the_example_has_every_status(found: Diff) -> None:
    assert {c.status for c in found.tensors} == set(ORDER) - {"changed"}


@pytest.mark.parametrize("output_format", sorted(set(FORMATS) - {"json"}))
def test_what_became_of_every_tensor_is_told(output_format: str, found: Diff) -> None:
    output = told(found, output_format)
    assert "TOO FAR" in output
    assert "\x1b" not in output
    assert "<script" not in output
    assert "1 NaN appeared, first at [1,6]" in output.replace("\\[", "[").replace("\\]", "]")
    for change in found.tensors:
        if change.status != "unchanged" and change.tensor != HOSTILE:
            assert change.tensor in output
            assert change.status in output


def test_channels_of_a_removed_tensor_are_one_line() -> None:
    side = Side("F32", (99, 64), 99 * 64 * 4, "m.safetensors")
    gone = TensorChange("gone.weight", "removed", side, None)
    kept = TensorChange("kept.weight", "fine-tuned", side, side, 0.1, 0.9, 7, 99 * 64)
    moved = [Move("row", "gone.weight", (n,), 3.0, None, "base") for n in range(40)]
    moved += [Move("row", "kept.weight", (n,), 3.0, 3.0 + n, "both") for n in range(1, 4)]
    text = told(Diff("a", "b", "values", (gone, kept), tuple(moved)), "text")
    lines = [line.split() for line in text.splitlines() if "rows of" in line]
    assert lines == [
        ["40", "removed", "with", "it", "rows", "of", "gone.weight"],
        ["3", "row", "3:", "3", "->", "6", "rows", "of", "kept.weight"],
    ]


def test_names_of_two_formats_are_said_not_to_match(tmp_path: Path) -> None:
    tensor = random_tensor("F32", (64, 64))
    found = diff(
        write_safetensors(
            tmp_path / "a.safetensors", {"model.layers.0.mlp.up_proj.weight": tensor}
        ),
        write_safetensors(tmp_path / "b.safetensors", {"blk.0.ffn_up.weight": tensor}),
    )
    for output_format in ("text", "html", "junit", "sarif", "markdown"):
        assert "no tensor of one side has a name of the other" in told(found, output_format)
    same = diff(tmp_path / "a.safetensors", tmp_path / "a.safetensors")
    assert "no tensor of one side" not in told(same, "text")


def test_sarif_is_valid_and_names_the_base(found: Diff) -> None:
    document = json.loads(told(found, "sarif"))
    VALIDATOR.validate(document)
    (run,) = document["runs"]
    assert len(run["results"]) == len(found.findings) > 0
    notes = [n["message"]["text"] for n in run["invocations"][0]["toolExecutionNotifications"]]
    assert f"base: {found.base}" in notes


def test_junit_has_a_case_for_each_tensor(found: Diff) -> None:
    (suite,) = ET.fromstring(told(found, "junit").encode())
    cases = {case.attrib["name"]: case for case in suite.iter("testcase")}
    for change in found.tensors:
        if change.tensor != HOSTILE:
            words = cases[change.tensor].findtext("system-out") or ""
            assert words.startswith(f"status: {change.status}")
    failed = {name for name, case in cases.items() if case.find("failure") is not None}
    assert len(failed) == len({f.location.tensor for f in found.findings})


def test_markdown_makes_tables(found: Diff) -> None:
    page = readers_view(told(found, "markdown"))
    assert "<td>broken</td>" in page
    assert "<code>layers.2.weight</code>" in page


@pytest.mark.parametrize("output_format", ["text", "markdown", "html", "junit"])
def test_ten_thousand_tensors_make_a_bounded_output(output_format: str) -> None:
    output = told(huge(), output_format)
    assert len(output.encode()) < MAX_BYTES
    assert "more" in output


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 390)])
def test_the_page_shows_and_asks_for_nothing(
    browser: Browser, page: Path, scheme: str, width: int
) -> None:
    browser.open(page, scheme, width)
    assert browser.driver.find_element(By.ID, "verdict").text == "TOO FAR"
    assert browser.console() == []
    assert set(browser.requests()) <= {page.as_uri(), "data:,"}
    assert browser.driver.execute_script("return document.documentElement.scrollWidth") <= width
    assert bool(np.median(image(browser)) > 128) is (scheme == "light")


def test_the_map_has_a_cell_for_each_tensor_in_a_colour_of_its_own(
    browser: Browser, page: Path, found: Diff
) -> None:
    browser.open(page)
    cells = browser.driver.find_elements(By.CSS_SELECTOR, ".map li")
    assert len(cells) == len(found.tensors)
    colours = {
        cell.get_attribute("class").split()[0]: cell.value_of_css_property("background-color")
        for cell in cells
    }
    assert len(set(colours.values())) == len(colours) == 8
    bars = browser.driver.find_elements(By.CSS_SELECTOR, "svg.chart rect")
    assert len(bars) == sum(bool(change.relative_change) for change in found.tensors)


def test_equal_checkpoints_are_good_news(tmp_path: Path) -> None:
    model = write_safetensors(tmp_path / "m.safetensors", {"w": random_tensor("F32", (64, 64))})
    same = diff(model, model)
    assert told(same, "text").startswith("SAME: 1 tensor, 1 unchanged\n")
    assert '<header class="good">' in told(same, "html")
    assert "svg" not in told(same, "html").partition("</style>")[2]


def test_the_sections_of_a_page_come_in_the_order_of_its_navigation(found: Diff) -> None:
    text = told(found, "html")
    listed = re.findall(r'<li><a href="#([\w-]+)"', text.partition("</nav>")[0])
    assert listed[:3] == ["findings", "map", "distance"]
    assert listed == re.findall(r'<h2 id="([\w-]+)"', text)
