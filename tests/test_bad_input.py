"""Bad input of `run_pretraining.py`: one clear line on stderr, exit code 2, and an output folder as it was.

Run: python -m pytest -q tests/test_bad_input.py
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import run_pretraining
from text_jepa.data import train_tokenizer


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
    "lists.jsonl": jsonl({"text": ["a", "b"]}, {"text": ["c"]}),
    "missing.jsonl": jsonl({"text": None}, {"text": None}),
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
        monkeypatch.setattr(sys, "argv", ["text-jepa-pretrain", *command(folder, output, argv)])
        with pytest.raises(SystemExit) as exit_:
            run_pretraining.console()
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
    ("mixed kinds", ["--train_file", "{dir}/good.txt", "{dir}/good.csv"], ["--train_file", ".csv, .txt", "one kind"]),
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
    ("a broken json line", ["--train_file", "{dir}/broken.jsonl"], ["broken.jsonl: cannot be read: ", "row 1"]),
    ("text not in UTF-8", ["--train_file", "{dir}/latin.txt"], ["latin.txt: cannot be read: ", "utf-8", "position 6"]),
    ("json not in UTF-8", ["--train_file", "{dir}/latin.jsonl"], ["--train_file", "latin.jsonl: cannot be read: "]),
    ("a broken gzip file", ["--train_file", "{dir}/cut.txt.gz"], ["cut.txt.gz: cannot be read: "]),
    ("numbers in a table", ["--train_file", "{dir}/numbers.csv"], ["'text' holds int64, not text", "--text_column"]),
    ("numbers in json", ["--train_file", "{dir}/numbers.jsonl"], ["numbers.jsonl", "'text' holds int64, not text"]),
    ("numbers among texts", ["--train_file", "{dir}/mixed.jsonl"], ["--train_file", "mixed.jsonl"]),
    ("lists for texts", ["--train_file", "{dir}/lists.jsonl"], ["lists.jsonl", "'text' holds List, not text"]),
    ("null for texts", ["--train_file", "{dir}/missing.jsonl"], ["missing.jsonl", "'text' holds null, not text"]),
]

REFUSALS = [
    *CORPUS,
    ("blank lines", ["--train_file", "{dir}/blank.txt"], ["corpus", "no text"]),
    ("one word per document", ["--train_file", "{dir}/short.txt"], ["corpus", "no document of at least two tokens"]),
    ("a share of all", ["--validation_split_percentage", "100"], ["--validation_split_percentage 100", "below 100"]),
    ("a negative share", ["--validation_split_percentage", "-5"], ["--validation_split_percentage -5", "above 0"]),
    ("a vocabulary of nothing", ["--vocab_size", "5"], ["--vocab_size 5", "above 5"]),
    ("a single document", ["--train_file", "{dir}/single.txt"], ["--train_file", "single.txt", "at least 2"]),
    ("two corpora", ["--train_file", "{dir}/good.txt", "--dataset_name", "x"], ["--train_file and --dataset_name"]),
    ("no such dataset", ["--dataset_name", "{dir}/none"], ["--dataset_name", "none"]),
    ("an unknown flag", ["--mask_ration", "0.4"], ["unknown argument --mask_ration; did you mean 'mask_ratio'?"]),
    ("an unknown key", ["{dir}/key.yaml"], ["key.yaml: unknown key 'mask_ration'; did you mean 'mask_ratio'?"]),
    ("a wrong type", ["--num_masks", "several"], ["--num_masks", "invalid int value: 'several'"]),
    ("a wrong type in the file", ["{dir}/type.yaml"], ["--num_masks", "invalid int value: 'several'"]),
    ("a list for a file of flags", ["{dir}/list.yaml"], ["list.yaml: expected lines of the form 'flag: value'"]),
    ("a missing file of flags", ["{dir}/none.yaml"], ["none.yaml: No such file", "YAML"]),
    ("a bad choice", ["--loss_type", "nope"], ["--loss_type", "invalid choice: 'nope'", "smooth_l1"]),
    ("a bad choice in the file", ["{dir}/choice.yaml"], ["--loss_type", "invalid choice: 'nope'"]),
    ("a value of transformers", ["--eval_strategy", "nope"], ["nope", "epoch"]),
    ("a decay out of range", ["--ema_decay_start", "1.5"], ["--ema_decay_start must lie between 0 and 1, got 1.5"]),
    ("a field out of range", ["--pred_hidden_size", "33"], ["pred_hidden_size (33)", "multiple", "heads (2)"]),
    ("a layer that is not there", ["--target_num_layers", "9"], ["target_num_layers must be 1 to 2", "got 9"]),
    ("a negative weight", ["--token_loss_weight", "-1"], ["token_loss_weight"]),
    ("an unknown activation", ["--pred_hidden_act", "nope"], ["pred_hidden_act", "nope"]),
    ("an unknown preset", ["--preset", "huge"], ["unknown preset 'huge'", "tiny, mini, small, base, large"]),
    ("a shape that is no JSON", ["--text_config", "{{oops"], ["--text_config"]),
    ("a shape without fields", ["--text_config", "[1]"], ["--text_config [1]", "fields"]),
    ("a field that the encoder lacks", ["--text_config", '{{"hidden_sise": 8}}'], ["hidden_sise", "'hidden_size'"]),
    ("a field of the wrong type", ["--text_config", '{{"hidden_size": "wide"}}'], ["hidden_size", "wide"]),
    ("a negative seed", ["--seed", "-1"], ["--seed", "at least 0"]),
    ("an empty batch", ["--per_device_train_batch_size", "0"], ["--per_device_train_batch_size", "at least 1"]),
    ("no accumulation", ["--gradient_accumulation_steps", "0"], ["--gradient_accumulation_steps", "at least 1"]),
    ("fewer than no workers", ["--dataloader_num_workers", "-1"], ["--dataloader_num_workers", "at least 0"]),
    ("a learning rate that is no number", ["--learning_rate", "nan"], ["--learning_rate"]),
    ("an unknown tracker", ["--report_to", "nope"], ["--report_to", "nope"]),
    ("nothing to evaluate on", ["--max_eval_samples", "0"], ["--max_eval_samples", "at least 1"]),
    ("a ratio out of range", ["--mask_ratio", "1"], ["mask_ratio must lie between 0 and 1, got 1"]),
    ("no mask", ["--num_masks", "0"], ["num_masks must be at least 1, got 0"]),
    (
        "spans longer than allowed",
        ["--mean_span_length", "11"],
        ["mean_span_length", "max_span_length (10)", "got 11"],
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
        ["tokenizer has no padding token", "add one"],
    ),
    ("no such tokenizer", ["--tokenizer_name", "{dir}/none"], ["--tokenizer_name", "none", "no tokenizer there"]),
    ("no such encoder", ["--model_name_or_path", "{dir}/none"], ["--model_name_or_path", "none"]),
    ("a folder that is no encoder", ["--model_name_or_path", "{dir}/nothing"], ["--model_name_or_path", "nothing"]),
    ("no such configuration", ["--config_name", "{dir}/none"], ["none"]),
    ("a stream without end", ["--streaming", "--max_steps", "-1"], ["--streaming needs --max_steps"]),
    ("a stream that is held out", ["--streaming"], ["first 200 documents of a stream", "--validation_file"]),
    (
        "no such checkpoint",
        ["--resume_from_checkpoint", "{dir}/checkpoint-7"],
        ["--resume_from_checkpoint", "checkpoint-7", "no checkpoint there"],
    ),
    ("nothing to resume", ["--resume_from_checkpoint", "true"], ["--resume_from_checkpoint: no checkpoint in", "out"]),
    ("a secret on the command line", ["--hub_token", "hf_x"], ["--hub_token", "HF_TOKEN"]),
    ("an upload while training", ["--push_to_hub"], ["--push_to_hub", "hf upload"]),
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
    assert "--resume_from_checkpoint true" in line
    assert [path.name for path in output.iterdir()] == ["precious.txt"]


def test_after_a_refusal_the_same_folder_can_be_used(refuse, output):
    refuse("--pred_hidden_size", "33")
    assert "unknown preset" in refuse("--preset", "huge")
    assert not output.exists() or not any(output.iterdir())


def test_a_real_process_prints_one_line_and_exits_with_code_two(folder, output):
    """The reader of json lines also logs what it cannot read."""
    argv = command(folder, output, ["--train_file", "{dir}/broken.jsonl"])
    script = [sys.executable, str(ROOT / "run_pretraining.py")]
    result = subprocess.run([*script, *argv], capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: --train_file ")
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert "broken.jsonl: cannot be read" in result.stderr
    assert result.stdout == ""
    assert not output.exists()
