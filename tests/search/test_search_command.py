"""`text-jepa search` as people call it: what it prints, what it keeps, and one line for each mistake."""

import json
import re
import shutil
import sqlite3
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from text_jepa.cli import UsageError
from text_jepa.commands import search
from text_jepa.data.folders import find_files
from text_jepa.encoders.embeddings import embed_texts, open_encoder
from text_jepa.search.folder import find_texts, update
from text_jepa.search.index import VERSION, unit_rows
from text_jepa.search.static import StaticEmbedding, make_token_table
from text_jepa.share.export import export_sentence_transformer


MODULES = (("", "Transformer"), ("1_Pooling", "Pooling"))


@pytest.fixture(scope="module")
def bag(tokenizer, tmp_path_factory):
    """Folder of an encoder without layers, whose positions count."""
    folder = tmp_path_factory.mktemp("bag")
    shape = {"hidden_size": 64, "num_hidden_layers": 0, "num_attention_heads": 2, "max_position_embeddings": 128}
    torch.manual_seed(0)  # of passages with a score below 0 none is found
    model = BertModel(BertConfig(vocab_size=len(tokenizer), initializer_range=0.2, **shape), add_pooling_layer=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def static(bag, tmp_path_factory):
    """Folder of an encoder without layers in which a token has the same state everywhere."""
    folder = tmp_path_factory.mktemp("encoder") / "static"
    shutil.copytree(bag, folder)
    model = BertModel.from_pretrained(bag, add_pooling_layer=False)
    with torch.no_grad():
        model.embeddings.position_embeddings.weight.zero_()
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def notes(tmp_path, texts):
    folder = tmp_path / "notes"
    (folder / "deep").mkdir(parents=True)
    (folder / "one.txt").write_text("\n\n".join(texts[:3]))
    (folder / "deep" / "two.md").write_text(f"# Title\n\n{texts[3]}\n\n## Next\n\n{texts[4]} {texts[5]}\n")
    return folder


@pytest.fixture
def call(capsys):
    def call(*arguments):
        search.main([str(argument) for argument in arguments])
        return capsys.readouterr()

    return call


# ---- what is printed ------------------------------------------------------------------------------------------------


def test_place_and_marked_sentence_of_the_passage_that_answers_come_first(call, static, notes, texts):
    out = call(notes, "flour water salt bread", "--encoder", static).out
    place, score = out.splitlines()[0].split()
    assert place == f"{notes / 'deep' / 'two.md'}:1"
    assert 0 < float(score) <= 1
    first = " ".join(re.split(r"^/", out, flags=re.MULTILINE)[1].split())
    assert f"# Title **{texts[3]}**" in first


def test_json_has_the_passages_in_full(call, static, notes, texts):
    found = json.loads(call(notes, "measured the bridge", "--encoder", static, "--json", "--limit", 2).out)
    assert len(found) == 2
    assert found[0]["file"] == str(notes / "deep" / "two.md")
    assert (found[0]["line"], found[0]["sentence"]) == (5, texts[5])
    assert found[0]["text"] == f"## Next\n{texts[4]} {texts[5]}"
    assert found[0]["score"] >= found[1]["score"]


def test_a_terminal_gets_bold_type(call, static, notes, texts, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\033[1m" in call(notes, texts[3], "--encoder", static).out


def test_an_excerpt_holds_its_sentence_and_is_bounded():
    text = "Before it. " * 100 + "The sentence itself." + " After it." * 100
    start = text.index("The")
    before, marked, after = search.excerpt(text, search.Span(start, start + 20))
    assert marked == "The sentence itself."
    assert before.startswith("… ")
    assert after.endswith(" …")
    assert len(before + marked + after) < 340


def test_text_without_blanks_is_shown_before_and_behind_the_sentence():
    before, marked, after = search.excerpt("海" * 600, search.Span(300, 320))
    assert marked == "海" * 20
    assert before == f"… {'海' * 150} "
    assert after.startswith(f" {'海' * 140}")
    assert after.endswith(" …")


def test_a_sentence_that_begins_with_a_long_word_is_shown_in_part():
    text = f"https://example.org/{'a' * 400} is where the harbour is."
    _, marked, _ = search.excerpt(text, search.Span(0, len(text)))
    assert marked == f"{text[:318]} …"


# ---- the index ------------------------------------------------------------------------------------------------------


def test_later_searches_know_the_encoder_and_read_only_what_changed(call, static, notes, texts, monkeypatch):
    first = call(notes, "lamp", "--encoder", static)
    assert "making the index" in first.err
    monkeypatch.setattr(search, "open_quietly", lambda name: pytest.fail("an encoder was opened"))
    again = call(notes, "lamp")
    assert (again.out, again.err) == (first.out, "")
    monkeypatch.undo()
    (notes / "three.txt").write_text("A lamp, a lamp, a lamp!")
    assert "three.txt:1" in call(notes, "lamp").out.splitlines()[0]
    (notes / "three.txt").unlink()
    assert call(notes, "lamp").out == first.out


def test_another_encoder_makes_the_index_anew_and_says_so(call, static, bag, notes):
    call(notes, "lamp", "--encoder", static)
    assert re.search(r"made with .*static; rebuilding it with .*bag", call(notes, "lamp", "--encoder", bag).err)
    assert call(notes, "lamp").err == ""


def test_an_encoder_that_was_trained_again_makes_the_index_anew(call, static, notes, tmp_path):
    shutil.copytree(static, tmp_path / "mine")
    call(notes, "lamp", "--encoder", tmp_path / "mine")
    BertModel.from_pretrained(static, add_pooling_layer=False).save_pretrained(tmp_path / "mine")
    assert "has changed since; rebuilding it" in call(notes, "lamp").err


def test_another_commit_of_a_name_on_the_hub_makes_the_index_anew(call, bag, notes, tmp_path, monkeypatch):
    repository = tmp_path / "cache" / "models--org--encoder"
    for commit in ("1" * 40, "2" * 40):
        (repository / "snapshots" / commit).mkdir(parents=True)
        (repository / "snapshots" / commit / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("1" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(search, "open_quietly", lambda name: open_encoder(str(bag)))
    call(notes, "lamp", "--encoder", "org/encoder")
    assert call(notes, "lamp").err == ""
    (repository / "refs" / "main").write_text("2" * 40)
    assert "org/encoder has changed since; rebuilding it" in call(notes, "lamp").err
    assert call(notes, "lamp").err == ""


def test_a_name_on_the_hub_whose_tokens_are_in_the_index_is_not_opened(call, static, notes, monkeypatch):
    monkeypatch.setattr(search, "open_quietly", lambda name: open_encoder(str(static)))
    first = call(notes, "lamp", "--encoder", "org/encoder")
    monkeypatch.setattr(search, "open_quietly", lambda name: pytest.fail("an encoder was opened"))
    assert call(notes, "lamp").out == first.out


def test_vectors_without_torch_are_those_of_the_encoder(static, texts):
    encoder = open_encoder(str(static))
    table = make_token_table(encoder)
    embedding = StaticEmbedding(table.vectors.__getitem__, table.tokenizer, encoder.prompt)
    asked = [*texts, "zebra!", "", " ".join(texts * 10)]
    expected = unit_rows(embed_texts(encoder, asked))
    # Special tokens surround each window of a long text, and the whole of it here.
    assert np.abs(unit_rows(embedding(asked)) - expected)[:-1].max() < 1e-5
    assert (unit_rows(embedding(asked))[-1] @ expected[-1]) > 0.99


def test_an_encoder_whose_tokens_know_their_places_is_opened_for_each_query(call, bag, notes):
    assert make_token_table(open_encoder(str(bag))) is None
    first = call(notes, "lamp", "--encoder", bag)
    assert call(notes, "lamp").out == first.out


def test_an_encoder_whose_vectors_have_another_width_than_its_tokens_is_opened_for_each_query(
    call, static, notes, tmp_path
):
    folder = tmp_path / "short"
    shutil.copytree(static, folder)
    (folder / "config_sentence_transformers.json").write_text('{"truncate_dim": 16}')
    assert make_token_table(open_encoder(str(folder))) is None
    dense = replace(open_encoder(str(static)), layers_after=(torch.nn.Linear(64, 80),))
    assert make_token_table(dense) is None
    first = call(notes, "lamp", "--encoder", folder)
    assert call(notes, "lamp").out == first.out


@pytest.mark.parametrize("kind", ["static", "bag"])
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"prompts": {"query": "ask: ", "document": "text: "}}, ("ask: ", "text: ")),
        ({"prompts": {"query": "ask: "}, "default_prompt_name": "query"}, ("ask: ", "")),
        ({"prompts": {"query": None, "passage": "text: "}}, ("", "text: ")),
        ({"prompts": {"sts": "same: "}, "default_prompt_name": "sts"}, ("same: ", "same: ")),
        ({}, ("", "")),
    ],
)
def test_queries_and_passages_have_the_prompts_of_their_names(
    call, kind, settings, expected, notes, tmp_path, request, monkeypatch
):
    folder = tmp_path / "mine"
    shutil.copytree(request.getfixturevalue(kind), folder)
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    encoder = open_encoder(str(folder))
    of_query, of_passage = (unit_rows(embed_texts(replace(encoder, prompt=prompt), ["lamp"])) for prompt in expected)
    made = {}

    def update_and_look(index, folder, changes, embed, columns, settings):
        made["passage"] = embed(["lamp"])
        update(index, folder, changes, embed, columns, settings)

    def search_and_look(passages, query, embeddings, limit):
        made["query"] = embeddings.query([query])
        return found_by(passages, query, embeddings, limit)

    found_by = search.search
    monkeypatch.setattr(search, "update", update_and_look)
    monkeypatch.setattr(search, "search", search_and_look)
    for arguments in (["--encoder", folder], []):  # by the encoder, and by what the index keeps
        call(notes, "lamp", *arguments)
        assert np.abs(unit_rows(made["passage"]) - of_passage).max() < 1e-5
        assert np.abs(unit_rows(made["query"]) - of_query).max() < 1e-5


def test_prompts_by_name_are_those_of_sentence_transformers(static, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    plain, folder = tmp_path / "plain", tmp_path / "mine"
    shutil.copytree(static, plain)
    export_sentence_transformer(plain, folder, 64, {"query": "ask: ", "document": "text: "})
    embeddings = search.embeddings_of(open_encoder(str(folder)))
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    assert np.abs(embeddings.query(["lamp"]) - model.encode_query(["lamp"])).max() < 1e-5
    assert np.abs(embeddings.passage(["lamp"]) - model.encode_document(["lamp"])).max() < 1e-5
    assert np.abs(embeddings.query(["lamp"]) - embeddings.passage(["lamp"])).max() > 1e-3


def test_prompts_that_are_no_texts_are_one_line(call, static, notes, tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(static, folder)
    (folder / "config_sentence_transformers.json").write_text('{"prompts": {"query": 3}}')
    with pytest.raises(UsageError, match="do not map names to texts; fix them"):
        call(notes, "lamp", "--encoder", folder)


def test_a_prompt_that_the_pooling_leaves_out_is_one_line(call, static, notes, tmp_path):
    """Its tokens would be pooled here."""
    folder = tmp_path / "mine"
    shutil.copytree(static, folder)
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in MODULES]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean", "include_prompt": false}')
    found = call(notes, "lamp", "--encoder", folder).out
    assert found == call(notes, "lamp", "--encoder", static).out
    for prompts in ({"query": "ask: "}, {"passage": "text: "}):
        (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
        with pytest.raises(UsageError, match=r"its pooling excludes the prompt '(ask|text): '"):
            call(notes, "lamp", "--encoder", folder)


def test_the_newest_run_is_the_encoder_if_none_is_named(call, static, notes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no encoder in runs/"):
        call(notes, "lamp")
    shutil.copytree(static, tmp_path / "runs" / "mine")
    (tmp_path / "runs" / "mine" / "modules.json").write_text("[]")
    assert "runs/mine" in call(notes, "lamp", "--rebuild").err


def test_an_index_that_is_made_anew_keeps_its_encoder(call, static, notes):
    first = call(notes, "lamp", "--encoder", static)
    again = call(notes, "lamp", "--rebuild")
    assert (again.out, again.err) == (first.out, first.err)


@pytest.mark.parametrize("flags", [[], ["--rebuild"]])
@pytest.mark.parametrize("version", [1, VERSION])
def test_an_index_knows_its_encoder_and_columns_after_an_update_of_the_package(
    call, static, notes, tmp_path, monkeypatch, version, flags
):
    """The newest run, which would be taken if none were known, is another one."""
    (notes / "mails.jsonl").write_text('{"body": "A lamp, a lamp, a lamp!"}\n')
    first = call(notes, "lamp", "--encoder", static, "--text_column", "body")
    assert "mails.jsonl:1" in first.out.splitlines()[0]
    database = sqlite3.connect(notes / search.INDEX)
    database.execute(f"PRAGMA user_version = {version}")
    database.close()
    monkeypatch.setattr(search, "choose_encoder", lambda: pytest.fail("the encoder was forgotten"))
    again = call(notes, "lamp", *flags)
    assert again.out == first.out
    if version < VERSION and not flags:
        assert re.search("search.sqlite: made by an earlier version; rebuilding it with .*static\n", again.err)
    assert call(notes, "lamp").err == ""


def test_the_index_may_lie_elsewhere(call, static, notes, tmp_path):
    call(notes, "lamp", "--encoder", static, "--index", tmp_path / "other" / "index.sqlite")
    assert not (notes / ".text-jepa").exists()
    assert call(notes, "lamp", "--index", tmp_path / "other" / "index.sqlite").err == ""


# ---- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{notes}", "  "], "the query is empty"),
        (["{notes}/one.txt", "lamp"], "no such folder"),
        (["{notes}", "lamp", "--limit", "0"], "--limit 0"),
        (["{notes}", "lamp", "--limt", "3"], "unrecognized arguments: --limt"),
        (["{notes}"], "required: QUERY"),
        (
            ["{notes}", "lamp", "--text-column", "a", "--text_column", "b"],
            "--text_column is given 2 times",
        ),
        (["{notes}", "lamp", "--encoder", "{notes}/none"], "name another with --encoder"),
        (["{notes}", "lamp", "--encoder", "{notes}"], "no model can be read there"),
        (["{notes}", "l\udcffmp", "--encoder", "{static}"], "'l\\udcffmp': not valid UTF-8"),
        (["{notes}/empty", "lamp", "--encoder", "{static}"], "holds no texts"),
        (["{notes}/blank", "lamp", "--encoder", "{static}"], "no text in its 1 files"),
        (["{notes}", "lamp", "--encoder", "{static}", "--index", "{notes}/one.txt"], "not the index of a search"),
        (["{notes}", "lamp", "--encoder", "{static}", "--index", "{notes}/empty", "--rebuild"], "(Is a directory)"),
    ],
)
def test_a_mistake_is_one_line(call, static, notes, arguments, message):
    (notes / "empty").mkdir()
    (notes / "blank").mkdir()
    (notes / "blank" / "blank.txt").write_text("\n\n")
    before = (notes / "one.txt").read_text()
    with pytest.raises(UsageError, match=re.escape(message)):
        call(*(argument.format(notes=notes, static=static) for argument in arguments))
    assert (notes / "one.txt").read_text() == before


@pytest.mark.parametrize("flags", [[], ["--rebuild"]])
def test_an_encoder_that_cannot_be_opened_leaves_the_index_as_it_was(call, static, notes, tmp_path, flags):
    first = call(notes, "lamp", "--encoder", static)
    with pytest.raises(UsageError):
        call(notes, "lamp", "--encoder", tmp_path / "none", *flags)
    again = call(notes, "lamp")
    assert (again.out, again.err) == (first.out, "")


def test_a_text_in_utf_16_is_named_and_not_indexed(call, static, notes):
    (notes / "wide.txt").write_bytes("A lamp, a lamp, a lamp!".encode("utf-16-le"))
    found = call(notes, "lamp", "--encoder", static, "--json")
    assert "1 of 3 files were skipped, for example " in found.err
    assert "wide.txt, line 1: a null character" in found.err
    assert "\\u0000" not in found.out


def test_files_are_those_that_training_reads(notes, tmp_path, texts):
    names = [".hidden.txt", "#n.txt#", "~$n.txt", "n.txt~", "__MACOSX/n.txt", "one.txt.gz", "runs/a/README.md"]
    names += ["runs/a/arguments.yaml", "runs/a/changed.yaml", "runs/a/checkpoint-1/README.md"]
    for path in (notes / name for name in names):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(texts[0])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "three.txt").write_text(texts[1])
    (notes / "linked").symlink_to(tmp_path / "elsewhere")
    (notes / "loop").symlink_to(notes)
    (notes / "same.txt").symlink_to(notes / "one.txt")
    found = find_texts(notes)
    assert list(found) == ["deep/two.md", "linked/three.txt", "one.txt"]
    trained = find_files([str(notes)], "train_file", mixed=True)
    assert trained == [str(notes / name) for name in found]


def test_a_file_that_cannot_be_read_is_named_beside_the_results(call, static, notes):
    (notes / "bad.txt").write_bytes(b"\xff\xfe\xfd")
    found = call(notes, "lamp", "--encoder", static)
    assert re.search(r"^1 of 3 files were skipped, for example .*bad.txt, line 1: not UTF-8", found.err, re.MULTILINE)
    assert "one.txt" in found.out
    assert "were skipped" in call(notes, "lamp").err


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE vectors SET content = 3",
        "UPDATE vectors SET content = substr(content, 1, length(content) / 2)",
        "UPDATE files SET path = x'ff' WHERE path = 'one.txt'",
        "UPDATE passages SET text = x'ff'",
        "UPDATE passages SET line = 'first'",
        "UPDATE settings SET value = 'nothing' WHERE name = 'tokenizer'",
        "UPDATE settings SET value = '3' WHERE name = 'text_column'",
        "UPDATE settings SET value = x'ff' WHERE name = 'prompt'",
        "UPDATE settings SET name = NULL",
        "DELETE FROM settings WHERE name = 'encoder'",
        "DELETE FROM settings WHERE name = 'encoder_state'",
        "DELETE FROM settings WHERE name = 'query_prompt'",
        "DELETE FROM tokens",
        "UPDATE tokens SET vector = x'00'",
    ],
)
def test_an_index_with_foreign_values_is_one_line_and_can_be_made_anew(call, static, notes, damage):
    first = call(notes, "lamp", "--encoder", static).out
    database = sqlite3.connect(notes / ".text-jepa" / "search.sqlite")
    database.execute(damage)
    database.commit()
    database.close()
    with pytest.raises(UsageError, match=r"the index is damaged .*--rebuild"):
        call(notes, "lamp")
    assert call(notes, "lamp", "--encoder", static, "--rebuild").out == first


@pytest.mark.parametrize("start", [100, 4096])
def test_an_index_with_foreign_bytes_can_be_made_anew(call, static, notes, start):
    first = call(notes, "lamp", "--encoder", static).out
    with (notes / search.INDEX).open("r+b") as file:
        file.seek(start)
        file.write(b"\xff" * 60_000)
    assert call(notes, "lamp", "--encoder", static, "--rebuild").out == first
    assert call(notes, "lamp").out == first


def test_a_file_whose_name_is_not_utf_8_is_left_out_aloud(call, static, notes, caplog):
    first = call(notes, "lamp", "--encoder", static).out
    try:
        (notes / "\udcff.txt").write_text("A lamp, a lamp, a lamp!")
    except OSError:
        pytest.skip("this disk takes no such names")
    assert call(notes, "lamp").out == first
    assert "udcff.txt', whose name is not UTF-8" in caplog.text
