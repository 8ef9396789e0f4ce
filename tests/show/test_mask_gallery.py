"""Tests that the mask gallery shows the masks of the trainer's batches in the original words of the text."""

import html.parser
import itertools
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from configuration_text_jepa import OBJECTIVES
from text_jepa import TextJepaConfig
from text_jepa.cli import parse_arguments
from text_jepa.commands import masks
from text_jepa.commands.main import main as text_jepa_command
from text_jepa.data.batching import EndlessStream
from text_jepa.data.collator import DataCollatorForTextJepa
from text_jepa.data.corpus import CorpusArguments, load_corpus
from text_jepa.data.strategies import MaskStrategy, ViewStrategy
from text_jepa.data.tokenization import tokenize_documents, tokenize_texts, train_tokenizer
from text_jepa.show import mask_gallery
from text_jepa.train.arguments import DataArguments, ModelArguments, ObjectiveArguments, TextJepaTrainingArguments
from text_jepa.train.build import (
    make_collator,
    make_corpus,
    make_examples,
    make_model,
    make_tokenizer,
    make_windows,
    objective_of,
    set_dependent_defaults,
)
from text_jepa.train.trainer import TextJepaTrainer


ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "<script>alert('&')</script>"

RECIPES = {
    "spans": {"num_masks": 2},
    "single tokens": {
        "strategies": MaskStrategy(whole_words=False, mean_span_length=1.0, span_length_distribution="fixed")
    },
    "strategies": {"num_masks": 3, "strategies": [MaskStrategy(ratio=0.3), MaskStrategy("suffix", ratio=0.25)]},
    "blocks": {
        "strategies": MaskStrategy("blocks", num_spans=3, ratio=0.1, context_ratio=0.8),
        "equal_counts": True,
    },
    "view": {"strategies": MaskStrategy(ratio=0), "view": ViewStrategy("crop")},
}


@pytest.fixture(scope="module", params=["wordpiece", "bpe"])
def any_tokenizer(request, texts):
    return train_tokenizer([*texts, "naïve 数 🙂"], vocab_size=400, max_length=64, kind=request.param)


def collate(tokenizer, texts, **masks):
    collator = DataCollatorForTextJepa(tokenizer, **masks)
    return collator, collator([{"input_ids": tokenizer(text)["input_ids"]} for text in texts])


def read(tokenizer, texts, **masks):
    collator, batch = collate(tokenizer, texts, **masks)
    return mask_gallery.read_batch(batch, tokenizer, collator.strategy_names, len(texts)), batch, collator


def per_token(mask, field):
    return [getattr(run, field) for run in mask.runs for _ in range(run.tokens)]


class Reader(html.parser.HTMLParser):
    """Collects the tags and the text of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.words = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        open_tag = self.tags[-1][0] if self.tags else ""
        self.words += "" if open_tag == "style" else data


# ---- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_all_target_tokens_and_no_others_are_hidden_in_spans_of_the_collators_numbers(any_tokenizer, texts, recipe):
    shown, batch, _ = read(any_tokenizer, texts, **recipe)
    for row, text in enumerate(shown):
        for number, mask in enumerate(text.masks):
            positions, spans = (batch[name][row, number].numpy() for name in ("target_positions", "target_spans"))
            states = np.array(per_token(mask, "state"))
            assert np.flatnonzero(states == "hidden").tolist() == positions[positions >= 0].tolist()
            assert np.array(per_token(mask, "span"))[states == "hidden"].tolist() == spans[spans >= 0].tolist()


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_visible_and_special_tokens_are_the_context(any_tokenizer, texts, recipe):
    shown, batch, _ = read(any_tokenizer, texts, **recipe)
    for row, text in enumerate(shown):
        for number, mask in enumerate(text.masks):
            positions = batch["context_positions"][row, number].numpy()
            states = np.array(per_token(mask, "state"))
            assert (
                np.flatnonzero(np.isin(states, ["visible", "special"])).tolist() == positions[positions >= 0].tolist()
            )
            tokens = sum(map(mask.count, mask_gallery.STATES))
            assert tokens + text.padding == batch["input_ids"].shape[1]
            special = batch["input_ids"][row].numpy()[: len(states)][states == "special"]
            assert set(special) <= {any_tokenizer.cls_token_id, any_tokenizer.sep_token_id}


def test_tokens_are_left_out_only_where_a_recipe_leaves_some_out(tokenizer, texts):
    for name, recipe in RECIPES.items():
        shown, _, _ = read(tokenizer, texts, **recipe)
        assert any(mask.count("left out") for text in shown for mask in text.masks) == (name == "blocks")


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_runs_joined_are_what_the_tokenizer_decodes(any_tokenizer, texts, recipe):
    texts = [*texts, "A naïve 数数 in 🙂🙃 — tabs\tand\nlines, don't."]
    shown, batch, _ = read(any_tokenizer, texts, **recipe)
    for row, text in enumerate(shown):
        ids = batch["input_ids"][row][batch["attention_mask"][row] == 1]
        decoded = any_tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        assert all("".join(run.text for run in mask.runs) == decoded for mask in text.masks)
        if text.view is not None:
            ids = batch["view_input_ids"][row][batch["view_attention_mask"][row] == 1]
            decoded = any_tokenizer.decode(ids, clean_up_tokenization_spaces=False)
            assert "".join(run.text for run in text.view) == decoded


def test_subwords_close_up_and_bytes_of_one_character_stay_together(any_tokenizer):
    ids = any_tokenizer("🙂 lighthouses", add_special_tokens=False)["input_ids"]
    pieces = mask_gallery.token_texts(ids, any_tokenizer)
    assert len(pieces) == len(ids)
    assert pieces[-1].strip() == pieces[-1]  # the end of a word, without a space or ## before it
    assert "##" not in "".join(pieces)
    assert "".join(pieces).strip() == any_tokenizer.decode(ids, clean_up_tokenization_spaces=False).strip()


def test_a_strategy_is_named_where_there_are_several(tokenizer, texts):
    shown, batch, collator = read(tokenizer, texts, **RECIPES["strategies"])
    names = [[mask.strategy for mask in text.masks] for text in shown]
    assert names == [[collator.strategy_names[i] for i in row] for row in batch["mask_strategies"].tolist()]
    shown, _, _ = read(tokenizer, texts)
    assert {mask.strategy for text in shown for mask in text.masks} == {""}


# ---- terminal -------------------------------------------------------------------------------------------------------


def test_without_colour_there_is_no_escape_code_and_spans_stand_in_numbered_brackets(tokenizer, texts):
    shown, _, _ = read(tokenizer, texts, **RECIPES["spans"])
    page = mask_gallery.to_terminal(shown, "Title", [], colour=False, width=10_000)
    assert "\x1b" not in page
    found = [re.findall(r"\[(\d+):(.*?)\](?=[^\]]|$)", line) for line in page.splitlines() if "[CLS]" in line][1:]
    masks = [mask for text in shown for mask in text.masks]
    assert [[(int(number), words) for number, words in line] for line in found] == [
        [(run.span, run.text.strip()) for run in mask.runs if run.state == "hidden"] for mask in masks
    ]


def test_neighbouring_spans_differ_in_colour_and_every_line_ends_plain(tokenizer, texts):
    shown, _, _ = read(tokenizer, texts, strategies=MaskStrategy(whole_words=False, mean_span_length=1.0))
    page = mask_gallery.to_terminal(shown, "Title", [], colour=True, width=60)
    for line in page.splitlines():
        codes = re.findall(r"\x1b\[[\d;]*m", line)
        assert codes[1::2] == ["\x1b[0m"] * (len(codes) // 2)
        assert len(codes) % 2 == 0
    # The hues of a mask alternate in reading order.
    body = page.split("Mask 1")[1]
    hues = re.findall(r"48;5;(\d+)m([⁰¹²³⁴⁵⁶⁷⁸⁹]+)", body)
    assert len(hues) > 2
    assert all(a[0] != b[0] for a, b in itertools.pairwise(hues))


@pytest.mark.parametrize("colour", [False, True])
def test_wrapping_loses_no_word_and_keeps_to_the_width(tokenizer, texts, colour):
    shown, _, _ = read(tokenizer, texts, **RECIPES["blocks"])
    wide, narrow = (
        mask_gallery.to_terminal(
            shown,
            "Title",
            ["A fact."],
            colour,
            width,
        )
        for width in (10_000, 40)
    )
    plain = [re.sub(r"\x1b\[[\d;]*m", "", page) for page in (wide, narrow)]
    assert plain[0].split() == plain[1].split()
    assert max(map(len, plain[1].splitlines())) <= 40


def test_a_text_cannot_steer_the_terminal(texts):
    tokenizer = train_tokenizer([*texts, "x\x1b[2Jy"], vocab_size=400, max_length=64, kind="bpe")
    shown, _, _ = read(tokenizer, ["The \x1b[2J\x07 lamp \x9b31m is lit."])
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", mask_gallery.to_terminal(shown, "Title", [], colour=False))


# ---- page -----------------------------------------------------------------------------------------------------------


def test_a_text_is_inert_on_the_page(tokenizer, texts):
    hostile = train_tokenizer([*texts, SCRIPT * 3], vocab_size=400, max_length=64, kind="bpe")
    shown, _, _ = read(hostile, [f"The lamp {SCRIPT} is lit.", '<img src="http://a" onerror=b>'], num_masks=2)
    shown[0].masks[0] = shown[0].masks[0]._replace(strategy=SCRIPT)
    page = Reader(mask_gallery.to_html(shown, SCRIPT, SCRIPT, [SCRIPT]))
    shown, _, _ = read(hostile, texts, **RECIPES["blocks"])
    benign = Reader(mask_gallery.to_html(shown, "T", "Q", ["F"]))
    known = {tag for tag, _ in benign.tags}
    assert {tag for tag, _ in page.tags} <= known
    assert {name for _, attributes in page.tags for name in attributes} <= {
        name for _, attributes in benign.tags for name in attributes
    }
    assert page.words.count(SCRIPT) == 5  # title, heading, question, fact, strategy; in the texts spans divide it


def test_the_page_needs_nothing_beside_itself(tokenizer, texts):
    shown, _, _ = read(tokenizer, texts, **RECIPES["view"])
    page = mask_gallery.to_html(shown, "Title", "Question", [])
    assert not re.search(r"https?:|url\(|@import|<script|<link|\bsrc=", page)
    assert "prefers-color-scheme" in page
    assert 'name="viewport"' in page


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_the_page_marks_each_hidden_run_once(tokenizer, texts, recipe):
    shown, _, _ = read(tokenizer, texts, **recipe)
    page = mask_gallery.to_html(shown, "Title", "Question", [])
    marked = re.findall(r'<mark class="h(\d)"><sup>(\d+)</sup><b>(.*?)</b></mark>', page.split("</header>")[1])
    runs = [run for text in shown for mask in text.masks for run in mask.runs if run.state == "hidden"]
    assert [(int(number), html.unescape(words)) for _, number, words in marked] == [
        (run.span, run.text.strip()) for run in runs
    ]


# ---- words ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "view", "said", "unsaid"),
    [
        ({}, False, ["vectors", "target encoder", "words themselves"], ["one vector", "second text"]),
        ({"token_loss_weight": 0}, False, ["vectors", "whole text"], ["themselves"]),
        ({"latent_loss_weight": 0}, False, ["words themselves"], ["vectors", "target encoder"]),
        ({"sentence_loss_weight": 1.0}, True, ["one vector", "second text"], []),
        ({"target_encoder_type": "online"}, False, ["encoder itself"], ["target encoder"]),
        (OBJECTIVES["documents"], True, ["the vector of the rest of the document"], ["words", "target encoder"]),
        ({"latent_loss_weight": 0, "token_loss_weight": 0}, False, ["Nothing is predicted"], ["From"]),
    ],
)
def test_the_question_says_what_the_losses_ask(fields, view, said, unsaid):
    names = [name for name in TextJepaConfig.__annotations__ if hasattr(TextJepaConfig, name)]
    tokens_alone = {name: getattr(TextJepaConfig, name) for name in names} | {"sentence_loss_weight": 0.0}
    objective = SimpleNamespace(**tokens_alone | fields)
    question = mask_gallery.describe_question(objective, view)
    assert all(words in question for words in said)
    assert not any(words in question for words in unsaid)


def test_the_hidden_share_leaves_special_tokens_and_padding_out(tokenizer, texts):
    shown, batch, _ = read(tokenizer, texts, strategies=MaskStrategy(ratio=0.5))
    ids = batch["input_ids"][0].numpy()
    unusable = [tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id]
    usable = (~np.isin(ids, unusable)).sum()
    hidden = int((batch["target_positions"][0, 0] >= 0).sum())
    assert f"{hidden} hidden ({hidden / usable:.0%})" in mask_gallery.caption(shown[0].masks[0], shown[0].padding)


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, texts):
    (tmp_path / "notes.txt").write_text("".join(f"{i} {text}\n" for i in range(6) for text in texts))
    (tmp_path / "run.yaml").write_text(
        "objective: jepa\npreset: tiny\nvocab_size: 300\nnum_masks: 2\nmax_length: 48\n"
        "per_device_train_batch_size: 4\n"
        "mask_ratio: {start: 0.1, end: 0.6, steps: 10}\ngradient_accumulation_steps: 2\nuse_cpu: true\n"
        f"validation_split_percentage: 20\ntrain_file: ['{tmp_path / 'notes.txt'}']\n"
        f"output_dir: {tmp_path / 'out'}\ncache_dir: {tmp_path / 'cache'}\n"
    )
    return tmp_path


@pytest.fixture
def shown(monkeypatch):
    """Collects the batches that the command shows."""
    batches = []
    original = mask_gallery.read_batch

    def spy(batch, *others):
        batches.append(batch)
        return original(batch, *others)

    monkeypatch.setattr(mask_gallery, "read_batch", spy)
    return batches


def trainers_batches(folder, count, more):
    """Collects the first batches of a run with these arguments."""
    classes = (ModelArguments, DataArguments, ObjectiveArguments, TextJepaTrainingArguments)
    argv = [
        str(folder / "run.yaml"),
        "--save_strategy",
        "no",
        "--max_steps",
        str(-(-count // 2)),
        *more,
    ]
    model_args, data_args, objective_args, args = parse_arguments(classes, argv, "")
    set_dependent_defaults(data_args, objective_of(model_args, objective_args))
    corpus = make_corpus(model_args, data_args)
    tokenizer, _ = make_tokenizer(model_args, data_args, args, corpus)
    examples = make_examples(corpus, tokenizer, data_args)
    train = make_windows(examples["train"], data_args, tokenizer)
    model = make_model(model_args, data_args, objective_args, tokenizer)
    collator = make_collator(data_args, args, tokenizer, model.config.max_text_length)
    trainer = TextJepaTrainer(model, args, collator, train, processing_class=tokenizer)
    seen = []
    compute_loss = trainer.compute_loss
    trainer.compute_loss = lambda model, inputs, *others, **kwargs: (
        seen.append({name: value.clone() for name, value in inputs.items()})
        or compute_loss(model, inputs, *others, **kwargs)
    )
    trainer.train()
    return seen


# Step -> index of its first batch, for 29 texts or 58 windows in batches of four; step 4 or 8 begins the second epoch.
STEPS = {"jepa": {0: 0, 1: 2, 4: 8, 5: 10}, "documents": {0: 0, 1: 2, 8: 15}}


@pytest.mark.parametrize("objective", STEPS)
def test_the_batch_is_the_one_the_trainer_trains_on_at_that_step_also_in_a_later_pass(folder, shown, objective):
    more = ["--objective", objective]
    batches = trainers_batches(folder, 18, more)
    for step in STEPS[objective]:
        masks.main([str(folder / "run.yaml"), "--step", str(step), *more])
    for batch, place in zip(shown, STEPS[objective].values(), strict=True):
        expected = batches[place]
        assert set(batch) == set(expected)
        assert all((batch[name] == expected[name]).all() for name in batch)


@pytest.mark.parametrize("objective", ["jepa", "documents"])
def test_the_batch_of_a_stream_is_the_one_that_it_gives(folder, shown, tokenizer, objective):
    argv = [str(folder / "run.yaml"), "--streaming", "--shuffle_buffer", "7", "--max_steps", "3"]
    argv += ["--objective", objective]
    files = folder / "more.txt"
    files.write_text("".join(f"{i} words of text number {i} in the stream\n" for i in range(300)))
    tokenizer.save_pretrained(folder / "tokenizer")
    masks.main(
        [
            *argv,
            "--train_file",
            str(files),
            "--tokenizer_name",
            str(folder / "tokenizer"),
        ]
    )
    splits = load_corpus(CorpusArguments([str(files)], streaming=True)).splits
    tokenize = tokenize_documents if objective == "documents" else tokenize_texts
    train = tokenize(splits, tokenizer, 48)["train"].shuffle(seed=42, buffer_size=7)
    rows = [row for _, row in zip(range(4), EndlessStream(train, 4, 2, seed=42), strict=False)]
    (batch,) = shown
    if objective == "documents":
        collator = DataCollatorForTextJepa(tokenizer, view=ViewStrategy("rest", window_length=48), seed=42)
        expected = collator(rows)
        assert (batch["view_input_ids"] == expected["view_input_ids"]).all()
        assert (batch["input_ids"] == expected["input_ids"]).all()
    else:
        found = [ids[mask == 1] for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
        assert [ids.tolist() for ids in found] == [list(row["input_ids"]) for row in rows]


def test_off_a_terminal_the_command_prints_no_colour_and_leaves_only_the_page(folder, capsys):
    before = {path for path in folder.rglob("*") if "cache" not in path.parts}
    page = folder / "masks.html"
    masks.main(
        [
            str(folder / "run.yaml"),
            "--texts",
            "3",
            "--html",
            str(page),
        ]
    )
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "run.yaml" in printed
    assert printed.count("Mask 1:") == printed.count("Mask 2:") == 3
    assert {path for path in folder.rglob("*") if "cache" not in path.parts} == before | {page}
    assert page.read_text(encoding="utf-8").count("<section>") == 3


@pytest.mark.parametrize(("no_color", "coloured"), [(None, True), ("", True), ("1", False)])
def test_a_terminal_gets_colour_unless_no_color_is_set(folder, capsys, monkeypatch, no_color, coloured):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color is not None:
        monkeypatch.setenv("NO_COLOR", no_color)
    masks.main([str(folder / "run.yaml"), "--texts", "1"])
    assert ("\x1b[" in capsys.readouterr().out) == coloured


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--texts", "0"], ["--texts", "at least 1"]),
        (["--step", "-1"], ["--step", "at least 0"]),
        (["--step", "3", "--max_steps", "3"], ["--step 3", "the last step of the run is 2"]),
        (["--step", "now"], ["--step", "now"]),
        (["--text", "3"], ["--text", "did you mean 'texts'"]),
        (["--html", "{dir}/notes.txt"], ["--html", "notes.txt", "name another"]),
        (["--html", "{dir}/none/masks.html"], ["--html", "no folder", "none"]),
        (["--train_file", "{dir}/none.txt"], ["--train_file", "none.txt", "no such file"]),
        (["--mask_ratio", "1.5"], ["mask_ratio", "at least 0 and below 1"]),
        (["--config_name", "{dir}/nothing"], ["--config_name", "nothing"]),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(folder, argv, said, monkeypatch, capsys):
    before = (folder / "notes.txt").read_text()
    argv = ["text-jepa", "masks", str(folder / "run.yaml"), *(word.format(dir=folder) for word in argv)]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as exit_:
        text_jepa_command()
    printed = capsys.readouterr()
    assert exit_.value.code == 2
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1, printed.err
    assert all(words in printed.err for words in said), printed.err
    assert (folder / "notes.txt").read_text() == before


def test_the_title_names_the_recipes_and_no_texts():
    assert masks.name_of_run(["a/one.yaml", "notes/", "two.yml", "--train_file", "x.yaml"]) == "one.yaml with two.yml"
    assert masks.name_of_run(["notes/"]) == "the run"


def test_help_is_short_and_names_its_own_flags(capsys):
    with pytest.raises(SystemExit) as stop:
        masks.main(["--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: text-jepa masks ")
    assert all(f"--{name}" in printed for name in ("texts", "step", "html"))
    assert "--learning_rate" not in printed
    assert len(printed.splitlines()) < 40


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_ends_the_command_quietly(folder):
    command = f"'{sys.executable}' -m text_jepa masks '{folder / 'run.yaml'}' --texts 4 | true"
    result = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 141, result.stderr
    assert "Error" not in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 500])
def test_a_browser_shows_the_page_with_the_hidden_words_in_colour(tokenizer, texts, width, browser, tmp_path):
    shown = read(tokenizer, texts, **RECIPES["blocks"])[0]
    page = tmp_path / "masks.html"
    page.write_text(mask_gallery.to_html(shown, "What is asked", "Question", ["Fact"]), encoding="utf-8")
    pixels, seen = browser(page, width)
    assert pixels.std() > 10
    assert "What is asked" in seen
