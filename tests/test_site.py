"""The site of docs/ as mkdocs builds it, and README.md as it is rendered, in a browser.

Nothing overflows, search works. One browser opens all pages, from a server, since search and copying need one.
"""

import functools
import io
import re
import shutil
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_docs import PAGES, named_in_the_reference


pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
# A telephone, a small and a large screen, in pixels.
WIDTHS = (390, 1024, 1400)
# What lies beside the window although no box of its own scrolls it, with its first words.
OVERFLOW = """() => [...document.querySelectorAll("body *")].filter(element => {
    if (element.getBoundingClientRect().right <= innerWidth + 1 || !element.checkVisibility()) return false
    for (let box = element.parentElement; box; box = box.parentElement)
        if (getComputedStyle(box).overflowX != "visible" && box.getBoundingClientRect().right <= innerWidth + 1)
            return false
    return true
}).map(element => element.tagName + " " + element.textContent.slice(0, 40))"""
# Tables and pictures that scroll in their own box, and of these the ones without a shadow that says so.
SCROLLED = """() => {
    const boxes = [...document.querySelectorAll(".md-content :is(table, img)")].map(wide => wide.closest(
        ".md-typeset__scrollwrap, p")).filter(box => box && box.scrollWidth > box.clientWidth + 1)
    const bare = boxes.filter(box => !getComputedStyle(box).backgroundImage.includes("gradient"))
    return [boxes.length, bare.length]
}"""
# What GitHub does to a README, as far as widths go: https://github.com/sindresorhus/github-markdown-css
GITHUB = """<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><style>
body { box-sizing: border-box; max-width: 1012px; margin: auto; padding: 32px; font: 16px/1.5 sans-serif;
    overflow-wrap: break-word }
pre, table { display: block; max-width: 100%; overflow: auto } td, th { border: 1px solid; padding: 6px 13px }
pre { padding: 16px; font-size: 85% } img { max-width: 100% }</style>"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built without a warning."""
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


@pytest.fixture(scope="module")
def window():
    """A page of a browser."""
    playwright = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium here")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
        context.set_default_timeout(120_000)
        yield context.new_page()
        browser.close()


@pytest.fixture(scope="module")
def address(site):
    """Where the site is served."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def visit(window, page):
    """Opens a page whose parts do not glide to their places when the window changes."""
    window.goto(page)
    window.add_style_tag(content="* { transition: none !important; animation: none !important }")


def size(window, width):
    window.set_viewport_size({"width": width, "height": 1000})


def assert_fits(window, width):
    size(window, width)
    assert window.evaluate("innerWidth") == width
    assert window.evaluate("document.documentElement.scrollWidth") <= width
    assert window.evaluate(OVERFLOW) == []


def assert_shows_something(window):
    """Below the bar at the top."""
    pixels = np.asarray(Image.open(io.BytesIO(window.screenshot())).convert("L"), dtype=float)
    assert pixels[200:].std() > 10


# ---- what is built --------------------------------------------------------------------------------------------------


def test_the_site_has_every_page_flag_and_class_and_asks_no_other_server(site):
    flags, names = named_in_the_reference()
    page = (site / "reference" / "flags.html").read_text()
    assert {flag for flag in flags if f"{flag}</code>" not in page} == set()
    page = (site / "reference" / "python.html").read_text()
    assert [name for name in names if f'.{name}" class="doc' not in page] == []
    for name in PAGES:
        page = (site / name).with_suffix(".html").read_text()
        assert re.findall(r'<(?:script|img|iframe)[^>]*src="(?:https?:)?//|<link[^>]*stylesheet[^>]*//', page) == []
    assert not (site / "hooks.py").exists()


# ---- in a browser ---------------------------------------------------------------------------------------------------


def test_no_page_is_wider_than_a_telephone_or_a_screen(window, address):
    """What is wider, such as a table, scrolls in a box with a shadow at its edge."""
    scrolled = 0
    for name, path in PAGES.items():
        visit(window, f"{address}/{Path(name).with_suffix('.html')}")
        title = re.search(r"^# (.+)$", path.read_text(), re.MULTILINE)[1]
        assert window.locator("h1").inner_text().startswith(title)
        for width in WIDTHS:
            assert_fits(window, width)
            boxes, without_shadow = window.evaluate(SCROLLED)
            assert without_shadow == 0
            scrolled += boxes
    assert scrolled > 10


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["index", "results"])
def test_pages_are_seen_in_the_light_and_in_the_dark(name, scheme, window, address):
    window = window.context.browser.new_page(color_scheme=scheme)
    size(window, 1400)
    visit(window, f"{address}/{name}.html")
    assert_shows_something(window)
    ground, letters = window.evaluate(
        "() => { const style = getComputedStyle(document.body); return [style.backgroundColor, style.color] }"
    )
    window.close()
    ground, letters = (sum(map(int, re.findall(r"\d+", color)[:3])) / 3 for color in (ground, letters))
    assert (ground > 200 and letters < 80) if scheme == "light" else (ground < 60 and letters > 150)


def test_search_finds_a_page_by_its_words(window, address):
    size(window, 1400)
    visit(window, f"{address}/index.html")
    window.locator("[data-md-component=search-query]").fill("collapse monitor")
    found = window.locator(".md-search-result__link").first
    found.wait_for()
    found.click()
    window.wait_for_url(re.compile(r"\.html"))
    assert "collapse" in window.locator(".md-content").inner_text().lower()


def test_a_block_of_code_is_copied_by_its_button(window, address):
    size(window, 1400)
    visit(window, f"{address}/quickstart.html")
    block = window.locator(".highlight").first
    block.hover()
    block.locator("button").first.click()
    window.wait_for_function("() => navigator.clipboard.readText().then(text => text.length > 0)")
    assert window.evaluate("navigator.clipboard.readText()").strip() == "make setup\nsource .venv/bin/activate"


def test_the_readme_fits_where_it_is_rendered(window, tmp_path):
    markdown = pytest.importorskip("markdown")
    html = markdown.markdown((ROOT / "README.md").read_text(), extensions=["tables", "fenced_code"])
    page = tmp_path / "readme.html"
    page.write_text(f"{GITHUB}{html}")
    visit(window, page.as_uri())
    for width in WIDTHS:
        assert_fits(window, width)
    assert_shows_something(window)
    assert window.locator("pre").count() == html.count("<pre>") > 5
    assert window.locator("table").count() > 2
