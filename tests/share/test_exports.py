"""Tests exports through the command line: plain encoder, sentence-transformers, ONNX and int8.

Run: python -m pytest -q tests/share/test_exports.py
"""

import errno
import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, PhobertTokenizer

import run_pretraining
from modeling_text_jepa import mean_pool
from text_jepa import TextJepaForPreTraining
from text_jepa.cli import UsageError
from text_jepa.commands import export as export_command_line
from text_jepa.commands.main import main as text_jepa_command
from text_jepa.data.word_weights import load_word_weights
from text_jepa.encoders.embeddings import Encoder, embed_texts, open_encoder
from text_jepa.share import onnx
from text_jepa.share.export import copy_encoder_files, export_encoder, export_sentence_transformer, staged
from text_jepa.share.hub import files_to_publish
from text_jepa.share.onnx import ONNX_TOLERANCE, OnnxEncoder, batches_of, export_onnx, run_onnx


SENTENCES = [
    "The lighthouse keeper lit the lamp.",
    "Bread needs flour, water, salt and time, and more time than that.",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Output folder of a run of three steps, with checkpoints at 2 and 3 and two different encoders."""
    folder = tmp_path_factory.mktemp("exports")
    lines = [f"The keeper of lighthouse number {i} climbed down to the harbour.\n" for i in range(60)]
    (folder / "train.txt").write_text("".join(lines))
    shape = '{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}'
    usual = "--objective jepa --merge false --preset tiny --vocab_size 200 --max_length 16 --max_steps 3"
    usual += " --logging_steps 1 --save_steps 2 --use_cpu"
    usual += " --ema_decay_start 0.5 --ema_decay_end 0.9 --learning_rate 1e-2 --warmup_steps 0 --max_eval_samples 8"
    usual += f" --per_device_train_batch_size 4 --train_file {folder}/train.txt --output_dir {folder}/run"
    return run_pretraining.main([*usual.split(), "--text_config", shape])


def states_of(encoder, tokenizer):
    batch = tokenizer(SENTENCES, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        states = encoder(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    return states, batch["attention_mask"]


# ---- plain encoders -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["pretraining", "checkpoint-2", "checkpoint-3"])
@pytest.mark.parametrize("which", ["target", "context"])
def test_each_encoder_of_each_folder_is_exported_bit_by_bit(run, export_command, tmp_path, source, which):
    export_command("encoder", run / source, tmp_path / "out", "--which", which)
    complete = TextJepaForPreTraining.from_pretrained(run / source)
    expected = complete.target_encoder if which == "target" else complete.model.encoder
    exported = AutoModel.from_pretrained(tmp_path / "out")
    assert set(exported.state_dict()) == set(expected.state_dict())
    for name, value in expected.state_dict().items():
        assert torch.equal(exported.state_dict()[name], value), name
    assert AutoTokenizer.from_pretrained(tmp_path / "out").model_max_length == 16
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"Exported: the {which} encoder" in card
    steps = 2 if source == "checkpoint-2" else 3
    assert f"- {steps} steps of 4 texts" in card
    assert (tmp_path / "out" / "curves.png").exists()


def test_the_export_of_the_complete_model_is_what_the_run_has_left(run, export_command, tmp_path):
    export_command("encoder", run / "pretraining", tmp_path / "out")
    for path in (tmp_path / "out").rglob("*"):
        own = run / path.relative_to(tmp_path / "out")
        if path.name == "tokenizer_config.json":  # also records whether the tokenizer was loaded from files
            expected = json.loads(path.read_text()) | {"is_local": True}
            assert json.loads(own.read_text()).items() <= expected.items()
        elif path.is_file() and path.name not in ("README.md", "curves.png"):
            assert path.read_bytes() == own.read_bytes(), path.name
    own, exported = (folder / "README.md" for folder in (run, tmp_path / "out"))
    renamed = own.read_text().replace(f'"{run}"', f'"{tmp_path / "out"}"')
    renamed = renamed.replace("name: run\n", "name: out\n").replace("\n# run\n", "\n# out\n")
    # Only the run has a verdict, because the weights of the complete model are not merged.
    renamed = re.sub(r"## Is it better on these texts\?.*?(?=## What this run measured)", "", renamed, flags=re.DOTALL)
    assert "## What this run measured" in renamed
    assert exported.read_text() == renamed


def test_a_checkpoint_tells_of_itself_and_not_of_what_came_after(run, export_command, tmp_path):
    export_command("encoder", run / "checkpoint-2", tmp_path / "out")
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert max(record["step"] for record in records) == 2
    whole = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert records == [record for record in whole if record["step"] <= 2][: len(records)]


def test_the_longest_text_can_be_chosen_within_what_the_encoder_has_positions_for(run, export_command, tmp_path):
    export_command("encoder", run / "pretraining", tmp_path / "out", "--max_length", 32)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").model_max_length == 32
    assert "Texts are cut at 32 tokens" in (tmp_path / "out" / "README.md").read_text()
    for form, source in (("encoder", run / "pretraining"), ("sentence-transformers", run)):
        with pytest.raises(UsageError, match=r"--max_length 1000: .* has positions for at most 512 tokens"):
            export_command(form, source, tmp_path / "other", "--max_length", 1000)
        with pytest.raises(UsageError, match="a length of 2 tokens leaves no room for text"):
            export_command(form, source, tmp_path / "other", "--max_length", 2)
    assert not (tmp_path / "other").exists()


def test_nothing_is_written_over(run, export_command, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for form in ("encoder", "sentence-transformers", "onnx"):
        with pytest.raises(UsageError, match="exists; name a new folder"):
            export_command(form, run / "pretraining", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


FORMS = {
    "encoder": ["encoder", "{run}/pretraining", "{out}"],
    "sentence-transformers": ["sentence-transformers", "{run}", "{out}"],
    "weights": ["weights", "{run}", "{out}", "--texts", "{run}/../train.txt"],
    "merge": ["merge", "{run}", "{run}", "{out}"],
}
FULL = {
    "the system": OSError(errno.ENOSPC, "No space left on device", "the source"),
    "weights": SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
}


@pytest.mark.parametrize("error", FULL.values(), ids=[name.replace(" ", "-") for name in FULL])
@pytest.mark.parametrize("arguments", FORMS.values(), ids=FORMS)
def test_a_full_disk_is_one_line_and_nothing_is_half_written(run, tmp_path, monkeypatch, capsys, arguments, error):
    """Each form makes its files readable by older versions after all else is written."""

    def fail(folder):
        raise error

    out = tmp_path / "new" / "out"
    monkeypatch.setattr("text_jepa.share.export.make_readable_in_4", fail)
    monkeypatch.setattr("sys.argv", ["text-jepa", "export", *(word.format(run=run, out=out) for word in arguments)])
    with pytest.raises(SystemExit) as stop:
        text_jepa_command()
    assert stop.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: {out}: cannot be written (")
    assert "No space left on device" in line
    assert line.endswith("; free some disk space, or use another folder")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_filled_meanwhile_is_left_alone(tmp_path):
    out = tmp_path / "out"
    out.mkdir()

    def write():
        with staged(out) as staging:
            (staging / "notes.txt").write_text("new")
            (out / "notes.txt").write_text("old")

    with pytest.raises(UsageError, match="exists and is not empty"):
        write()
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [("notes.txt", "old")]


def test_an_error_of_an_export_is_shown_whatever_lies_beside_it(tmp_path):

    def write():
        with staged(tmp_path / "new" / "out"):
            (tmp_path / "new" / "other").mkdir()
            raise RuntimeError("the error")

    with pytest.raises(RuntimeError, match="the error"):
        write()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["other"]


def test_weights_of_all_formats_are_left_out_of_a_copy_and_code_is_kept(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    weights = ["model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    weights += ["pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "rust_model.ot"]
    others = ["config.json", "modeling_own.py", "tokenizer.json", "sentencepiece.bpe.model"]
    for name in (*weights, *others):
        (source / name).write_text("old")
    copy_encoder_files(source, tmp_path / "copy", with_model=False)
    assert {path.name for path in (tmp_path / "copy").iterdir()} == set(others)
    copy_encoder_files(source, tmp_path / "whole")
    assert {path.name for path in (tmp_path / "whole").iterdir()} == {*weights, *others}


def test_an_empty_folder_is_written_to_and_stays_the_same_one(run, export_command, tmp_path):
    """It may be a disk of its own, in the place of which no folder can be moved."""
    out = tmp_path / "out"
    out.mkdir()
    before = out.stat().st_ino
    export_command("encoder", run / "pretraining", out)
    assert out.stat().st_ino == before
    assert (out / "model.safetensors").is_file()
    assert not list(out.glob("_*"))


def test_the_card_of_an_export_names_the_folder_of_the_export(run, export_command, tmp_path):
    for form in ("encoder", "sentence-transformers"):
        export_command(form, run / "pretraining", tmp_path / form)
        assert f'model_id = "{tmp_path / form}"' in (tmp_path / form / "README.md").read_text()


@pytest.mark.parametrize(
    ("source", "name", "content"),
    [
        ("pretraining", "card.json", '{"steps": '),
        ("pretraining", "metrics.jsonl", None),
        ("pretraining", "metrics.jsonl", '{"step": 1, "lo'),
        ("checkpoint-2", "trainer_state.json", '{"epoch": 1.0, "lo'),
    ],
)
def test_a_complete_model_with_a_damaged_card_or_log_is_one_line(run, export_command, tmp_path, source, name, content):
    folder = shutil.copytree(run / source, tmp_path / source)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    for form in ("encoder", "sentence-transformers"):
        with pytest.raises(UsageError, match=rf"{name}.*copy it again") as refused:
            export_command(form, folder, tmp_path / "out")
        assert str(refused.value).startswith(str(folder))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["encoder", "nowhere", "{out}"], ["nowhere: no model can be read there"]),
        (["encoder", "{run}/pretraining", "{run}/metrics.jsonl/out"], ["metrics.jsonl is a file; name a new folder"]),
        (["encoder", "{run}", "{out}"], ["is a plain encoder already", "pretraining/"]),
        (["sentence-transformers", "{run}", "{out}", "--which", "context"], ["--which", "has only one encoder"]),
        (["sentence-transformers", "{run}", "{out}", "--prompts", "query"], ["--prompts query", "NAME=TEXT"]),
        (["encoder", "{run}/pretraining", "{out}", "--max_length", "0"], ["--max_length", "at least 1"]),
        (["encoder", "{run}/pretraining", "{out}", "--wich", "target"], ["--wich"]),
        (["sentence-transformers", "{run}", "{out}", "--quoting", "none"], ["--quoting goes with --center"]),
        (["sentence-transformers", "{run}", "{out}", "--center", "no.txt"], ["--center no.txt: no such file"]),
        (["onnx", "{run}", "{out}", "--text_column", "body"], ["--text_column goes with --texts"]),
        (["merge", "{run}", "{run}", "{out}", "--quoting", "none"], ["--quoting goes with --texts"]),
        (["onnx", "some/name"], ["some/name is not a folder to write onnx/ into"]),
        (["weights", "nowhere", "{out}", "--texts", "x.txt"], ["nowhere: no such folder", "hf download"]),
        (["weights", "{run}", "{out}", "--texts", "nowhere.txt"], ["--texts nowhere.txt: no such file"]),
        (["weights", "{run}", "{out}"], ["--texts"]),
        (["weights", "{run}/pretraining", "{out}", "--texts", "{run}/card.json"], ["text-jepa export encoder"]),
        (["weights", "{run}", "{run}", "--texts", "x.txt"], ["exists; name a new folder"]),
        (["merge", "{run}", "{run}", "{out}", "--share", "1.5"], ["--share", "from 0 to 1"]),
        (["merge", "{run}", "{run}", "{out}", "--share", "half"], ["--share", "from 0 to 1, got half"]),
        (["merge", "{run}", "{run}", "{out}", "--share", "0", "--texts", "x"], ["--share and --texts exclude"]),
        (["merge", "{run}", "{run}/pretraining", "{out}"], ["text-jepa export encoder"]),
        (["merge", "{run}", "{run}", "{run}"], ["exists; name a new folder"]),
        (["push", "nowhere", "me/x"], ["nowhere: no such folder"]),
        (["push", "{run}"], ["name"]),
        ([], ["FORMAT"]),
    ],
)
def test_what_cannot_be_done_says_why_in_one_line(run, tmp_path, monkeypatch, capsys, arguments, fragments):
    arguments = [argument.format(run=run, out=tmp_path / "out") for argument in arguments]
    monkeypatch.setattr("sys.argv", ["text-jepa", "export", *arguments])
    with pytest.raises(SystemExit) as stop:
        text_jepa_command()
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    for fragment in fragments:
        assert fragment in line
    assert not (tmp_path / "out").exists()


ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SHOWN = [
    line.split("#")[0]
    for line in (README + export_command_line.__doc__).splitlines()
    if line.strip().startswith("text-jepa export ")
]


@pytest.mark.parametrize("line", SHOWN)
def test_every_command_that_is_shown_is_understood(line):
    assert export_command_line.make_parser().parse_args(shlex.split(line.split("text-jepa export ")[1])).function


@pytest.mark.parametrize("form", ["", "encoder", "sentence-transformers", "onnx", "weights", "merge", "push"])
def test_help_fits_a_screen(form, capsys):
    with pytest.raises(SystemExit) as stop:
        export_command_line.main([*form.split(), "--help"])
    assert stop.value.code == 0
    assert 5 < len(capsys.readouterr().out.splitlines()) <= 40


# ---- sentence-transformers ------------------------------------------------------------------------------------------


def test_the_files_written_by_hand_mean_what_the_library_writes(run, tmp_path):
    """The export by the library itself has the same modules and gives the same vectors."""
    st = pytest.importorskip("sentence_transformers")
    from sentence_transformers.models import Pooling, Transformer

    by_hand = st.SentenceTransformer(str(run), device="cpu")
    transformer = Transformer(str(run), max_seq_length=16)
    made = st.SentenceTransformer(modules=[transformer, Pooling(16, pooling_mode="mean")], device="cpu")
    made.save_pretrained(str(tmp_path / "library"), create_model_card=False)
    library = st.SentenceTransformer(str(tmp_path / "library"), device="cpu")
    assert str(by_hand) == str(library)
    assert by_hand.max_seq_length == library.max_seq_length == 16
    np.testing.assert_array_equal(by_hand.encode(SENTENCES), library.encode(SENTENCES))


@pytest.mark.parametrize("term", ["sentence_loss_weight", "document_loss_weight"])
def test_pooling_by_the_first_token_is_exported_where_it_was_trained(make_model, tokenizer, tmp_path, term):
    st = pytest.importorskip("sentence_transformers")
    trained = make_model(pooling="cls", **{term: 1.0})
    length = tokenizer.model_max_length
    export_encoder(trained, tokenizer, tmp_path / "cls", 32)
    assert tokenizer.model_max_length == length  # the tokenizer of the caller is unchanged
    states, _ = states_of(AutoModel.from_pretrained(tmp_path / "cls"), tokenizer)
    found = st.SentenceTransformer(str(tmp_path / "cls"), device="cpu").encode(SENTENCES)
    np.testing.assert_allclose(found, states[:, 0].numpy(), atol=1e-5)


@pytest.fixture(scope="module")
def weighted(make_model, tokenizer, tmp_path_factory):
    """An exported encoder with word weights, and with more embeddings than tokens."""
    shape = {
        "model_type": "distilbert",
        "dim": 32,
        "n_heads": 2,
        "n_layers": 0,
        "pad_token_id": 0,
    }
    shape |= {"vocab_size": len(tokenizer) + 7, "dropout": 0.0}
    model = make_model(shape, pooling="idf", sentence_loss_weight=1.0, latent_loss_weight=0.0)
    weights = torch.rand(len(tokenizer) + 7) * 5
    weights[:6] = 0  # special tokens and the comma
    model.set_word_weights(weights)
    folder = tmp_path_factory.mktemp("weighted") / "notes"
    export_encoder(model, tokenizer, folder, 64)
    np.testing.assert_allclose(load_word_weights(folder), weights[: len(tokenizer)], rtol=1e-6)
    return folder


@pytest.mark.parametrize("objective", ["mlm", "jepa"])
def test_weights_of_words_are_counted_kept_and_exported_whatever_the_objective(run, tmp_path, objective):
    """Also if no term of the loss pools, as in masked language modelling."""
    shape = '{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}'
    usual = (
        f"--objective {objective} --pooling idf --sentence_loss_weight 0 --preset tiny --max_length 16 --max_steps 1"
    )
    usual += f" --tokenizer_name {run} --use_cpu --train_file {run.parent}/train.txt --output_dir {tmp_path / 'words'}"
    folder = run_pretraining.main([*usual.split(), "--text_config", shape])
    weights = load_word_weights(folder)
    assert len(np.unique(weights)) > 3
    complete = TextJepaForPreTraining.from_pretrained(folder / "pretraining")
    np.testing.assert_allclose(complete.word_weights, weights, rtol=1e-5)
    np.testing.assert_allclose(open_encoder(str(folder)).word_weights, weights)
    assert '"pooling": "idf"' in (folder / "pretraining" / "config.json").read_text()


WEIGHTED = [*SENTENCES, "harbour", ", ,"]  # the tokens of the last text have no weight


def test_words_weigh_in_sentence_transformers_as_in_our_own_pooling(weighted):
    st = pytest.importorskip("sentence_transformers")
    ours = embed_texts(open_encoder(str(weighted)), WEIGHTED)
    found = st.SentenceTransformer(str(weighted), device="cpu").encode(WEIGHTED)
    np.testing.assert_allclose(found, ours, atol=1e-5)
    assert not ours[-1].any()
    plain = embed_texts(replace(open_encoder(str(weighted)), word_weights=None), WEIGHTED)
    assert np.abs(plain - ours)[:2].max() > 1e-2


def test_the_pooling_that_the_documentation_shows_is_that_of_the_folder(weighted, monkeypatch):
    page = (ROOT / "docs" / "exports.md").read_text()
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "1_WordWeights" in block]
    (weighted.parent / "runs").mkdir(exist_ok=True)
    shutil.copytree(weighted, weighted.parent / "runs" / "notes", dirs_exist_ok=True)
    monkeypatch.chdir(weighted.parent)
    names = {"texts": WEIGHTED}
    exec(re.sub(r"^texts = .*", "", block, flags=re.MULTILINE), names)
    expected = embed_texts(open_encoder(str(weighted)), WEIGHTED)
    np.testing.assert_allclose(names["vectors"], expected, atol=1e-5)


def test_saving_again_by_sentence_transformers_keeps_the_weights_of_words(weighted, tmp_path):
    pytest.importorskip("sentence_transformers")
    export_sentence_transformer(weighted, tmp_path / "again", prompts={"query": "query: "})
    np.testing.assert_allclose(load_word_weights(tmp_path / "again"), load_word_weights(weighted), atol=1e-6)
    ours = embed_texts(open_encoder(str(weighted)), WEIGHTED)
    again = embed_texts(open_encoder(str(tmp_path / "again")), WEIGHTED)
    np.testing.assert_allclose(again, ours, atol=1e-6)


def test_everything_that_an_encoder_with_weights_of_words_needs_is_published(weighted, tmp_path):
    folder = shutil.copytree(weighted, tmp_path / "out")
    (folder / "README.md").write_text("card")
    (folder / "3_Private").mkdir()
    (folder / "3_Private" / "config.json").write_text("{}")
    (folder / "1_WordWeights" / "notes.txt").write_text("mine")
    published = files_to_publish(folder)
    modules = {name for name in published if "/" in name}
    assert modules == {"1_WordWeights/config.json", "1_WordWeights/model.safetensors", "2_Pooling/config.json"}
    for name in published:
        (tmp_path / "hub" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / name, tmp_path / "hub" / name)
    found = embed_texts(open_encoder(str(tmp_path / "hub")), WEIGHTED)
    np.testing.assert_array_equal(found, embed_texts(open_encoder(str(weighted)), WEIGHTED))


def test_prompts_are_put_before_the_texts(run, export_command, tmp_path):
    st = pytest.importorskip("sentence_transformers")
    export_command(
        "sentence-transformers", run / "pretraining", tmp_path / "out", "--prompts", "query=keeper: ", "plain=the "
    )
    exported = st.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    plain = st.SentenceTransformer(str(run), device="cpu")
    assert exported.prompts["query"] == "keeper: "
    assert exported.max_seq_length == 16
    expected = plain.encode([f"keeper: {text}" for text in SENTENCES])
    np.testing.assert_allclose(exported.encode(SENTENCES, prompt_name="query"), expected, atol=1e-6)
    assert np.abs(exported.encode(SENTENCES) - expected).max() > 1e-3
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Exported: the target encoder" in card
    assert (tmp_path / "out" / "curves.png").exists()


def test_a_copy_that_gives_other_vectors_says_so_on_its_card(run, export_command, tmp_path):
    pytest.importorskip("sentence_transformers")
    flags = ("--center", run.parent / "train.txt", "--normalize", "--prompts", "query=keeper: ", "--max_length", 12)
    changes = "the mean vector of texts (train.txt) is subtracted; vectors have length 1; there are prompts (query)"
    for source, more in ((run, "; texts are cut at 12 tokens"), (run / "pretraining", "")):
        out = tmp_path / source.name
        export_command("sentence-transformers", source, out, *flags)
        card = (out / "README.md").read_text()
        note = f"> Changed by `text-jepa export sentence-transformers`: {changes}{more}. The rest of this card"
        assert f"\n# {out.name}\n\n{note}" in card
        assert card.count(f'model_id = "{out}"') == 3
        assert str(run) not in card


def test_a_copy_without_a_change_has_the_card_of_its_source_under_its_own_name(run, export_command, tmp_path):
    pytest.importorskip("sentence_transformers")
    export_command("sentence-transformers", run, tmp_path / "out")
    renamed = (run / "README.md").read_text().replace(f'"{run}"', f'"{tmp_path / "out"}"')
    renamed = renamed.replace("name: run\n", "name: out\n").replace("\n# run\n", "\n# out\n")
    assert (tmp_path / "out" / "README.md").read_text() == renamed


def test_a_card_of_others_is_copied_as_it_is_and_a_damaged_one_is_one_line(weighted, export_command, tmp_path):
    pytest.importorskip("sentence_transformers")
    folder = shutil.copytree(weighted, tmp_path / "notes")
    (folder / "README.md").write_text("# A card\n\nof others\n")
    export_command("sentence-transformers", folder, tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_text() == "# A card\n\nof others\n"
    (folder / "README.md").write_text('---\nlicense: [\n---\n# A card\n\nmodel_id = "notes"\n')
    with pytest.raises(UsageError, match=r"README.md: no card can be read there .*; mend its metadata"):
        export_command("sentence-transformers", folder, tmp_path / "other")


def test_any_encoder_gets_a_folder_of_sentence_transformers(tokenizer, export_command, tmp_path):
    st = pytest.importorskip("sentence_transformers")
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    encoder = BertModel(BertConfig(vocab_size=len(tokenizer), **shape)).eval()
    encoder.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    export_command("sentence-transformers", tmp_path / "bert", tmp_path / "out", "--max_length", 24)
    model = st.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert model.max_seq_length == 24
    states, mask = states_of(encoder, AutoTokenizer.from_pretrained(tmp_path / "out"))
    expected = mean_pool(states, mask).numpy()
    np.testing.assert_allclose(model.encode(SENTENCES), expected, atol=1e-5)


def test_an_encoder_of_sentence_transformers_without_a_config_is_exported(tokenizer, tmp_path):
    st = pytest.importorskip("sentence_transformers")
    table = st.sentence_transformer.modules.StaticEmbedding(tokenizer.backend_tokenizer, embedding_dim=8)
    st.SentenceTransformer(modules=[table], device="cpu").save_pretrained(str(tmp_path / "table"))
    export_sentence_transformer(tmp_path / "table", tmp_path / "out", normalize=True)
    vectors = st.SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(SENTENCES)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_a_missing_extra_is_named(run, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'text-jepa\[st\]'"):
        export_sentence_transformer(run, tmp_path / "out")
    with pytest.raises(UsageError, match=r"pip install 'text-jepa\[onnx\]'"):
        export_onnx(AutoModel.from_pretrained(run), tmp_path / "model.onnx")


# ---- ONNX -----------------------------------------------------------------------------------------------------------

BERT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 200,
}


@pytest.fixture
def onnxruntime():
    pytest.importorskip("onnxscript")
    return pytest.importorskip("onnxruntime")


@pytest.fixture
def untraced(monkeypatch):
    """The encoders that `text-jepa export onnx` would trace and compare."""
    encoders = []

    def write(encoder, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a graph")
        encoders.append(encoder)
        return 0.0

    monkeypatch.setattr(onnx, "export_onnx", write)
    monkeypatch.setattr(export_command_line, "print_losses", lambda *_: None)
    return encoders


def test_texts_are_cut_in_onnx_where_the_folder_says_however_long_that_is(
    tokenizer, untraced, export_command, tmp_path
):
    """Not at the length of the windows that are read in other commands."""
    config = BertConfig(**BERT | {"vocab_size": len(tokenizer), "max_position_embeddings": 2000})
    BertModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 1500}')
    export_command("onnx", tmp_path)
    assert untraced[0].max_length == 1500
    assert open_encoder(str(tmp_path)).max_length == 512


def test_texts_are_tokenized_without_transformers_beside_every_onnx_file(
    tokenizer, untraced, export_command, tmp_path
):
    """Also if the tokenizer of the folder is only its vocabulary."""
    folder = tmp_path / "bert"
    BertModel(BertConfig(**BERT | {"vocab_size": len(tokenizer)})).save_pretrained(folder)
    vocabulary = tokenizer.get_vocab()
    (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    expected = AutoTokenizer.from_pretrained(folder)(SENTENCES)["input_ids"]
    for output in (tmp_path / "served", folder):
        export_command("onnx", folder, output)
        alone = Tokenizer.from_file(str(output / "tokenizer.json"))
        assert [encoding.ids for encoding in alone.encode_batch(SENTENCES)] == expected


def test_a_tokenizer_that_works_only_in_transformers_is_named(tmp_path, capsys):
    (tmp_path / "vocab.txt").write_text("a 1\nb 1\nab 1\n")
    (tmp_path / "bpe.codes").write_text("a b 1\n")
    tokenizer = PhobertTokenizer(str(tmp_path / "vocab.txt"), str(tmp_path / "bpe.codes"))
    export_command_line.write_tokenizer(tokenizer, tmp_path)
    assert "no tokenizer.json: PhobertTokenizer works only in transformers" in capsys.readouterr().err
    assert not (tmp_path / "tokenizer.json").exists()


@pytest.mark.slow
def test_weights_that_are_too_large_for_a_file_lie_beside_it_in_every_precision(
    weighted, onnxruntime, export_command, tmp_path, monkeypatch
):
    monkeypatch.setattr(onnx, "_LARGEST_FILE", 0)
    export_command("onnx", weighted, tmp_path / "served", "--fp16", "--int8")
    folder = tmp_path / "served" / "onnx"
    names = ("model.onnx", "model_fp16.onnx", "model_int8.onnx")
    assert {file.name for file in folder.iterdir()} == {name + end for name in names for end in ("", ".data")}
    encoder = open_encoder(str(weighted))
    expected = embed_texts(encoder, SENTENCES)
    for name, tolerance in zip(names, (1e-5, 1e-2, 0.2), strict=True):
        np.testing.assert_allclose(
            run_onnx(folder / name, batches_of(encoder, SENTENCES)), expected, atol=tolerance, err_msg=name
        )


@pytest.mark.slow
@pytest.mark.parametrize("text_config", [None, {"model_type": "bert", "pad_token_id": 0, **BERT}])
def test_onnx_equals_pytorch_at_every_shape(make_model, onnxruntime, tmp_path, text_config):
    """Also for one text and one token, which the check of the export does not cover."""
    encoder = make_model(text_config).encoder_of_targets
    assert export_onnx(encoder, tmp_path / "model.onnx") <= ONNX_TOLERANCE
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    assert {i.name: i.shape for i in session.get_inputs()} == {
        name: ["batch", "length"] for name in ("input_ids", "attention_mask")
    }
    for texts, tokens in ((1, 1), (1, 9), (4, 30), (7, 2)):
        ids = torch.randint(5, 200, (texts, tokens))
        mask = torch.ones_like(ids)
        mask[0, tokens // 2 + 1 :] = 0
        with torch.no_grad():
            expected = encoder(ids, attention_mask=mask).last_hidden_state[mask.bool()].numpy()
        inputs = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
        (found,) = session.run(None, inputs)
        np.testing.assert_allclose(found[mask.bool().numpy()], expected, atol=1e-4)


@pytest.mark.slow
def test_an_encoder_without_a_layer_is_exported_to_onnx(onnxruntime, tmp_path):
    """An encoder of another architecture without a layer is exported in the next test."""
    encoder = BertModel(BertConfig(**BERT | {"num_hidden_layers": 0}), add_pooling_layer=False)
    assert export_onnx(encoder, tmp_path / "model.onnx") <= ONNX_TOLERANCE


@pytest.mark.slow
def test_an_onnx_file_pools_by_the_weights_of_words(weighted, onnxruntime, tmp_path):
    encoder = open_encoder(str(weighted))
    path = tmp_path / "model.onnx"
    assert export_onnx(encoder, path) <= ONNX_TOLERANCE
    expected = embed_texts(encoder, WEIGHTED)
    np.testing.assert_allclose(run_onnx(path, batches_of(encoder, WEIGHTED)), expected, atol=1e-5)
    by_states = embed_texts(replace(encoder, model=OnnxEncoder(path)), WEIGHTED)
    np.testing.assert_allclose(by_states, expected, atol=1e-5)


@pytest.mark.slow
def test_centring_and_unit_length_are_stock_modules_and_the_same_in_onnx(
    weighted, onnxruntime, export_command, tmp_path
):
    st = pytest.importorskip("sentence_transformers")
    (tmp_path / "texts.txt").write_text("\n".join(SENTENCES))
    center = ("--center", tmp_path / "texts.txt", "--normalize")
    export_command("sentence-transformers", weighted, tmp_path / "out", *center)
    raw = embed_texts(open_encoder(str(weighted)), SENTENCES)
    expected = raw - raw.mean(axis=0)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    model = st.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    np.testing.assert_allclose(model.encode(SENTENCES), expected, atol=1e-5)
    kinds = [type(module).__name__ for module in model]
    assert kinds == ["Transformer", "WordWeights", "Pooling", "Dense", "Normalize"]
    encoder = open_encoder(str(tmp_path / "out"))
    np.testing.assert_allclose(embed_texts(encoder, SENTENCES), expected, atol=1e-5)

    printed = export_command("onnx", tmp_path / "out", tmp_path / "served", "--fp16")
    path = tmp_path / "served" / "onnx" / "model.onnx"
    np.testing.assert_allclose(run_onnx(path, batches_of(encoder, SENTENCES)), expected, atol=1e-5)
    halved = run_onnx(path.with_name("model_fp16.onnx"), batches_of(encoder, SENTENCES))
    assert halved.dtype == np.float32
    np.testing.assert_allclose(halved, expected, atol=1e-2)
    settings = onnxruntime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map
    assert settings == {"max_length": "64", "prompt": ""}
    assert re.search(r"model_fp16.onnx: .* MB, cosine similarity .* mean (0.99|1.00)\d\d, .* random tokens", printed)
    assert {"tokenizer.json", "config.json", "modules.json"} <= {file.name for file in (tmp_path / "served").iterdir()}
    assert not (tmp_path / "served" / "model.safetensors").exists()


def test_vectors_of_unit_length_are_not_normalized_again(weighted, export_command, tmp_path):
    st = pytest.importorskip("sentence_transformers")
    for source, output in ((weighted, "once"), (tmp_path / "once", "twice")):
        export_command("sentence-transformers", source, tmp_path / output, "--normalize")
    kinds = [type(module).__name__ for module in st.SentenceTransformer(str(tmp_path / "twice"), device="cpu")]
    assert kinds.count("Normalize") == 1


def test_vectors_that_are_cut_at_the_end_are_centred_in_full_and_not_normalized(weighted, export_command, tmp_path):
    """Sentence-transformers cuts them after all modules."""
    st = pytest.importorskip("sentence_transformers")
    (tmp_path / "texts.txt").write_text("\n".join(SENTENCES))
    folder = shutil.copytree(weighted, tmp_path / "notes")
    (folder / "config_sentence_transformers.json").write_text('{"truncate_dim": 8}')
    export_command("sentence-transformers", folder, tmp_path / "out", "--center", tmp_path / "texts.txt")
    raw = embed_texts(open_encoder(str(weighted)), SENTENCES)
    expected = (raw - raw.mean(axis=0))[:, :8]
    model = st.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    np.testing.assert_allclose(model.encode(SENTENCES), expected, atol=1e-5)
    np.testing.assert_allclose(embed_texts(open_encoder(str(tmp_path / "out")), SENTENCES), expected, atol=1e-5)
    with pytest.raises(UsageError, match=r"--normalize: .*notes cuts vectors to 8 features .*; leave --normalize out"):
        export_command("sentence-transformers", folder, tmp_path / "other", "--normalize")
    assert not (tmp_path / "other").exists()


def test_files_beside_onnx_of_a_name_on_the_hub_state_its_length(weighted, tmp_path, monkeypatch):
    encoder = replace(open_encoder(str(weighted)), name="org/notes")
    for name in ("read_head", "settings_of_transformer"):
        read = getattr(export_command_line, name)
        monkeypatch.setattr(export_command_line, name, lambda _, read=read: read(str(weighted)))
    export_command_line.copy_files_beside(encoder, tmp_path)
    settings = json.loads((tmp_path / "sentence_bert_config.json").read_text())
    assert settings["max_seq_length"] == 64
    assert (tmp_path / "modules.json").is_file()


@pytest.mark.slow
def test_all_of_an_encoder_is_where_its_onnx_file_is_compared(weighted, onnxruntime, tmp_path):
    """Including its layers, which have another precision in this test, as they might be on another device."""
    dense = torch.nn.Linear(32, 8).half()
    encoder = replace(open_encoder(str(weighted)), layers_after=(dense,))
    assert export_onnx(encoder, tmp_path / "model.onnx") <= ONNX_TOLERANCE
    by_states = replace(encoder, model=OnnxEncoder(tmp_path / "model.onnx"))
    np.testing.assert_allclose(embed_texts(by_states, WEIGHTED), embed_texts(encoder, WEIGHTED), atol=1e-5)


def test_an_onnx_file_that_differs_is_not_kept(make_model, onnxruntime, tmp_path, monkeypatch):
    program = SimpleNamespace(save=lambda path, external_data: Path(path).write_bytes(b"not quite"))
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **kwargs: program)
    monkeypatch.setattr(onnx, "onnx_difference", lambda *_: 1e-2)
    with pytest.raises(UsageError, match=r"differs from PyTorch by 1.0e-02"):
        export_onnx(make_model().encoder_of_targets, tmp_path / "onnx" / "model.onnx")
    assert list((tmp_path / "onnx").iterdir()) == []


def test_an_architecture_that_cannot_be_exported_says_why(onnxruntime, tmp_path):
    class Stubborn(BertModel):
        def forward(self, input_ids, attention_mask):
            if input_ids.sum().item() > 3:  # depends on the data
                raise NotImplementedError
            return super().forward(input_ids, attention_mask)

    encoder = Stubborn(BertConfig(**BERT)).eval()
    with pytest.raises(UsageError, match="Stubborn cannot be exported to ONNX: PyTorch's exporter says '") as refused:
        export_onnx(encoder, tmp_path / "model.onnx")
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_int8_is_smaller_and_its_loss_is_printed(run, onnxruntime, export_command, tmp_path):
    rows = [{"sentence1": a, "sentence2": b, "label": s} for a, b, s in zip(*[iter(pairs())] * 3, strict=True)]
    (tmp_path / "sts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder, source = tmp_path / "out" / "onnx", run / "checkpoint-3"
    check = ("--int8", "--check", tmp_path / "sts.jsonl", "--texts", run.parent / "train.txt")
    printed = export_command(
        "onnx",
        source,
        tmp_path / "out",
        "--which",
        "context",
        *check,
    ).splitlines()
    assert (folder / "model_int8.onnx").stat().st_size < (folder / "model.onnx").stat().st_size
    scores = {}
    for line in printed:
        if "Spearman" in line:
            words = line.split()
            scores[words[0]] = float(words[2])
    (cosines,) = [line for line in printed if "cosine similarity" in line]
    assert re.search(r"model_int8.onnx: 0.\d MB, cosine similarity .* mean [01].\d{4}, .* \(60 texts\)", cosines)
    assert "too few for R@10" in "".join(printed)  # texts of one sentence have no rest
    assert set(scores) == {"PyTorch", "model.onnx", "model_int8.onnx"}
    assert scores["PyTorch"] == pytest.approx(scores["model.onnx"], abs=0.01)
    encoder = TextJepaForPreTraining.from_pretrained(source).eval().model.encoder
    assert onnx.onnx_difference(encoder, folder / "model.onnx") <= ONNX_TOLERANCE
    assert ONNX_TOLERANCE < onnx.onnx_difference(encoder, folder / "model_int8.onnx") < 1
    tokenizer = AutoTokenizer.from_pretrained(source)
    ours = Encoder("context", encoder, tokenizer, max_length=16)
    vectors = embed_texts(replace(ours, model=OnnxEncoder(folder / "model.onnx")), SENTENCES)
    np.testing.assert_allclose(vectors, embed_texts(ours, SENTENCES), atol=1e-4)


def test_a_full_disk_leaves_no_half_of_an_onnx_file(run, onnxruntime, export_command, tmp_path, monkeypatch):
    save = pytest.importorskip("onnx").save

    def fail_at_the_second(model, path, **options):
        if Path(path).name == "model.onnx":
            return save(model, path, **options)
        Path(path).write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("onnx.save", fail_at_the_second)
    with pytest.raises(UsageError, match=r"out: cannot be written \(No space left on device\); free some disk space"):
        export_command("onnx", run, tmp_path / "out", "--fp16")
    assert [path.name for path in (tmp_path / "out" / "onnx").iterdir()] == ["model.onnx"]


def test_an_onnx_file_that_is_there_stays(run, export_command, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoint-*", "pretraining"))
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_text("mine")
    for output_dir in ([], [folder]):
        with pytest.raises(UsageError, match=r"model.onnx exists"):
            export_command("onnx", folder, *output_dir)
    assert (folder / "onnx" / "model.onnx").read_text() == "mine"


def pairs():
    """A task of equal rows: two texts and a score."""
    words = ["harbour", "lighthouse", "keeper", "number", "climbed", "down"]
    for i in range(12):
        yield f"The {words[i % 6]} of the {words[(i + 1) % 6]}"
        yield f"The {words[i % 6]} of the {words[(2 * i + 1) % 6]}"
        yield float(i % 5)
