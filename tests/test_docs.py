"""The pages of docs/: what they link to, show and name exists, and is of today."""

import dataclasses
import importlib
import importlib.util
import itertools
import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

import run_pretraining
import text_jepa
from text_jepa.cli import parse_arguments
from text_jepa.commands import adapt, export, plot, search
from text_jepa.commands.masks import GalleryArguments
from text_jepa.encoders.sentence_head import SentenceHead
from text_jepa.probe.arguments import ProbeArguments
from text_jepa.probe.bootstrap import Score
from text_jepa.probe.report import write_results
from text_jepa.train.command import CLASSES as PRETRAINING
from text_jepa.train.command import parse_run


ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {str(path.relative_to(DOCS)): path for path in sorted(DOCS.rglob("*.md"))}

_spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
hooks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(hooks)


def blocks_of(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


# ---- pages ----------------------------------------------------------------------------------------------------------


def test_every_page_is_in_the_navigation_once():
    entries = re.findall(r"^ +- .*: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(entries) == sorted(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_links_of_a_page_lead_to_files(name):
    """In the repository, where they are read too; that the headings are there is for the strict build."""
    targets = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", PAGES[name].read_text())
    assert [target for target in targets if not (PAGES[name].parent / target).exists()] == []


@pytest.mark.parametrize("name", PAGES)
def test_scripts_configurations_and_tests_that_a_page_names_exist(name):
    text = PAGES[name].read_text()
    files = re.findall(r"(?<![\w/.])((?:benchmarks|examples|tests|configs|text_jepa)/[\w/-]+\.(?:py|yaml))", text)
    files = [file for file in files if not Path(file).stem.isupper()]  # NAME stands for any
    assert [file for file in files if not (ROOT / file).exists()] == []

    named = re.findall(r"((?:\w+/)*test_\w+\.py)::(test_\w+)", text)
    missing = []
    for file, test in named:
        if f"\ndef {test}(" not in (ROOT / "tests" / file).read_text():
            missing.append(f"{file}::{test}")
    assert missing == []


# ---- commands -------------------------------------------------------------------------------------------------------


def parse_probe(words):
    parse_arguments((ProbeArguments,), words, "", positional="model_name_or_path")


def parse_adapt(words):
    name, texts, flags = adapt.read_words(words, "")
    parse_run(adapt.words_of_run(name, SentenceHead(name), texts, flags), "")


PROGRAMS = {
    # Of a command for GPUs, too.
    "run_pretraining.py": lambda words: parse_run([*words, "--use_cpu"], ""),
    "run_probe.py": parse_probe,
    "text-jepa": lambda words: VERBS[words[0]](words[1:]),
}
VERBS = {
    "pretrain": PROGRAMS["run_pretraining.py"],
    "adapt": parse_adapt,
    "probe": parse_probe,
    "masks": lambda words: parse_run(words, "", more=(GalleryArguments,)),
    "export": lambda words: export.make_parser().parse_args(words),
    "plot": lambda words: plot.make_parser().parse_args(words),
    "search": lambda words: search.make_parser().parse_args(words),
}
COMMANDS = [
    (name, line)
    for name, path in {**PAGES, "README.md": ROOT / "README.md"}.items()
    for block in blocks_of(path, "bash")
    for line in block.replace("\\\n", " ").splitlines()
    if shlex.split(line, comments=True)
]


@pytest.mark.parametrize(("name", "line"), COMMANDS, ids=lambda value: " ".join(value.split())[:60])
def test_every_command_that_is_shown_is_understood(name, line, monkeypatch):
    """Behind its launcher, if it has one."""
    monkeypatch.chdir(ROOT)
    words = shlex.split(line, comments=True)
    words = list(itertools.dropwhile(lambda word: re.match(r"[A-Z_]+=", word), words))
    place = next((place for place, word in enumerate(words) if word in PROGRAMS), None)
    if place is not None:
        PROGRAMS[words[place]](words[place + 1 :])
    elif words[0] == "make":
        assert f"\n{words[1]}: " in (ROOT / "Makefile").read_text()
    elif words[0] == "python" and words[1] != "-m":
        script = (ROOT / words[1]).read_text()
        assert [word for word in words[2:] if word.startswith("--") and f'"{word}"' not in script] == []
    else:
        assert words[0] in {"pip", "python", "source"}


# ---- python ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workspace(texts, tokenizer, tmp_path_factory):
    """A folder with what the pages speak of: a run in runs/notes, and results of a probe."""
    folder = tmp_path_factory.mktemp("workspace")
    rows = [{"text": f"{texts[number % len(texts)]} {texts[number % 5]}"} for number in range(24)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer.save_pretrained(folder / "tokenizer")
    flags = [
        "--train_file",
        str(folder / "train.jsonl"),
        "--tokenizer_name",
        str(folder / "tokenizer"),
        "--use_cpu",
    ]
    flags += ["--preset", "tiny", "--max_length", "32", "--max_steps", "2", "--per_device_train_batch_size", "4"]
    flags += [
        "--save_strategy",
        "no",
        "--logging_steps",
        "1",
        "--output_dir",
        str(folder / "runs" / "notes"),
    ]
    run_pretraining.main(flags)
    (folder / "runs/wikipedia-short").symlink_to("notes")  # the encoder of docs/released-encoder.md
    score = Score(
        "rte",
        "linear",
        "accuracy",
        "runs/notes",
        50.0,
        45.0,
        55.0,
        277,
        1,
        None,
        None,
        None,
        None,
    )
    write_results(folder / "results", [score], [], "python run_probe.py runs/notes --tasks rte", {})
    return folder


@pytest.mark.parametrize("name", [name for name, path in PAGES.items() if blocks_of(path, "python")])
def test_python_of_a_page_runs_from_top_to_bottom(name, workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    exec("\n".join(blocks_of(PAGES[name], "python")), {"__name__": "__main__"})


# ---- what is read from the code -------------------------------------------------------------------------------------


def named_in_the_reference():
    """What the pages of the reference have to name: every public name, and every flag of every command."""
    classes = (*PRETRAINING, ProbeArguments, GalleryArguments)
    flags = {f"--{field.name}" for cls in classes for field in dataclasses.fields(cls) if field.init}
    for module in (export, plot):
        commands = next(action for action in module.make_parser()._actions if action.dest == "command")
        for parser in commands.choices.values():
            for action in parser._actions:
                flags |= {option for option in action.option_strings if option.startswith("--")}
    return flags - {"--help"}, text_jepa.__all__


def test_the_reference_names_every_flag_and_every_public_name():
    flags, names = named_in_the_reference()
    page = hooks.on_page_markdown(PAGES["reference/flags.md"].read_text())
    assert {flag for flag in flags if not re.search(rf"`(-\w, )?{flag}`", page)} == set()
    page = hooks.on_page_markdown(PAGES["reference/python.md"].read_text())
    assert [name for name in names if not re.search(rf"^::: [\w.]+\.{name}$", page, re.MULTILINE)] == []


@pytest.mark.parametrize("folder", ["configs", "configs/corpora"])
def test_a_table_of_recipes_has_a_row_for_each_file_that_says_what_it_is(folder):
    rows = [line.split(" | ") for line in hooks.headers(folder).splitlines()[2:]]
    assert len(rows) == len(list((ROOT / folder).glob("*.yaml")))
    assert all(len(cells) == 3 and cells[1] for cells in rows)


def test_no_block_of_a_page_is_left_unfilled():
    for path in PAGES.values():
        assert "{{" not in hooks.on_page_markdown(path.read_text())


def test_the_tour_has_each_cell_of_the_notebook_and_what_it_printed():
    page = hooks.on_page_markdown(PAGES["tour.md"].read_text())
    cells = json.loads((ROOT / "examples" / "tour.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    outputs = [output["output_type"] for cell in cells for output in cell.get("outputs", [])]
    assert all(f"```python\n{source}\n```" in page for source in code)
    assert page.count("```text\n") == outputs.count("stream") >= 5
    assert page.count("](data:image/png;base64,") == outputs.count("display_data") >= 1
    assert "\x1b" not in page
    assert page.count("\n# A tour") == 0


def test_a_link_out_of_the_pages_becomes_words_and_one_within_stays():
    assert hooks.on_page_markdown("see [the file](../configs/mlm.yaml).") == "see the file."
    assert hooks.on_page_markdown("see [the page](../faq.md#settings).") == "see [the page](../faq.md#settings)."


def test_marks_of_transformers_in_docstrings_become_links_and_plain_types():
    html = hooks.on_page_content(
        "<p>[<code>TextJepaModel</code>] [<code>Other</code>] (<code>`int`, *optional*</code>)</p>"
    )
    link = '<a href="#modeling_text_jepa.TextJepaModel"><code>TextJepaModel</code></a>'
    assert html == f"<p>{link} <code>Other</code> (<em>int, optional</em>)</p>"


# ---- runs whose figures are shown -----------------------------------------------------------------------------------

# Folders with the log of a run, beside the recipe that it was made by.
STORED = sorted(path.parent for path in (DOCS / "assets").rglob("recipe.json"))
REMEDY = {
    "make-pretrain": "run make pretrain and benchmarks/report.py --pretrained RUN",
    "released-encoder": "run the command of docs/released-encoder.md and benchmarks/report.py --released RUN",
    "gallery": "run make pretrain and benchmarks/gallery.py RUN",
}


@pytest.fixture
def stored_run(monkeypatch):
    """The module, which is beside the scripts that use it."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("stored_run")


@pytest.mark.parametrize("folder", STORED, ids=lambda folder: folder.name)
def test_pages_show_no_log_of_an_older_default(folder, stored_run):
    remedy = next(remedy for name, remedy in REMEDY.items() if folder.name.startswith(name))
    for command, then in stored_run.read_recipe(folder)["recipes"].items():
        changed = stored_run.differences(then, stored_run.recipe_of(command))
        assert changed == [], f"{command} has changed; {remedy}"


def test_figures_of_the_first_page_that_no_comparison_has_are_those_of_their_pages():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (figure,) = re.findall(r"on Wikipedia: (\+[^\]]+\]) over TF-IDF", readme)
    card = (DOCS / "released-encoder.md").read_text(encoding="utf-8")
    assert re.search(r"TF-IDF \(training texts\) \|[^\n]*" + re.escape(figure), card)
    pattern = r"an MRR of (\S+), BM25 alone (\S+) \((.+?)\) and vectors\s+alone (\S+)"
    both, words, lead, vectors = re.search(pattern, readme).groups()
    search = (DOCS / "search.md").read_text(encoding="utf-8")
    assert f"| MRR | {words} | {vectors} | {both} | {lead} |" in search


def test_the_passage_of_the_first_page_is_where_it_says():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    ((file, line, beginning),) = re.findall(r"^(docs/\w+\.md):(\d+)  0\.\d+\n +([^*\n]+) \*\*", readme, re.MULTILINE)
    assert (ROOT / file).read_text(encoding="utf-8").splitlines()[int(line) - 1] == beginning


def test_a_changed_recipe_is_told_from_another_folder_or_a_new_flag(stored_run):
    command = "configs/tiny_cpu.yaml"
    then = stored_run.recipe_of(command)
    same = stored_run.recipe_of(f"{command} --output_dir elsewhere --logging_steps 7 --license mit")
    assert stored_run.differences({**then, "a_flag_that_is_gone": 1}, same) == []
    for name, value in (("learning_rate", "2e-3"), ("vocab_size", "300"), ("pooling", "mean")):
        found = stored_run.differences(then, stored_run.recipe_of(f"{command} --{name} {value}"))
        assert [change.partition(":")[0] for change in found] == [name]


# ---- pictures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((DOCS / "assets").glob("*.png")), ids=lambda path: path.stem)
def test_a_picture_is_small_shown_and_has_a_ground_of_its_own(path):
    """On a dark page, too: letters of a picture are black."""
    assert path.stat().st_size <= 150_000
    assert Image.open(path).convert("RGBA").getextrema()[3] == (255, 255)
    pages = [page for page in PAGES.values() if path.name in page.read_text()]
    assert pages or path.name in (ROOT / "README.md").read_text()
