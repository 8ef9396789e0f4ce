"""Bad input of `run_pretraining.py`: one clear line on stderr, exit code 2, and an output folder as it was.

Run: python -m pytest -q tests/test_bad_input.py
"""

import gzip
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
from conftest import MODERNBERT
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import run_pretraining
from configuration_text_jepa import OBJECTIVES
from text_jepa.cli import UsageError, run_command
from text_jepa.commands.main import main as text_jepa_command
from text_jepa.data.batching import EndlessStream
from text_jepa.data.tokenization import train_tokenizer
from text_jepa.train.arguments import DataArguments, TextJepaTrainingArguments
from text_jepa.train.build import weigh_words
from text_jepa.train.pretraining import select_examples
from text_jepa.train.run_log import read_metrics


ROOT = Path(__file__).resolve().parent.parent
LINES = [f"The keeper of lighthouse number {i} climbed down to the harbour. He slept." for i in range(40)]


def jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


FILES = {
    "good.txt": "".join(f"{line}\n" for line in LINES),
    "good.csv": "title,body\n" + "".join(f"{i},{line}\n" for i, line in enumerate(LINES)),
    "empty.txt": "",
    "empty.jsonl": "",
    "empty.csv": "",
    "header.csv": "text,other\n",
    "blank.txt": "\n  \n\n" * 5,
    "short.txt": "one\n" * 5,
    "single.txt": "only one document here\n",
    "broken.parquet": b"PAR1 and nothing more",
    "broken.jsonl": '{"text": "a b c"}\n{"text": oops\n',
    "latin.txt": "un café noir\n".encode("latin-1") * 5,
    "latin.jsonl": '{"text": "un café noir"}\n'.encode("latin-1") * 5,
    "cut.txt.gz": b"\x1f\x8b\x08\x00 cut",
    "numbers.csv": "text\n1\n2\n",
    "numbers.jsonl": jsonl(*[{"text": i} for i in range(5)]),
    "mixed.jsonl": jsonl({"text": "some words"}, {"text": 3}),
    "lists.jsonl": jsonl({"text": [1, 2]}, {"text": [3]}),
    "missing.jsonl": jsonl({"text": None}, {"text": None}),
    "good.jsonl": jsonl(*[{"text": line} for line in LINES]),
    "late.jsonl": jsonl(*[{"text": line} for line in LINES]) + "{oops\n" + jsonl({"text": "a b c"}),
    "twice.jsonl": '{"text": "a b c", "text": "d e f"}\n' * 5,
    "numbers_only.jsonl": "3\n4\n",
    "unfinished.json": json.dumps([{"text": line} for line in LINES])[:-30],
    "wide.csv": "text,other\n" + "".join(f"{line},1\n" for line in LINES) + "a,b,c,d\n",
    "quote.csv": "text,other\n" + "".join(f"{line},1\n" for line in LINES) + '"never closed,1\n',
    "utf16.txt": "\n".join(LINES).encode("utf-16"),
    "utf16le.txt": "\n".join(LINES).encode("utf-16-le"),
    "nul.txt": "".join(f"{line}\n" for line in LINES) + "the lamp \0 went out\n",
    "nul.csv": "text,other\n" + "".join(f"{line},1\n" for line in LINES) + "the lamp \0 went out,1\n",
    "late_latin.txt": "".join(f"{line}\n" for line in LINES).encode() + "un café noir\n".encode("latin-1"),
    "cut_late.txt.gz": gzip.compress("\n".join(LINES * 50).encode())[:-100],
    "code.py": "print()",
    "key.yaml": "preset: tiny\nmask_ration: 0.4\n",
    "type.yaml": "preset: tiny\nnum_masks: several\n",
    "list.yaml": "- preset\n- tiny\n",
    "choice.yaml": "loss_type: nope\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with all `FILES`, two tiny encoders and tokenizers that do not fit."""
    folder = tmp_path_factory.mktemp("bad_input")
    for name, content in FILES.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "nothing").mkdir()
    datasets.Dataset.from_dict({"text": LINES * 20}).to_parquet(folder / "good.parquet")
    content = (folder / "good.parquet").read_bytes()
    (folder / "cut.parquet").write_bytes(content[: len(content) // 2])
    (folder / "bits.parquet").write_bytes(bytes(b ^ 255 if 200 < i < 230 else b for i, b in enumerate(content)))
    (folder / "checkpoint-9").mkdir()

    tokenizer = train_tokenizer(LINES, 200, max_length=16)
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    for name, vocabulary in (("bert", len(tokenizer)), ("narrow", 20)):
        config = BertConfig(vocab_size=vocabulary, max_position_embeddings=16, **shape)
        BertModel(config, add_pooling_layer=False).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)

    backend = Tokenizer(models.WordLevel({"<unk>": 0, "the": 1, "of": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>").save_pretrained(folder / "unpadded")
    return folder


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out"


def command(folder, output, argv):
    """The command line of a run that would be tiny: the arguments with folders filled in, and what they leave open."""
    given = [argument.format(dir=folder, out=output) for argument in argv]
    usual = {
        "--output_dir": [str(output)],
        "--cache_dir": [str(folder / "cache")],
        "--max_steps": ["1"],
        "--max_length": ["16"],
        "--vocab_size": ["200"],
        "--use_cpu": [],
    }
    if not {"--dataset_name", "--train_file"} & set(given):
        usual["--train_file"] = [str(folder / "good.txt")]
    if not {"--model_name_or_path", "--config_name", "--preset"} & set(given):
        usual["--preset"] = ["tiny"]
    return given + [part for flag, values in usual.items() if flag not in given for part in (flag, *values)]


def listing(output):
    return {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} if output.is_dir() else None


@pytest.fixture
def refuse(folder, output, monkeypatch, capsys):
    """Runs the console command in this process; gives the one line of its refusal."""

    def run(*argv):
        before = listing(output)
        monkeypatch.setattr(sys, "argv", ["text-jepa", "pretrain", *command(folder, output, argv)])
        with pytest.raises(SystemExit) as exit_:
            text_jepa_command()
        printed = capsys.readouterr()
        assert exit_.value.code == 2, printed.out
        assert printed.out == ""
        assert printed.err.endswith("\n")
        assert len(printed.err.splitlines()) == 1, printed.err
        assert listing(output) == before
        return printed.err

    return run


CORPUS = [
    ("a missing file", ["--train_file", "{dir}/none.txt"], ["--train_file", "none.txt", "no such file"]),
    ("a glob of nothing", ["--train_file", "{dir}/*.none"], ["--train_file", "*.none", "no such file"]),
    ("a folder of nothing", ["--train_file", "{dir}/nothing"], ["--train_file", "nothing", ".jsonl"]),
    ("an unknown kind", ["--train_file", "{dir}/code.py"], ["--train_file", "code.py", "not read", ".parquet"]),
    (
        "mixed kinds",
        ["--train_file", "{dir}/good.txt", "{dir}/good.csv"],
        ["--train_file", "good.csv: no column 'text'"],
    ),
    (
        "no column",
        ["--train_file", "{dir}/good.csv"],
        ["good.csv", "no column 'text'", "title, body", "--text_column"],
    ),
    (
        "a misspelt column",
        ["--train_file", "{dir}/good.csv", "--text_column", "boddy"],
        ["good.csv", "no column 'boddy'; did you mean 'body'?", "--text_column"],
    ),
    (
        "no column in the held-out file",
        ["--validation_file", "{dir}/good.csv"],
        ["--validation_file", "good.csv", "no column 'text'", "--text_column"],
    ),
    ("a missing held-out file", ["--validation_file", "none.txt"], ["--validation_file none.txt: no such file"]),
    ("an empty text file", ["--train_file", "{dir}/empty.txt"], ["--train_file", "empty.txt", "empty"]),
    ("an empty json file", ["--train_file", "{dir}/empty.jsonl"], ["--train_file", "empty.jsonl", "empty"]),
    ("an empty table", ["--train_file", "{dir}/empty.csv"], ["--train_file", "empty.csv", "empty"]),
    ("a header only", ["--train_file", "{dir}/header.csv"], ["--train_file", "header.csv", "no d"]),
    ("a broken parquet file", ["--train_file", "{dir}/broken.parquet"], ["broken.parquet: cannot be read: ", "magic"]),
    ("half a parquet file", ["--train_file", "{dir}/cut.parquet"], ["--train_file", "cut.parquet: cannot be read: "]),
    (
        "wrong bits in a table",
        ["--train_file", "{dir}/bits.parquet"],
        ["--train_file", "bits.parquet: cannot be read"],
    ),
    ("a broken json line", ["--train_file", "{dir}/broken.jsonl"], ["broken.jsonl, line 2: not JSON", "fix"]),
    (
        "a broken line far behind",
        ["--train_file", "{dir}/late.jsonl"],
        ["--train_file", "late.jsonl, line 41: not JSON"],
    ),
    (
        "a broken file among others",
        ["--train_file", "{dir}/good.jsonl", "{dir}/broken.jsonl"],
        ["--train_file", "broken.jsonl, line 2: not JSON"],
    ),
    (
        "lines that are no objects",
        ["--train_file", "{dir}/numbers_only.jsonl"],
        ["only.jsonl, line 1: not an object", "fix"],
    ),
    (
        "a column twice",
        ["--train_file", "{dir}/twice.jsonl"],
        ["--train_file", "twice.jsonl, line 1: an object has the field 'text' twice"],
    ),
    ("an unfinished list", ["--train_file", "{dir}/unfinished.json"], ["--train_file", "unfinished.json: cannot be"]),
    ("a cell too many", ["--train_file", "{dir}/wide.csv"], ["--train_file", "wide.csv: cannot be read", "line 42"]),
    ("an open quote", ["--train_file", "{dir}/quote.csv"], ["--train_file", "quote.csv: cannot be read", "row 41"]),
    (
        "text not in UTF-8",
        ["--train_file", "{dir}/latin.txt"],
        ["latin.txt, line 1: not UTF-8", "0xe9", "column 7", "iconv"],
    ),
    ("text no longer in UTF-8", ["--train_file", "{dir}/late_latin.txt"], ["late_latin.txt, line 41: not UTF-8"]),
    ("text in UTF-16", ["--train_file", "{dir}/utf16.txt"], ["utf16.txt, line 1: not UTF-8", "iconv"]),
    (
        "text in UTF-16 without a mark",
        ["--train_file", "{dir}/utf16le.txt"],
        ["--train_file", "utf16le.txt, line 1: a null character, as in UTF-16", "iconv"],
    ),
    ("a NUL in a text", ["--train_file", "{dir}/nul.txt"], ["nul.txt, line 41: a null character"]),
    ("a NUL in a cell", ["--train_file", "{dir}/nul.csv"], ["nul.csv, line 42: a null character"]),
    ("json not in UTF-8", ["--train_file", "{dir}/latin.jsonl"], ["--train_file", "latin.jsonl, line 1: not UTF-8"]),
    ("a broken gzip file", ["--train_file", "{dir}/cut.txt.gz"], ["--train_file", "cut.txt.gz: "]),
    ("half a gzip file", ["--train_file", "{dir}/cut_late.txt.gz"], ["cut_late.txt.gz: ", "may be incomplete"]),
    ("numbers in a table", ["--train_file", "{dir}/numbers.csv"], ["'text' holds int64, not text", "--text_column"]),
    ("numbers in json", ["--train_file", "{dir}/numbers.jsonl"], ["numbers.jsonl", "'text' holds int64, not text"]),
    ("numbers among texts", ["--train_file", "{dir}/mixed.jsonl"], ["--train_file", "mixed.jsonl"]),
    ("lists for texts", ["--train_file", "{dir}/lists.jsonl"], ["lists.jsonl", "'text' holds List, not text"]),
    ("null for texts", ["--train_file", "{dir}/missing.jsonl"], ["missing.jsonl", "'text' holds null, not text"]),
]

REFUSALS = [
    *CORPUS,
    ("blank lines", ["--train_file", "{dir}/blank.txt"], ["--train_file", "blank.txt", "no document"]),
    ("one word per document", ["--train_file", "{dir}/short.txt"], ["corpus", "no document of at least"]),
    ("a share of all", ["--validation_split_percentage", "100"], ["--validation_split_percentage 100", "below 100"]),
    ("a negative share", ["--validation_split_percentage", "-5"], ["--validation_split_percentage -5", "above 0"]),
    ("a vocabulary without end", ["--vocab_size", "99999999999"], ["--vocab_size: at most 10,000,000"]),
    ("a vocabulary of nothing", ["--vocab_size", "5"], ["--vocab_size 5", "above 5"]),
    ("a single document", ["--train_file", "{dir}/single.txt"], ["single.txt", "at least 2", "--sample_by"]),
    ("two corpora", ["--train_file", "{dir}/good.txt", "--dataset_name", "x"], ["--train_file and --dataset_name"]),
    ("no such dataset", ["--dataset_name", "{dir}/none"], ["--dataset_name", "none"]),
    ("an unknown flag", ["--mask_ration", "0.4"], ["unknown argument --mask_ration; did you mean 'mask_ratio'?"]),
    ("an unknown key", ["{dir}/key.yaml"], ["key.yaml: unknown key 'mask_ration'; did you mean 'mask_ratio'?"]),
    ("a wrong type", ["--num_masks", "several"], ["--num_masks", "invalid int value: 'several'"]),
    ("a wrong type in the file", ["{dir}/type.yaml"], ["--num_masks", "invalid int value: 'several'"]),
    ("a list for a file of flags", ["{dir}/list.yaml"], ["list.yaml: expected lines of the form 'flag: value'"]),
    ("a missing file of flags", ["{dir}/none.yaml"], ["none.yaml: No such file", "files of flags"]),
    ("a bad choice", ["--loss_type", "nope"], ["--loss_type", "invalid choice: 'nope'", "smooth_l1"]),
    ("a bad choice in the file", ["{dir}/choice.yaml"], ["--loss_type", "invalid choice: 'nope'"]),
    ("a value of transformers", ["--eval_strategy", "nope"], ["nope", "epoch"]),
    ("a decay out of range", ["--ema_decay_start", "1.5"], ["--ema_decay_start must lie between 0 and 1, got 1.5"]),
    (
        "a field out of range",
        ["--objective", "jepa", "--pred_hidden_size", "33"],
        ["pred_hidden_size (33)", "multiple", "heads (2)"],
    ),
    (
        "a layer that is not there",
        ["--target_num_layers", "9"],
        ["target_num_layers must be at least 1 and at most 2", "got 9"],
    ),
    ("a negative weight", ["--token_loss_weight", "-1"], ["token_loss_weight"]),
    ("an unknown activation", ["--pred_hidden_act", "nope"], ["pred_hidden_act", "nope"]),
    ("attention that is not installed", ["--attn_implementation", "flash_attention_2"], ["cannot be built", "Flash"]),
    ("an unknown preset", ["--preset", "huge"], ["unknown preset 'huge'", "tiny, mini, small, base, large"]),
    ("a shape that is no JSON", ["--text_config", "{{oops"], ["--text_config"]),
    ("a shape without fields", ["--text_config", "[1]"], ["--text_config [1]", "fields"]),
    ("a field that the encoder lacks", ["--text_config", '{{"hidden_sise": 8}}'], ["hidden_sise", "'hidden_size'"]),
    ("a field of the wrong type", ["--text_config", '{{"hidden_size": "wide"}}'], ["hidden_size", "wide"]),
    ("a negative seed", ["--seed", "-1"], ["--seed", "at least 0"]),
    ("a seed of more than 32 bits", ["--seed", "4294967296"], ["--seed must be at most 4294967295"]),
    ("an empty batch", ["--per_device_train_batch_size", "0"], ["--per_device_train_batch_size", "at least 1"]),
    ("an endless batch", ["--per_device_train_batch_size", "9" * 30], ["--per_device_train_batch_size", "too large"]),
    ("endless windows", ["--max_document_length", "9" * 30], ["--max_document_length", "too large"]),
    ("no accumulation", ["--gradient_accumulation_steps", "0"], ["--gradient_accumulation_steps", "at least 1"]),
    ("fewer than no workers", ["--dataloader_num_workers", "-1"], ["--dataloader_num_workers", "at least 0"]),
    ("a learning rate that is no number", ["--learning_rate", "nan"], ["--learning_rate"]),
    ("an unknown tracker", ["--report_to", "nope"], ["--report_to", "nope"]),
    ("nothing to evaluate on", ["--max_eval_samples", "0"], ["--max_eval_samples", "at least 1"]),
    ("a variable without a value", ["--model_name_or_path", ""], ["--model_name_or_path: an empty value"]),
    ("a name of other bytes", ["--train_file", "caf\udce9"], ["'caf\\udce9': not valid UTF-8"]),
    ("a word of blanks", ["--text_column", "text", " "], ["the command contains an empty argument"]),
    ("a path that is too long", ["--train_file", "x" * 300], ["x" * 300 + ": File name too long"]),
    ("two hyphens as a value", ["--max_length=--"], ["--max_length: '--' is not a value"]),
    ("no ratio at all", ["--mask_ratio="], ["--mask_ratio: an empty value"]),
    ("a ratio out of range", ["--mask_ratio", "1"], ["mask_ratio must be a number of at least 0 and below 1, got 1"]),
    ("no mask", ["--num_masks", "0"], ["num_masks must be at least 1, got 0"]),
    (
        "spans longer than allowed",
        ["--objective", "jepa", "--mean_span_length", "11"],
        ["mean_span_length", "max_span_length (10)", "got 11"],
    ),
    (
        "spans where the objective hides nothing",
        ["--num_spans", "2"],
        ["--num_spans has no effect", "predicts no hidden token", "--mask_ratio above 0"],
    ),
    (
        "spans where nothing is to be hidden",
        ["--objective", "jepa", "--mask_ratio", "0", "--whole_words", "false"],
        ["--whole_words has no effect: --mask_ratio 0 hides no words"],
    ),
    ("no room for text", ["--max_length", "4"], ["--max_length 4", "no room"]),
    ("no training document", ["--max_train_samples", "0"], ["--max_train_samples"]),
    (
        "two encoders",
        ["--preset", "tiny", "--model_name_or_path", "{dir}/bert"],
        ["--preset and --model_name_or_path exclude each other"],
    ),
    (
        "two shapes",
        ["--config_name", "{dir}/bert", "--preset", "tiny"],
        ["--preset and --config_name exclude each other"],
    ),
    (
        "more tokens than positions",
        ["--model_name_or_path", "{dir}/bert", "--max_length", "17"],
        ["--max_length 17", "positions for 16 tokens"],
    ),
    (
        "a tokenizer larger than the encoder",
        ["--model_name_or_path", "{dir}/narrow"],
        ["tokens, the encoder 20", "--tokenizer_name"],
    ),
    (
        "a tokenizer without padding token",
        ["--tokenizer_name", "{dir}/unpadded"],
        ["unpadded: its tokenizer has no padding token", "set tokenizer.pad_token"],
    ),
    ("no such tokenizer", ["--tokenizer_name", "{dir}/none"], ["--tokenizer_name", "none", "no tokenizer there"]),
    ("no such encoder", ["--model_name_or_path", "{dir}/none"], ["--model_name_or_path", "none"]),
    ("a folder that is no encoder", ["--model_name_or_path", "{dir}/nothing"], ["--model_name_or_path", "nothing"]),
    ("no such configuration", ["--config_name", "{dir}/none"], ["none"]),
    ("a stream without end", ["--streaming", "--max_steps", "-1"], ["--streaming needs --max_steps"]),
    ("a stream that is held out", ["--streaming"], ["200 documents of a stream are held out", "--validation_file"]),
    (
        "no such checkpoint",
        ["--resume_from_checkpoint", "{dir}/checkpoint-7"],
        ["--resume_from_checkpoint", "checkpoint-7", "there is no such checkpoint"],
    ),
    ("nothing to resume", ["--resume_from_checkpoint", "true"], ["--resume_from_checkpoint: no checkpoint in", "out"]),
    ("a secret on the command line", ["--hub_token", "hf_x"], ["--hub_token", "HF_TOKEN"]),
    ("a repository and no upload", ["--hub_model_id", "me/x"], ["--hub_model_id", "--push_to_hub"]),
    ("an upload of checkpoints", ["--hub_strategy", "checkpoint"], ["--hub_strategy checkpoint", "every_save"]),
    ("an architecture of no encoder", ["--init", "from_config"], ["--init from_config", "--model_name_or_path"]),
    (
        "another shape of trained weights",
        ["--model_name_or_path", "{dir}/bert", "--text_config", '{{"num_hidden_layers": 2}}'],
        ["--text_config", "--init from_config"],
    ),
    (
        "held-out texts for a corpus that has its own",
        ["--dataset_name", "x", "--validation_file", "{dir}/good.txt"],
        ["--validation_file goes with --train_file"],
    ),
    ("a file for a folder", ["--output_dir", "{dir}/good.txt"], ["--output_dir", "good.txt", "is a file"]),
    (
        "a file on the way",
        ["--output_dir", "{dir}/good.txt/run"],
        ["--output_dir", "good.txt/run: cannot be written to"],
    ),
    ("a folder that takes nothing", ["--output_dir", "/proc/run"], ["--output_dir /proc/run: cannot be written to"]),
    (
        "half a checkpoint",
        ["--resume_from_checkpoint", "{dir}/checkpoint-9"],
        ["--resume_from_checkpoint", "checkpoint-9: not a complete checkpoint (manifest.json is missing)", "auto"],
    ),
    ("an end of half-trained weights", ["--auto_find_batch_size"], ["--auto_find_batch_size", "batch size"]),
]


def cases(table):
    return [pytest.param(argv, fragments, id=name.replace(" ", "-")) for name, argv, fragments in table]


@pytest.mark.parametrize(("argv", "fragments"), cases(REFUSALS))
def test_bad_input_is_refused_in_one_line_that_names_it(refuse, argv, fragments):
    line = refuse(*argv)
    assert line.startswith("error: ")
    assert [fragment for fragment in fragments if fragment not in line] == [], line


@pytest.mark.parametrize(("argv", "fragments"), cases(CORPUS))
def test_bad_files_are_refused_in_a_stream_as_well(refuse, argv, fragments):
    line = refuse(*argv, "--streaming")
    assert [fragment for fragment in fragments if fragment not in line] == [], line


@pytest.mark.parametrize("argv", [[], ["--streaming", "--validation_file", "{dir}/good.txt"]], ids=["map", "stream"])
def test_a_folder_that_holds_something_is_refused_and_left_alone(refuse, output, argv):
    output.mkdir()
    (output / "precious.txt").write_text("keep me")
    line = refuse(*argv)
    assert f"--output_dir {output}: not empty" in line
    assert "--resume_from_checkpoint auto" in line
    assert [path.name for path in output.iterdir()] == ["precious.txt"]


def test_after_a_refusal_the_same_folder_can_be_used(refuse, output):
    refuse("--objective", "jepa", "--pred_hidden_size", "33")
    assert "unknown preset" in refuse("--preset", "huge")
    assert not output.exists() or not any(output.iterdir())


@pytest.mark.slow
def test_a_real_process_prints_one_line_and_exits_with_code_two(folder, output):
    """The reader of json lines also logs what it cannot read."""
    argv = command(folder, output, ["--train_file", "{dir}/broken.jsonl"])
    script = [sys.executable, str(ROOT / "run_pretraining.py")]
    result = subprocess.run([*script, *argv], capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: --train_file ")
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert "broken.jsonl, line 2: not JSON" in result.stderr
    assert result.stdout == ""
    assert not output.exists()


# ---- what shows late ------------------------------------------------------------------------------------------------


def broken_stream(shards):
    """A stream whose reader fails after the first twenty examples."""

    def read(shards):
        for _ in shards:
            for number in range(20):
                yield {"input_ids": [2, 7 + number, 3]}
            raise ValueError("JSON parse error")

    return datasets.IterableDataset.from_generator(read, gen_kwargs={"shards": list(range(shards))})


def late(folder):
    """What is read, and its file, for messages."""
    return f"--train_file {folder / 'late.jsonl'}", [str(folder / "late.jsonl")]


@pytest.mark.parametrize("workers", [0, 1])
def test_what_breaks_in_the_midst_of_training_is_one_line_with_file_and_line_number(folder, capsys, workers):
    stream = EndlessStream(broken_stream(2), 4, source=late(folder), pool_batches=1)
    loader = torch.utils.data.DataLoader(stream, batch_size=4, num_workers=workers, collate_fn=list)
    seen = []
    with pytest.raises(SystemExit) as exit_:
        run_command(lambda: seen.extend(loader))
    assert exit_.value.code == 2
    assert len(seen) >= 5
    line = capsys.readouterr().err
    assert line.startswith(f"error: --train_file {folder / 'late.jsonl'}, line 41: not JSON")
    assert len(line.splitlines()) == 1


def test_what_breaks_while_words_are_counted_is_named_with_file_and_line_number(folder, tokenizer, make_model):
    text_config = MODERNBERT | {"vocab_size": len(tokenizer)}
    model = make_model(text_config, **OBJECTIVES["documents"])
    with pytest.raises(UsageError, match=r"^--train_file \S+late\.jsonl, line 41: not JSON"):
        weigh_words(model, broken_stream(1), tokenizer, late(folder))
    assert (model.word_weights == 1).all()


@pytest.mark.parametrize("flag", ["--train_file", "--validation_file"])
def test_a_damaged_file_far_behind_in_a_stream_is_one_line(refuse, tmp_path, flag):
    """An encoder brings its tokenizer: nothing has read the file before the texts are tokenized."""
    notes = tmp_path / "notes"
    notes.mkdir()
    for number in range(150):
        (notes / f"{number:03}.md").write_text(LINES[number % len(LINES)])
    (notes / "140.md").write_bytes("Un café noir.".encode("latin-1"))
    files = {"--train_file": "{dir}/good.txt", "--validation_file": "{dir}/good.txt", flag: str(notes)}
    words = [word for pair in files.items() for word in pair]
    line = refuse(*words, "--streaming", "--model_name_or_path", "{dir}/bert")
    assert line.startswith(f"error: {flag} {notes / '140.md'}, line 1: not UTF-8")


def test_what_breaks_in_the_held_out_part_of_a_stream_is_named_with_file_and_line_number(folder):
    corpus = SimpleNamespace(source=("--train_file x", ()), held_out_source=late(folder))
    parts = SimpleNamespace(corpus=corpus, examples={"train": broken_stream(1), "validation": broken_stream(1)})
    with pytest.raises(UsageError, match=r"^--train_file \S+late\.jsonl, line 41: not JSON"):
        select_examples(parts, DataArguments(streaming=True), TextJepaTrainingArguments(use_cpu=True))


@pytest.mark.slow
def test_a_number_far_behind_in_a_stream_is_one_line(refuse, tmp_path):
    """The columns of a stream are known from its first rows only."""
    rows = [{"text": line} for line in LINES * 10]
    (tmp_path / "numbers.jsonl").write_text(jsonl(*rows, {"text": 31415}, *rows))
    line = refuse("--train_file", str(tmp_path / "numbers.jsonl"), "--streaming")
    assert "numbers.jsonl, line 401: column 'text' holds int64, not text" in line


def test_a_folder_that_holds_its_own_runs_is_trained_on_again(folder, tmp_path, monkeypatch, capsys, caplog):
    caplog.set_level("INFO")
    for number, text in enumerate(LINES):
        (tmp_path / f"{number}.txt").write_text(text)
    monkeypatch.chdir(tmp_path)
    usual = [".", "--preset", "tiny", "--max_steps", "2", "--save_steps", "1", "--max_length", "16", "--use_cpu"]
    usual += ["--vocab_size", "200", "--cache_dir", str(folder / "cache")]
    counts = []
    for _ in range(2):
        output = run_pretraining.main(usual)
        counts.append(re.findall(r"40 \.txt files: .* held out", capsys.readouterr().out))
    assert len(list((tmp_path / "runs").iterdir())) == 2
    assert len(counts[0]) == 1
    assert counts[0] == counts[1]
    assert output.parent.name == "runs"
    assert f"folders of runs, models or results are left out: runs/{tmp_path.name}" in caplog.text
    assert "not read" not in caplog.text


# ---- odd, but legal -------------------------------------------------------------------------------------------------


ODD = {
    "empty and blank lines": "\n  \n\t\n",
    "a single token": "one\n" * 7,
    "line breaks of Windows": "the boat came in\r\nthe boat went out\r\n",
    "line breaks of Unicode": "the boat\u2028came in\u0085and went\n",
    "special tokens in words": "the [MASK] of [PAD] and [CLS] [SEP]\n",
    "special tokens alone": "[MASK] [PAD]\n[CLS]\n",
    "other alphabets": "灯台守は港へ降りた。 الحارس نزل 👩‍🚀\n",
    "a huge line": "up and down " * 20_000 + "\n",
}


@pytest.mark.parametrize(
    "workers",
    [
        pytest.param(None, id="map", marks=pytest.mark.slow),
        pytest.param(0, id="stream"),
        pytest.param(1, id="stream-of-a-worker", marks=pytest.mark.slow),
    ],
)
def test_odd_texts_train_to_a_finite_loss_and_what_is_left_out_is_counted(folder, output, tmp_path, caplog, workers):
    """With a byte order mark at the beginning, and more documents of a word than are read at once."""
    text = "\ufeff" + "\n" * 1_200 + "one\n" * 1_200 + "".join(ODD.values()) + "".join(f"{line}\n" for line in LINES)
    (tmp_path / "odd.txt").write_text(text, newline="")
    argv = ["--train_file", str(tmp_path / "odd.txt"), "--max_steps", "8", "--save_strategy", "no"]
    argv += ["--logging_steps", "1", "--per_device_train_batch_size", "4", "--max_eval_samples", "8"]
    if workers is not None:
        argv += ["--streaming", "--validation_file", "{dir}/good.txt", "--dataloader_num_workers", str(workers)]
    with caplog.at_level("INFO"):
        run_pretraining.main(command(folder, output, argv))
    losses = [record["loss"] for record in read_metrics(output) if "loss" in record]
    assert len(losses) == 8
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    (left_out, documents), *others = re.findall(r"train: ([\d,]+) of ([\d,]+) documents are left out", caplog.text)
    assert others == []
    assert 1_000 < int(left_out.replace(",", "")) < int(documents.replace(",", ""))


def test_a_literal_special_token_is_text(tokenizer):
    """It neither ends a text nor hides a word."""
    from text_jepa.data.tokenization import tokenize_texts

    corpus = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": ["the [MASK] of [PAD] and [CLS]"]})})
    ids = tokenize_texts(corpus, tokenizer, 32)["train"][0]["input_ids"].tolist()
    inner = ids[1:-1]
    assert not set(inner) & set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}


def test_texts_of_other_types_are_refused_before_a_tokenizer_is_trained():
    with pytest.raises(UsageError, match=r"list .*where a text is expected"):
        train_tokenizer(["a b", ["c"]], 100)
