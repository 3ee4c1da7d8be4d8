"""The HTML report in a real browser: it shows, asks for nothing, runs nothing, and stays small."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests import browser as browsers
from tests.browser import Browser
from tests.reports import AUDIT, MANY_TENSORS, REPORTS, clean, damaged, large
from weightguard_cli.formats import render

MAX_BYTES = 3_000_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not browsers.available():
        if os.environ.get("CI"):
            pytest.fail(browsers.MISSING)
        pytest.skip(browsers.MISSING)
    with browsers.opened() as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    texts = {kind: render("html", make(folder), AUDIT) for kind, make in REPORTS.items()}
    texts["large"] = render("html", large(), AUDIT)
    for kind, text in texts.items():
        (folder / f"{kind}.html").write_text(text, "utf-8")
    return {kind: folder / f"{kind}.html" for kind in texts}


def image(browser: Browser) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(browser.screenshot())).convert("L"), dtype=np.float64)


@pytest.mark.parametrize("kind", [*REPORTS, "large"])
@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 390)])
def test_a_page_shows_and_asks_for_nothing(
    browser: Browser, pages: dict[str, Path], kind: str, scheme: str, width: int
) -> None:
    browser.open(pages[kind], scheme, width)
    verdict = browser.driver.find_element(By.ID, "verdict")
    assert verdict.is_displayed()
    assert verdict.text == {"clean": "SOUND", "unreadable": "UNREADABLE"}.get(kind, "DAMAGED")
    assert browser.console() == []
    assert set(browser.requests()) <= {pages[kind].as_uri(), "data:,"}
    assert browser.driver.execute_script("return document.scripts.length") == 0
    assert browser.driver.execute_script("return document.documentElement.scrollWidth") <= width
    pixels = image(browser)
    assert pixels.std() > 5, "the page is blank"
    assert bool(np.median(pixels) > 128) is (scheme == "light")


def test_the_browser_would_have_told(browser: Browser, tmp_path: Path) -> None:
    text = render("html", clean(tmp_path), AUDIT)
    evil = "<img src='http://192.0.2.1/x.png'><script>console.error('ran')</script></body>"
    (tmp_path / "evil.html").write_text(text.replace("</body>", evil), "utf-8")
    browser.open(tmp_path / "evil.html")
    blocked = " ".join(browser.console())
    assert "img-src" in blocked
    assert "script" in blocked
    assert "ran" not in blocked.split()
    unguarded = re.sub(r"<meta http-equiv=[^>]+>", "", text).replace("</body>", evil)
    (tmp_path / "evil.html").write_text(unguarded, "utf-8")
    browser.open(tmp_path / "evil.html")
    assert "http://192.0.2.1/x.png" in browser.requests()


def test_the_map_leads_from_a_damaged_tensor_to_its_finding(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.open(pages["damaged"])
    links = browser.driver.find_elements(By.CSS_SELECTOR, ".map a")
    assert len(links) == 3
    for link in links:
        target = (link.get_attribute("href") or "").partition("#")[2]
        assert browser.driver.find_element(By.ID, target).is_displayed()
    strip = next(
        s for s in browser.driver.find_elements(By.CSS_SELECTOR, ".strip") if "z.weight" in s.text
    )
    assert "2 of 12 blocks touched: 4, 8" in strip.text
    assert len(strip.find_elements(By.TAG_NAME, "rect")) == 2


def test_the_keyboard_reaches_links_and_opens_details(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.open(pages["clean"])
    active = browser.driver.switch_to.active_element
    reached = []
    for _ in range(20):
        active.send_keys(Keys.TAB)
        active = browser.driver.switch_to.active_element
        reached.append(active.tag_name)
        if active.tag_name == "summary":
            active.send_keys(Keys.ENTER)
            break
    assert reached[0] == "a", "the first stop skips to the findings"
    assert browser.driver.find_element(By.CSS_SELECTOR, "details table").is_displayed()


def test_hostile_names_are_shown_as_what_they_are(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["hostile"])
    body = browser.driver.find_element(By.TAG_NAME, "body").text
    assert "\\x1b[31m\\x0d\\x0a::error::x" in body
    assert browser.driver.find_elements(By.TAG_NAME, "img") == []
    text = pages["hostile"].read_text("utf-8")
    assert "<script" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_the_page_is_the_same_each_time_and_refers_to_nothing(tmp_path: Path) -> None:
    report = damaged(tmp_path)
    text = render("html", report, AUDIT)
    assert text == render("html", report, AUDIT)
    references = re.findall(r"""(?:src|href|url|action)\s*[=(]\s*["']?([^"'>\s)]*)""", text)
    assert all(r.startswith("#") or r == "data:," for r in references)
    assert " style=" not in text
    assert not re.search(r"\son\w+=", re.sub(r"onerror=alert", "", text))


def test_ten_thousand_findings_make_a_bounded_page(pages: dict[str, Path]) -> None:
    text = pages["large"].read_text("utf-8")
    assert len(text.encode()) < MAX_BYTES
    assert text.count('class="finding"') <= 500
    assert len(re.findall(r'<li class="\w+ s\d"', text)) == MANY_TENSORS


def test_what_is_not_there_has_no_heading(pages: dict[str, Path]) -> None:
    text = pages["unreadable"].read_text("utf-8")
    assert '<h2 id="findings">' in text
    for section in ("map", "ranges", "outliers", "tensors"):
        assert f'id="{section}"' not in text


def test_sections_come_in_the_order_of_the_navigation(pages: dict[str, Path]) -> None:
    for page in pages.values():
        text = page.read_text("utf-8")
        listed = re.findall(r'<li><a href="#([\w-]+)"', text.partition("</nav>")[0])
        assert listed == re.findall(r'<h2 id="([\w-]+)"', text)
