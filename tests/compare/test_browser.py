"""The page in a real browser, at the width of a desktop and of a phone.

Needs Chromium with its driver (Debian: chromium, chromium-driver) and selenium, of the dev extra.
"""

import json
import shutil

import pytest

from ddm_jax.compare.page import render
from tests.compare.reports import full_report

selenium = pytest.importorskip(
    "selenium", reason="selenium is not installed: pip install -e .[dev]"
)
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
if not BROWSER or not DRIVER:
    pytest.skip("Chromium or chromedriver is not installed", allow_module_level=True)

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
WIDTHS = {"desktop": 1280, "phone": 390}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    path = folder / "report.html"
    path.write_text(render(json.loads(json.dumps(full_report(folder)))), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(params=WIDTHS)
def opened(request, browser, page):
    """The browser with the page in it, at some width."""
    metrics = {"width": WIDTHS[request.param], "height": 800, "deviceScaleFactor": 1}
    metrics["mobile"] = request.param == "phone"
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get_log("performance")
    browser.get(page)
    assert browser.execute_script("return window.innerWidth") == WIDTHS[request.param]
    return browser


def column(browser, table, index):
    script = """
      return [...document.querySelectorAll("table")[arguments[0]].tBodies[0].rows]
        .map(row => row.cells[arguments[1]].textContent)"""
    return browser.execute_script(script, table, index)


def click(browser, table, index):
    script = "document.querySelectorAll('table')[arguments[0]].querySelectorAll('th button')"
    browser.execute_script(f"{script}[arguments[1]].click()", table, index)


@pytest.mark.slow
def test_tables_sort_by_a_click_numbers_as_numbers(opened):
    cost = 1
    before = [float(x) for x in column(opened, cost, 2)]
    assert before == [8e3, 8e3, 10e3, 10e3, 12e3, 12e3]
    click(opened, cost, 2)
    click(opened, cost, 2)  # the second turns it round; 8 comes after 12 as text
    assert [float(x) for x in column(opened, cost, 2)] == before[::-1]
    click(opened, cost, 1)
    assert column(opened, cost, 1) == ["dp"] * 3 + ["tp"] * 3
    head = "return document.querySelectorAll('table')[1].querySelectorAll('[aria-sort]').length"
    assert opened.execute_script(head) == 1


def test_what_is_not_known_comes_last_either_way(opened):
    runs = 4
    for _ in range(2):
        click(opened, runs, 3)
        assert column(opened, runs, 3)[-2:] == ["-", "-"]


def test_plots_are_there_and_fit_the_width(opened):
    script = (
        "return [...document.querySelectorAll('svg')].map(x => x.getBoundingClientRect().toJSON())"
    )
    boxes = opened.execute_script(script)
    assert len(boxes) == 7
    width = opened.execute_script("return document.documentElement.clientWidth")
    for box in boxes:
        assert box["width"] >= 0.8 * min(width, 400)
        assert 0.5 < box["height"] / box["width"] < 1.2
        assert box["left"] >= 0
        assert box["right"] <= width
    # letters are no smaller than 10 pixels
    sizes = """return [...document.querySelectorAll("svg text")].map(x =>
      x.getBoundingClientRect().height)"""
    assert min(opened.execute_script(sizes)) >= 10


def test_nothing_overflows(opened):
    script = "return [document.documentElement.scrollWidth, window.innerWidth]"
    needs, has = opened.execute_script(script)
    assert needs <= has


def test_no_request_leaves_the_file_and_no_foreign_script_runs(opened, page):
    said = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    asked = [
        x["params"]["request"]["url"] for x in said if x["method"] == "Network.requestWillBeSent"
    ]
    assert page in asked
    assert {url for url in asked if not url.startswith("data:")} == {page}
    assert "across" in opened.title  # the samples would have called it "broken"
    assert [x for x in opened.get_log("browser") if x["level"] == "SEVERE"] == []
