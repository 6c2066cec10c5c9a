"""The report in a real browser: nothing overflows, every picture is decoded, no request leaves the page."""

import shutil

import pytest

from lit_methods.cli.report import report
from tests.cli.report_runs import CONFIG, SUMMARY, write_run

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
LONG = "a_name_that_goes_on_" * 6

# Elements that reach beyond the window, unless they scroll in a box of their own; the box itself must not.
OVERFLOWING = """() => [...document.querySelectorAll('body *')].filter(element => {
    const scrolls = element.parentElement.closest('.box, .plot svg');
    const box = element.getBoundingClientRect();
    return !scrolls && box.width && (box.right > innerWidth + 0.5 || box.left < -0.5);
}).map(element => element.tagName + '.' + element.getAttribute('class'))"""

DECODED = "Promise.all([...document.images].map(one => one.decode().then(() => one.naturalWidth)))"

COVERED = """() => [...document.querySelectorAll('.tiles dd, .tiles dt, .legend li, h1, h2, h3, figcaption, p')].filter(
    element => element.scrollWidth > element.clientWidth + 1
).map(element => element.textContent)"""


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("no Chromium is installed")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page of one run and one of three, with whatever is long, wide, many or missing."""
    folder = tmp_path_factory.mktemp("reports")
    wide = ",".join(f"column_{number}" for number in range(30)) + "\n" + ",".join(["12345.678"] * 30) + "\n"
    rows = "\n".join(f"{step},{1 / (step + 1)},{step % 7},{step * 1e6}" for step in range(0, 900, 10))
    pictures = {f"p{number}_test.png": (1600, 300) for number in range(2)} | {"film.gif": (64, 64), "s.png": (20, 20)}
    summary = SUMMARY | {f"test/{LONG}": 0.5, "prune/text": LONG * 3, "test/number": 123456789012}
    many = {f"picture_{number}.png": (80, 60) for number in range(12)}
    runs = [
        write_run(
            folder / LONG,
            CONFIG | {"description": f"{LONG} {LONG}", "recipe": LONG},
            summary,
            f"step,train/loss,val/{LONG},cluster/count\n{rows}\n",
            f"- changed: --model.{LONG} {LONG}\n- command: fit\n",
            pictures,
            {"wide.csv": wide, "long.csv": "text,number\n" + f"{LONG * 3},1\n" * 20},
        ),
        write_run(folder / "b", pictures=many | {"film.gif": (64, 64)}),
        write_run(folder / "c", summary=None, card=None, metrics=""),
    ]
    for name, shown in (("one", runs[:1]), ("three", runs)):
        assert report([*map(str, shown), "--output", str(folder / f"{name}.html")]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("name", ["one", "three"])
def test_a_page_fits_its_window_and_stays_with_itself(browser, pages, name, width, colours):
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=colours)
    requests: list[str] = []
    faults: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    try:
        page.goto((pages / f"{name}.html").as_uri(), wait_until="load")
        for opened in (False, True):
            page.evaluate("open => document.querySelectorAll('details').forEach(one => { one.open = open })", opened)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert page.evaluate(OVERFLOWING) == []
            assert page.evaluate(COVERED) == []
        widths = page.evaluate(DECODED)
        assert len(widths) == {"one": 4, "three": 17}[name]
        assert min(widths) > 0
        assert [url for url in requests if not url.startswith("data:")] == [(pages / f"{name}.html").as_uri()]
        assert faults == []
        ink, paper = page.evaluate(
            "['color', 'backgroundColor'].map(name => getComputedStyle(document.body)[name].match(/\\d+/g).map(Number))"
        )
        assert (sum(ink) > sum(paper)) == (colours == "dark")
    finally:
        page.close()
