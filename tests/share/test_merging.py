"""Tests new word weights and interpolation of encoders, as functions and through the command line.

Run: python -m pytest -q tests/share/test_merging.py
"""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModel, BertConfig, BertModel

from text_jepa.cli import UsageError
from text_jepa.commands.main import main as text_jepa_command
from text_jepa.data.tokenization import train_tokenizer
from text_jepa.data.word_weights import count_words, load_word_weights, save_word_weights, word_weights
from text_jepa.encoders.embeddings import embed_texts, open_encoder
from text_jepa.probe.documents import score_on_documents
from text_jepa.share import merging
from text_jepa.share.merging import choose_share, interpolate, recount_word_weights


SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}

NEW_TEXTS = ["beans and beans", "a bridge, a boat", "beans in the summer"]


# A card with a result in its metadata and one in its text.
CARD = """---
license: mit
model-index:
- name: words
  results:
  - task: {type: feature-extraction}
    dataset: {type: text, name: texts}
    metrics:
    - {type: eval_loss, value: 0.25}
---

# words

An encoder, with a loss of 0.25.
"""


def assert_told(folder, note):
    """Checks the note below the title, and that the metadata has no results."""
    card = (folder / "README.md").read_text()
    whose = "The rest of this card, including its figures, describes the encoder before that change."
    assert f"# words\n\n{note} {whose}\n\nAn encoder, with a loss of 0.25." in card
    assert "license: mit" in card
    assert "model-index" not in card


def left_out(source, folder):
    """The message about ONNX files, which contain the old weights."""
    what = f"The ONNX files of {source} contain the old weights and were not copied"
    return f"{what}; run `text-jepa export onnx {folder}` to create them again\n"


def write_encoder(folder, tokenizer, seed=0, pooler=True, **shape):
    torch.manual_seed(seed)
    config = BertConfig(vocab_size=len(tokenizer), initializer_range=0.5, **SHAPE | shape)
    BertModel(config, add_pooling_layer=pooler).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tokenizer, texts, tmp_path_factory):
    """Two plain encoders of equal shape, `start` with a pooler, `end` without; `words` is `end` with word weights."""
    root = tmp_path_factory.mktemp("merging")
    write_encoder(root / "start", tokenizer, seed=1)
    write_encoder(root / "end", tokenizer, seed=2, pooler=False)
    recount_word_weights(open_encoder(str(root / "end")), root / "words", texts)
    rows = [json.dumps({"body": text}) for text in NEW_TEXTS]
    (root / "new.jsonl").write_text("\n".join(rows) + '\n{"body": null}\n{"body": "  "}\n')
    return root


@pytest.fixture
def refused(monkeypatch, capsys):
    """Runs `text-jepa export` with a mistake, and returns the message of one line."""

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["text-jepa", "export", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            text_jepa_command()
        assert stop.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return call


def files_of(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def state_of(folder):
    return AutoModel.from_pretrained(folder).state_dict()


# ---- weights of words -----------------------------------------------------------------------------------------------


def test_recounted_weights_are_those_of_the_texts_and_nothing_else_changes(
    folders, export_command, tokenizer, tmp_path
):
    source = shutil.copytree(folders / "words", tmp_path / "source")
    (source / "README.md").write_text(CARD)
    (source / "onnx").mkdir()
    (source / "onnx" / "model.onnx").write_bytes(b"of the old weights of words")
    (source / "checkpoint-3").mkdir()
    (source / "checkpoint-3" / "optimizer.pt").write_bytes(b"state")
    many = [f"{text} {i}" for i in range(700) for text in NEW_TEXTS]
    (tmp_path / "many.txt").write_text("\n".join(many))
    printed = export_command("weights", source, tmp_path / "out", "--texts", tmp_path / "many.txt")
    counted = f"Counted 2,100 texts. The encoder is in {tmp_path / 'out'}\n"
    assert printed == counted + left_out(source, tmp_path / "out")
    expected = word_weights(count_words(many, tokenizer), tokenizer)
    np.testing.assert_array_equal(load_word_weights(tmp_path / "out"), expected)
    before, after = files_of(source), files_of(tmp_path / "out")
    changed = {name for name in after if before.get(name) != after[name]}
    assert changed == {"1_WordWeights/config.json", "1_WordWeights/model.safetensors", "README.md"}
    note = f"> The word weights of {source.name} were counted again on 2,100 texts (many.txt)"
    assert_told(tmp_path / "out", f"{note} by `text-jepa export weights`.")
    assert set(before) - set(after) == {"checkpoint-3/optimizer.pt", "onnx/model.onnx"}


def test_few_texts_are_blended_with_the_weights_of_before(folders, export_command, tokenizer, tmp_path):
    arguments = ("--texts", folders / "new.jsonl", "--text_column", "body")
    printed = export_command("weights", folders / "words", tmp_path / "out", *arguments)
    assert printed.startswith(
        "Counted 3 texts, fewer than 2,000: the weights are the mean of the old and the new ones."
    )
    new = word_weights(count_words(NEW_TEXTS, tokenizer), tokenizer)
    blended = (load_word_weights(folders / "words") + new) / 2
    np.testing.assert_allclose(load_word_weights(tmp_path / "out"), blended, rtol=1e-6)


def test_a_plain_encoder_gets_weights_of_words_that_sentence_transformers_reads(
    folders, export_command, tokenizer, tmp_path
):
    st = pytest.importorskip("sentence_transformers")
    arguments = ("--texts", folders / "new.jsonl", "--text_column", "body")
    printed = export_command("weights", folders / "start", tmp_path / "out", *arguments)
    assert printed.startswith("Counted 3 texts. ")  # there are no old weights
    expected = word_weights(count_words(NEW_TEXTS, tokenizer), tokenizer)
    np.testing.assert_array_equal(load_word_weights(tmp_path / "out"), expected)
    plain = replace(open_encoder(str(folders / "start")), word_weights=expected)
    ours = embed_texts(plain, NEW_TEXTS)
    found = st.SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(NEW_TEXTS)
    np.testing.assert_allclose(found, ours, atol=1e-5)
    before = embed_texts(open_encoder(str(folders / "start")), NEW_TEXTS)
    assert np.abs(ours - before).max() > 1e-2


def test_modules_behind_the_pooling_stay(folders, export_command, tmp_path):
    st = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.models")
    transformer = modules.Transformer(str(folders / "start"))
    chain = [transformer, modules.Pooling(16), modules.Normalize()]
    made = st.SentenceTransformer(modules=chain, device="cpu")
    made.save_pretrained(str(tmp_path / "library"), create_model_card=False)
    arguments = ("--texts", folders / "new.jsonl", "--text_column", "body")
    export_command("weights", tmp_path / "library", tmp_path / "out", *arguments)
    found = st.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    kinds = [type(module).__name__ for module in found]
    assert kinds == ["Transformer", "WordWeights", "Pooling", "Normalize"]
    vectors = embed_texts(open_encoder(str(tmp_path / "out")), NEW_TEXTS)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(found.encode(NEW_TEXTS), vectors, atol=1e-5)


def test_weights_of_words_that_cannot_be_counted_leave_nothing_behind(folders, refused, tmp_path):
    (tmp_path / "blank.jsonl").write_text('{"text": "  "}\n{"text": null}\n{"text": ""}\n')
    out = tmp_path / "new" / "out"
    line = refused("weights", folders / "words", out, "--texts", tmp_path / "blank.jsonl")
    assert "--texts: every text is blank" in line
    line = refused("weights", folders / "words", out, "--texts", folders / "new.jsonl", "--text_column", "boddy")
    assert "did you mean 'body'?" in line
    first = shutil.copytree(folders / "words", tmp_path / "first")
    pooling = first / "2_Pooling" / "config.json"
    pooling.write_text(json.dumps({"word_embedding_dimension": 16, "pooling_mode_cls_token": True}))
    line = refused("weights", first, out, "--texts", folders / "new.jsonl", "--text_column", "body")
    assert "pools by 'cls'" in line
    pooling.write_text(json.dumps({"word_embedding_dimension": 16, "pooling_mode": "max"}))
    line = refused("weights", first, out, "--texts", folders / "new.jsonl", "--text_column", "body")
    assert "pools by 'max'" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blank.jsonl", "first"]


def test_a_copy_that_fails_half_way_is_taken_away(folders, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(merging, "save_word_weights", full)
    with pytest.raises(OSError, match="no space left"):
        recount_word_weights(open_encoder(str(folders / "words")), tmp_path / "out", NEW_TEXTS)
    assert list(tmp_path.iterdir()) == []


# ---- between two encoders -------------------------------------------------------------------------------------------


def test_interpolation_is_the_straight_line_between_start_and_end():
    start = {
        "weight": torch.tensor([0.0, 1.0]),
        "half": torch.tensor([1.0]),
        "steps": torch.tensor(3),
    }
    end = {
        "weight": torch.tensor([4.0, -1.0]),
        "half": torch.tensor([2.0]).half(),
        "steps": torch.tensor(7),
    }
    merged = interpolate(start, end, 0.25)
    assert merged["weight"].tolist() == [1.0, 0.5]
    assert merged["half"].item() == 1.25
    assert merged["half"].dtype == torch.float16
    assert merged["steps"].item() == 7
    for share, whole in ((0.0, start), (1.0, end)):
        assert torch.equal(interpolate(start, end, share)["weight"], whole["weight"])


def test_what_differs_in_names_or_shapes_is_not_interpolated():
    one = {"a": torch.zeros(2), "b": torch.zeros(2)}
    with pytest.raises(UsageError, match="only the start has b"):
        interpolate(one, {"a": torch.zeros(2)}, 0.5)
    with pytest.raises(UsageError, match="only the end has b"):
        interpolate({"a": torch.zeros(2)}, one, 0.5)
    with pytest.raises(UsageError, match=r"a is \(2,\) at the start and \(3,\) at the end"):
        interpolate({"a": torch.zeros(2)}, {"a": torch.zeros(3)}, 0.5)


@pytest.mark.parametrize(("target", "best"), [(0.0, 0.0), (0.3, 0.25), (0.5, 0.5), (2.0, 1.0)])
def test_the_share_that_scores_best_is_chosen(target, best):
    start, end = {"a": torch.zeros(1)}, {"a": torch.ones(1)}
    share, scores = choose_share(start, end, lambda weights: -abs(weights["a"].numpy() - target))
    assert share == best
    assert list(scores) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert scores[share] == max(scores.values())


def test_of_equal_shares_the_one_near_the_start_is_chosen_but_for_random_starts():
    weights = {"a": torch.zeros(1)}
    same = np.ones(9)
    assert choose_share(weights, weights, lambda _: same)[0] == 0.0
    assert choose_share(weights, weights, lambda _: same, shares=(0.75, 0.25))[0] == 0.25
    assert choose_share(weights, weights, lambda _: same, near_start=False)[0] == 1.0


@pytest.mark.parametrize(("gain", "chosen"), [(0.2, 0.5), (5.0, 1.0)])
def test_a_share_within_a_standard_error_of_the_best_is_preferred_where_it_is_nearer_the_start(gain, chosen):
    """The share 0.5 is much better than the start; 1 is better still, significantly or not."""
    start, end = {"a": torch.zeros(1)}, {"a": torch.ones(1)}
    noise = np.random.default_rng(0).normal(0, 3, 200)
    noise -= noise.mean()

    def score(weights):
        share = weights["a"].item()
        return np.full(200, 10.0 * (share > 0)) + (share == 1) * (gain + noise)

    share, means = choose_share(start, end, score, shares=(0.0, 0.5, 1.0))
    assert share == chosen
    assert means[1.0] > means[0.5] > means[0.0]


SUBJECTS = [f"{first}{second}" for first in "bdfklmnprst" for second in ("onar", "ital", "urem")]


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    """Documents with different words, and two bags of words: `good` distinguishes these words, `bad` does not."""
    folder = tmp_path_factory.mktemp("subjects")
    documents = [" ".join([subject, "is", "the", "name", "of"] * 8) for subject in SUBJECTS]
    (folder / "texts.txt").write_text("\n".join(documents))
    tokenizer = train_tokenizer(documents, vocab_size=400, max_length=64)
    for name, seed in (("good", 1), ("bad", 2)):
        write_encoder(folder / name, tokenizer, seed=seed, num_hidden_layers=0, hidden_size=64)
    bad = AutoModel.from_pretrained(folder / "bad")
    bad.embeddings.word_embeddings.weight.data[:] = 1.0
    bad.save_pretrained(folder / "bad")
    return folder


def test_passages_of_documents_choose_the_encoder_that_finds_the_rest(subjects, export_command, tmp_path):
    for start, end, kept in (("bad", "good", "1"), ("good", "bad", "0")):
        out = tmp_path / end
        printed = export_command(
            "merge", subjects / start, subjects / end, out, "--texts", subjects / "texts.txt"
        ).splitlines()
        rows = [line.split() for line in printed[1:6]]
        assert [row[0] for row in rows] == ["0", "0.25", "0.5", "0.75", "1"]
        scores = {row[0]: float(row[1]) for row in rows}
        (marked,) = [line for line in printed[1:6] if "<- kept" in line]
        share = marked.split()[0]
        assert scores[share] == max(scores.values())
        assert scores[kept] - scores["1" if kept == "0" else "0"] > 20
        assert printed[6] == f"The encoder is in {out}: {share} of the way from {subjects / start} to {subjects / end}"
        merged = state_of(out)
        first = state_of(subjects / start)
        last = state_of(subjects / end)
        for name, value in interpolate(first, last, float(share)).items():
            if not name.startswith("pooler."):
                torch.testing.assert_close(merged[name], value)


def test_a_score_leaves_the_encoder_as_it_is(subjects):
    encoder = open_encoder(str(subjects / "good"))
    before = {name: value.clone() for name, value in encoder.model.state_dict().items()}
    score = score_on_documents(encoder, (subjects / "texts.txt").read_text().splitlines())
    zeros = {name: torch.zeros_like(value) for name, value in before.items()}
    assert score(zeros).mean() < 10 < score(before).mean()  # a constant encoder finds nothing
    for name, value in encoder.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_merged_folder_lies_half_way_and_keeps_the_modules_of_the_end(folders, export_command, tmp_path):
    (shutil.copytree(folders / "words", tmp_path / "end") / "README.md").write_text(CARD)
    (tmp_path / "end" / "onnx").mkdir()
    (tmp_path / "end" / "onnx" / "model.onnx").write_bytes(b"of other weights")
    printed = export_command("merge", folders / "start", tmp_path / "end", tmp_path / "out")
    way = f"0.5 of the way from {folders / 'start'} to {tmp_path / 'end'}"
    assert printed == f"The encoder is in {tmp_path / 'out'}: {way}\n{left_out(tmp_path / 'end', tmp_path / 'out')}"
    start, end = state_of(folders / "start"), state_of(tmp_path / "end")
    merged, report = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert {name.split(".")[0] for name in report["missing_keys"]} == {"pooler"}  # the end had none
    for name, value in merged.state_dict().items():
        if name not in report["missing_keys"]:
            torch.testing.assert_close(value, (start[name] + end[name]) / 2)
    before, after = files_of(tmp_path / "end"), files_of(tmp_path / "out")
    assert set(before) - set(after) == {"onnx/model.onnx"}
    changed = {name for name in after if before[name] != after[name]}
    assert changed <= {"model.safetensors", "config.json", "README.md"}
    # Published files contain no local paths.
    way = "0.5 of the way from start to end"
    assert_told(tmp_path / "out", f"> The weights are {way}, by `text-jepa export merge`.")


def test_a_pooler_of_the_end_stays(folders, export_command, tmp_path):
    export_command("merge", folders / "end", folders / "start", tmp_path / "out", "--share", 0)
    merged, end = (AutoModel.from_pretrained(folder) for folder in (tmp_path / "out", folders / "start"))
    assert torch.equal(merged.pooler.dense.weight, end.pooler.dense.weight)
    start = AutoModel.from_pretrained(folders / "end")
    weight = "encoder.layer.0.output.dense.weight"
    assert torch.equal(merged.state_dict()[weight], start.state_dict()[weight])


@pytest.mark.parametrize("difference", ["width", "depth", "architecture", "vocabulary", "few texts", "one text"])
def test_encoders_that_cannot_be_merged_leave_nothing_behind(difference, folders, tokenizer, texts, refused, tmp_path):
    other = tmp_path / "other"
    arguments = []
    if difference == "width":
        write_encoder(other, tokenizer, hidden_size=24)
    elif difference == "depth":
        write_encoder(other, tokenizer, num_hidden_layers=0)
    elif difference == "architecture":
        shutil.copytree(folders / "start", other)
        config = json.loads((other / "config.json").read_text())
        (other / "config.json").write_text(json.dumps(config | {"model_type": "electra", "embedding_size": 16}))
    elif difference == "vocabulary":
        write_encoder(other, train_tokenizer(texts[:3] * 2, vocab_size=150, max_length=64))
    elif difference == "one text":
        write_encoder(other, tokenizer)
        row = {"text": " ".join(f"word{number}" for number in range(128 * 20))}
        (other / "one.jsonl").write_text(json.dumps(row) + "\n")
        arguments = ["--texts", other / "one.jsonl"]
    else:
        write_encoder(other, tokenizer)
        arguments = ["--texts", folders / "new.jsonl", "--text_column", "body"]
    line = refused("merge", other, folders / "end", tmp_path / "new" / "out", *arguments)
    expected = {
        "width": "(113, 24) at the start and (113, 16) at the end",
        "depth": "only the end has encoder.layer.0.",
        "architecture": "have two architectures, electra and bert",
        "vocabulary": "have two vocabularies",
        "few texts": "3 documents give 0 pairs of passages",
        "one text": "a passage has only 0 passages of other documents to be ranked against",
    }
    assert expected[difference] in line
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_weights_of_words_are_those_of_the_end(folders, export_command, tokenizer, tmp_path):
    start = shutil.copytree(folders / "words", tmp_path / "start")
    save_word_weights(start, np.ones(len(tokenizer), np.float32), tokenizer)
    export_command("merge", start, folders / "words", tmp_path / "out")
    np.testing.assert_array_equal(load_word_weights(tmp_path / "out"), load_word_weights(folders / "words"))
