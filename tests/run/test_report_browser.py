"""The page, curves.svg and TensorBoard in a real browser, as people open them."""

import json
import re
import shutil
import subprocess
import sys
import time

import pytest
import torch

from simsiam.run.curves_file import write_curves
from simsiam.run.metrics import Metrics
from simsiam.run.record import read_run
from simsiam.run.report import gather
from simsiam.run.report_page import page
from tests.run.fakes import classification, detection, gallery, pretraining

selenium = pytest.importorskip("selenium", reason="drives the browser: pip install 'simsiam[test]'")
from selenium import webdriver  # noqa: E402
from selenium.webdriver import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="needs Chromium and its driver: apt-get install chromium chromium-driver"
)


@pytest.fixture(scope="module")
def chromium():
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for option in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-first-run"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium):
    """The browser on a desk, by day, with nothing logged."""
    look(chromium, width=1280, colours="light")
    chromium.get("about:blank")
    for log in ("browser", "performance"):
        chromium.get_log(log)
    return chromium


def look(driver, *, width, colours):
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    features = [{"name": "prefers-color-scheme", "value": colours}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def requests(driver):
    """Addresses that were asked for since the log was last read."""
    events = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
    return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]


def colour(driver, element="document.body"):
    """How bright the background is, 0 to 255."""
    text = driver.execute_script(f"return getComputedStyle({element}).backgroundColor")
    return sum(map(int, re.findall(r"\d+", text)[:3])) / 3


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A page of all that a page can have: two pretraining runs, one of them collapsed, a classifier, a detector."""
    root = tmp_path_factory.mktemp("report")
    good, bad = pretraining(root / "runs" / "good"), pretraining(root / "runs" / "bad", collapses_at=20)
    gallery(good)
    classification(root / "runs" / "linear")
    detection(root / "runs" / "detector")
    path = root / "report.html"
    path.write_text(page(gather([str(root)])))
    assert bad.exists()
    return path


def test_the_page_opens_from_the_disk_without_an_error_and_asks_for_nothing(browser, report):
    browser.get(report.as_uri())
    asked = requests(browser)
    assert asked[0] == report.as_uri()
    assert all(url == report.as_uri() or url.startswith("data:") for url in asked)
    assert [entry["message"] for entry in browser.get_log("browser")] == []
    titles = [h.text for h in browser.find_elements(By.CSS_SELECTOR, "h2")]
    for title in ("Results", "Runs", "Curves of pretraining", "Verdicts", "Curves of detection", "good", "linear"):
        assert title in titles


def test_every_curve_is_drawn_within_its_chart(browser, report):
    browser.get(report.as_uri())
    lines = browser.execute_script(
        """return Array.from(document.querySelectorAll("svg[data-plot] polyline"), line => {
             const own = line.getBoundingClientRect(), all = line.ownerSVGElement.getBoundingClientRect();
             return [line.points.numberOfItems, own.width > 0 || own.height > 0, own.left >= all.left - 1,
                     own.right <= all.right + 1, own.top >= all.top - 1, own.bottom <= all.bottom + 1,
                     getComputedStyle(line).stroke];
           });"""
    )
    assert len(lines) == 2 * 6 + 3 + 6  # pretraining: two runs; classification: loss, top1, lr; detection without masks
    assert all(points > 0 and all(inside) for points, drawn, *inside, _ in lines)
    assert all(drawn for points, drawn, *_ in lines if points > 1)
    assert {stroke for *_, stroke in lines[:2]} == {"rgb(42, 120, 214)", "rgb(217, 89, 31)"}


def test_hovering_shows_where_and_every_runs_value(browser, report):
    browser.get(report.as_uri())
    figure = browser.find_element(By.CSS_SELECTOR, "figure:has(svg[data-plot])")
    svg, note = figure.find_element(By.CSS_SELECTOR, "svg[data-plot]"), figure.find_element(By.CLASS_NAME, "note")

    def values():
        return {li.find_element(By.TAG_NAME, "span").text: li.find_element(By.TAG_NAME, "b").text for li in
                figure.find_elements(By.CSS_SELECTOR, ".legend li")}  # fmt: skip

    assert values() == {"bad": "-1", "good": "-1"}
    assert note.text == ""
    left, plot = 58, 342  # of 420 across
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", svg)
    offset = (left + plot / 2 - 210) / 420 * svg.size["width"]
    ActionChains(browser, duration=0).move_to_element_with_offset(svg, int(offset), 0).perform()
    assert note.text == "epoch 2"
    assert values() == {"bad": "-0.5", "good": "-0.5"}
    seen = "return getComputedStyle(arguments[0]).visibility"
    assert [browser.execute_script(seen, dot) for dot in figure.find_elements(By.CLASS_NAME, "at")] == ["visible"] * 2
    ActionChains(browser, duration=0).move_to_element(browser.find_element(By.TAG_NAME, "h1")).perform()
    assert note.text == ""
    assert values() == {"bad": "-1", "good": "-1"}


def test_a_name_under_the_pointer_dims_the_other_lines(browser, report):
    browser.get(report.as_uri())
    figure = browser.find_element(By.CSS_SELECTOR, "figure:has(svg[data-plot])")
    ActionChains(browser, duration=0).move_to_element(figure.find_elements(By.CSS_SELECTOR, ".legend li")[1]).perform()
    opacity = "return Array.from(arguments[0].querySelectorAll('.series'), g => +getComputedStyle(g).opacity)"
    assert browser.execute_script(opacity, figure) == [0.12, 1]


def test_it_is_readable_on_a_phone(browser, report):
    look(browser, width=390, colours="light")
    browser.get(report.as_uri())
    browser.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
    assert browser.execute_script("return innerWidth") == 390
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    # What is wider scrolls in a box of its own.
    wide = browser.execute_script(
        """return Array.from(document.querySelectorAll("body *"))
             .filter(e => e.getBoundingClientRect().right > 391 && !e.closest(".scroll") && !e.closest("pre"))
             .map(e => e.outerHTML.slice(0, 80));"""
    )
    assert wide == []
    text = """return Math.min(...Array.from(document.querySelectorAll("p, li, td"),
                                           e => parseFloat(getComputedStyle(e).fontSize)));"""
    assert browser.execute_script(text) >= 12
    ticks = "return document.querySelector('svg[data-plot]').getBoundingClientRect().width / 420 * 11"
    assert browser.execute_script(ticks) >= 8


def test_it_is_dark_where_the_reader_is(browser, report):
    browser.get(report.as_uri())
    ink = "return getComputedStyle(document.body).color"
    by_day = colour(browser), browser.execute_script(ink)
    look(browser, width=1280, colours="dark")
    assert by_day[0] > 240
    assert colour(browser) < 40
    assert browser.execute_script(ink) != by_day[1]


def test_neighbours_and_map_are_seen(browser, report):
    browser.get(report.as_uri())
    browser.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
    tiles = browser.execute_script(
        """return Array.from(document.querySelectorAll(".near i"), tile => {
             const box = tile.getBoundingClientRect(), style = getComputedStyle(tile);
             return [Math.round(box.width) > 10, Math.abs(box.width - box.height) < 1,
                     style.backgroundImage.startsWith('url("data:image/jpeg'), style.outlineStyle, tile.title];
           });"""
    )
    assert len(tiles) == 2 * 4
    assert all(wide and square and filled for wide, square, filled, *_ in tiles)
    assert [(frame, name) for *_, frame, name in tiles[:4]] == [
        ("none", "cat"), ("solid", "cat"), ("none", "dog"), ("solid", "cat")
    ]  # fmt: skip
    dots = browser.find_elements(By.CSS_SELECTOR, ".map .dots")
    assert len(dots) == 2 * 2
    assert all(dot.rect["width"] > 10 for dot in dots)


def test_a_hundred_thousand_points_stay_light(browser, tmp_path):
    run = pretraining(tmp_path / "long")
    steps = 100_000
    lines = (
        f'{{"step": {n}, "epoch": {n / 100}, "loss": {-n / steps}, "std": {0.9 + n % 7 / 100}, "verdict": "ok", '
        f'"effective_rank": {n % 60}, "lr": {1 - n / steps}, "pairs_per_second": {1000 + n % 13}}}\n'
        for n in range(1, steps + 1)
    )
    (run / "metrics.jsonl").write_text("".join(lines))
    path = tmp_path / "report.html"
    path.write_text(page(gather([str(run)])))
    assert path.stat().st_size < 400_000
    began = time.monotonic()
    browser.get(path.as_uri())
    assert time.monotonic() - began < 5
    milliseconds = browser.execute_script(
        """const svg = document.querySelector("svg[data-plot]"), box = svg.getBoundingClientRect();
           const began = performance.now();
           for (let n = 0; n < 200; n++)
             svg.dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + box.width * n / 200}));
           return (performance.now() - began) / 200;"""
    )
    assert milliseconds < 8
    browser.execute_script(
        """const svg = document.querySelector("svg[data-plot]"), box = svg.getBoundingClientRect();
           const quarter = box.left + box.width * (58 + 342 / 4) / 420;
           svg.dispatchEvent(new PointerEvent("pointermove", {clientX: quarter}));"""
    )
    figure = browser.find_element(By.CSS_SELECTOR, "figure:has(svg[data-plot])")
    x, y = (float(figure.find_element(By.CSS_SELECTOR, where).text.split()[-1]) for where in (".note", "b"))
    assert x == pytest.approx(250, abs=5)  # of 1,000 epochs
    assert y == pytest.approx(-x / 1000, abs=1e-3)


def test_curves_svg_is_a_picture_by_itself(browser, tmp_path):
    run = pretraining(tmp_path / "run <& \x07\udce9")
    assert write_curves(read_run(run))
    shutil.move(run / "curves.svg", tmp_path / "curves.svg")
    browser.get((tmp_path / "curves.svg").as_uri())
    assert browser.execute_script("return document.documentElement.tagName") == "svg"
    assert browser.execute_script("return document.querySelector('parsererror')") is None
    assert browser.execute_script("return document.querySelectorAll('polyline').length") == 6
    fill = "return getComputedStyle(document.querySelector('.page')).fill"
    assert browser.execute_script(fill) == "rgb(255, 255, 255)"
    look(browser, width=1280, colours="dark")
    assert browser.execute_script(fill) == "rgb(22, 24, 28)"
    # As a page or a README shows it, where nothing is loaded and no script runs.
    (tmp_path / "in.html").write_text('<img src="curves.svg">')
    browser.get((tmp_path / "in.html").as_uri())
    assert browser.execute_script("return document.images[0].naturalWidth") > 800


def test_tensorboard_shows_the_run_and_its_figures(browser, tmp_path):
    metrics = Metrics(tmp_path)
    for step in range(1, 6):
        metrics.write(step, {"loss": -step / 5, "std": 0.98, "verdict": "ok"})
    metrics.pictures("first_views", torch.zeros(3, 8, 8, dtype=torch.uint8))
    metrics.close()
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(tmp_path), "--port", "0", "--load_fast=false"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        address = next(found[0] for line in server.stderr if (found := re.search(r"http://\S+", line)))
        browser.get(f"{address}#timeseries")
        body = WebDriverWait(browser, 60).until(lambda driver: driver.find_element(By.TAG_NAME, "body"))
        shown = ("loss", "std", "first_views", "tensorboard")  # the last is the run: the folder in the run folder
        WebDriverWait(browser, 60).until(lambda _: all(name in body.text for name in shown), body.text[:500])
    finally:
        server.terminate()
        server.wait(timeout=30)
        server.stderr.close()
