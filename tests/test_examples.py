"""The examples as people run them; the page of the demo in a browser, where there is one."""

import json
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
from transformers import BertConfig, BertModel

from text_jepa.encoders.embeddings import open_encoder


ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def bag(tokenizer, tmp_path_factory):
    """Folder of an encoder without layers: the mean of its states is that of the vectors of a text's words."""
    folder = tmp_path_factory.mktemp("bag")
    shape = {"hidden_size": 64, "num_hidden_layers": 0, "num_attention_heads": 2, "max_position_embeddings": 128}
    torch.manual_seed(0)
    model = BertModel(BertConfig(vocab_size=len(tokenizer), initializer_range=0.2, **shape), add_pooling_layer=False)
    with torch.no_grad():
        model.embeddings.position_embeddings.weight.zero_()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run(*command, **environment):
    """A command in the root of the repository; what it printed, all of it where it failed."""
    result = subprocess.run(
        [str(word) for word in command], cwd=ROOT, env={**ENVIRONMENT, **environment}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


# ---- tour -----------------------------------------------------------------------------------------------------------


def test_the_notebook_is_what_the_script_gives():
    """`examples/make_tour.py` makes it anew, with what each cell printed."""
    script = []
    for part in re.split(r"^# %%", (EXAMPLES / "tour.py").read_text(), flags=re.MULTILINE)[1:]:
        kind, _, source = part.partition("\n")
        if kind == " [markdown]":
            source = re.sub(r"^# ?", "", source, flags=re.MULTILINE)
        script.append(("markdown" if kind else "code", source.strip()))
    cells = json.loads((EXAMPLES / "tour.ipynb").read_text())["cells"]
    assert [(cell["cell_type"], "".join(cell["source"])) for cell in cells] == script
    stored = printed_in_the_notebook()
    assert re.findall(r"step +(\d+)/150  loss", stored) == ["1", *map(str, range(15, 151, 15))]
    assert not re.search("/(home|root|tmp|work)/|Traceback", stored)
    pictures = [output for cell in cells for output in cell.get("outputs", []) if "data" in output]
    assert len(pictures) == 1
    assert (EXAMPLES / "tour.ipynb").stat().st_size < 250_000


def printed_in_the_notebook():
    """What the cells of the notebook have printed."""
    cells = json.loads((EXAMPLES / "tour.ipynb").read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return "".join("".join(output.get("text", [])) for output in outputs)


@pytest.mark.slow
def test_the_tour_runs_to_its_end():
    printed = run(sys.executable, EXAMPLES / "tour.py")
    assert re.search(r"step +150/150 +loss .* rank \d+/128", printed)
    assert "ModernBertModel" in printed
    assert printed.count("\n0.") == 3  # neighbours
    # Of the same form as what the notebook shows; figures and texts are those of a machine and its packages.
    stored = printed_in_the_notebook()
    for form in (r"^step +\d+/150", r"^[\w.]+\.(?:md|png|json|jsonl|safetensors)$", r"^\d+ pieces|^[01]\.\d\d  "):
        assert len(re.findall(form, printed, re.MULTILINE)) == len(re.findall(form, stored, re.MULTILINE)) > 0


# ---- demo -----------------------------------------------------------------------------------------------------------


def test_the_demo_puts_the_prompts_of_their_names_before_queries_and_texts(bag, tmp_path, texts, monkeypatch):
    page = MagicMock()
    monkeypatch.setitem(sys.modules, "gradio", page)
    folder = shutil.copytree(bag, tmp_path / "mine")
    (folder / "config_sentence_transformers.json").write_text('{"prompts": {"query": "flour water salt bread"}}')
    runpy.run_path(str(EXAMPLES / "demo.py"))["make_page"](open_encoder(str(folder)))
    search = page.on.call_args_list[0].args[1]
    items = re.findall("<li>.*?</li>", search("and", "\n".join(texts), None))
    assert texts[3] in items[0]


@pytest.fixture
def page(bag):
    """The demo's page in a browser, and the hosts that it asked for something."""
    pytest.importorskip("gradio", reason="needs the extra demo")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    environment = {**ENVIRONMENT, "GRADIO_SERVER_PORT": address.rpartition(":")[2]}
    demo = subprocess.Popen([sys.executable, EXAMPLES / "demo.py", bag], cwd=ROOT, env=environment)
    try:
        wait_for(address, demo)
        with playwright.sync_playwright() as driver:
            # As root, Chromium has no sandbox.
            chromium = driver.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
            opened = chromium.new_page()
            opened.set_default_timeout(120_000)
            hosts = set()
            opened.on("request", lambda request: hosts.add(re.sub(r"^(\w+:/*[^/]*).*", r"\1", request.url)[:40]))
            opened.goto(address)
            yield opened, hosts, address
            chromium.close()
    finally:
        demo.terminate()
        demo.wait()


def wait_for(address, process):
    """Returns when something answers there."""
    for _ in range(600):
        assert process.poll() is None, "the demo ended"
        try:
            return urllib.request.urlopen(address).close()
        except urllib.error.URLError:
            time.sleep(0.5)
    raise AssertionError("the demo does not answer")


@pytest.mark.slow
def test_the_demo_searches_and_shows_masks_and_asks_nobody_else(page, texts):
    opened, hosts, address = page
    opened.get_by_text("or your own").click()
    found = opened.locator(".found li:first-child", has_text=texts[3])
    # A page that is still being set up loses what is typed and clicked: then, as a reader would, once more.
    for _ in range(60):
        opened.get_by_label("Texts, one per line").first.fill("\n".join(["<script>alert(1)</script>", *texts]))
        opened.get_by_label("Query").fill("flour water salt bread")
        opened.get_by_role("button", name="Search").click()
        opened.wait_for_timeout(2000)
        if found.is_visible():
            break
    assert found.is_visible()
    assert opened.locator(".found script").count() == 0

    opened.get_by_role("tab", name="Masks").click()
    masks = opened.frame_locator("iframe[title=Masks]")
    masks.locator("figure mark").first.wait_for()
    assert masks.locator("figure").count() == 2
    number = opened.get_by_label("number input for Masks")
    number.fill("4")
    number.press("Enter")
    masks.locator("figure").nth(3).locator("mark").first.wait_for()
    opened.get_by_label("Text", exact=True).fill(texts[4])
    masks.get_by_text("little boat").first.wait_for()
    assert {host for host in hosts if not host.startswith(("data:", "blob:", "about:"))} == {address}
