"""`text-jepa adapt`: the recipe that suits an encoder, a folder that takes its place, and ONNX that needs no torch."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from transformers import AutoModel, BertConfig, BertModel

from text_jepa import cli, names
from text_jepa.cli import UsageError
from text_jepa.commands import adapt
from text_jepa.commands import export as export_command_line
from text_jepa.data.walking import LOCK
from text_jepa.encoders.sentence_head import SentenceHead, read_head
from text_jepa.probe import documents


ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
MEAN = SentenceHead("somewhere", "mean", (("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")), 256)

# Those of a folder that pools, and does nothing else.
MODULES = [
    {"path": "", "type": "sentence_transformers.models.Transformer"},
    {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]


@pytest.fixture(scope="module")
def encoder(tokenizer, tmp_path_factory):
    """Folder of a BERT without modules of sentence-transformers."""
    folder = tmp_path_factory.mktemp("adapt") / "bert"
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# ---- what is run ----------------------------------------------------------------------------------------------------


def test_a_sentence_encoder_and_any_other_get_their_recipes(encoder):
    run = adapt.words_of_run("somewhere", MEAN, ["notes"], ["--max_steps", "5"])
    assert Path(run[0]) == ROOT / "configs" / "continue-from-encoder.yaml"
    assert " ".join(run[1:]) == (
        "--model_name_or_path somewhere --output_dir runs/somewhere-adapted --train_file notes --pooling mean "
        "--max_steps 5"
    )
    plain = read_head(str(encoder))
    run = adapt.words_of_run(str(encoder), plain, ["notes"], [])
    assert Path(run[0]) == ROOT / "configs" / "continue-masked-lm.yaml"
    assert "--pooling" not in run
    assert "is taken for a masked language model" in adapt.describe_choice(str(encoder), plain)


def test_an_encoder_is_a_folder_or_a_short_name_that_has_been_downloaded(encoder, tmp_path, monkeypatch):
    """Then the Hub is not asked for a name of its own."""
    assert adapt.find_encoder(str(encoder)) == str(encoder)
    download = tmp_path / "models--sentence-transformers--small"
    shutil.copytree(encoder, download / "snapshots" / "0")
    (download / "refs").mkdir()
    (download / "refs" / "main").write_text("0")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    def ask(*_):
        raise ValueError("the Hub was asked")

    monkeypatch.setattr(names, "_ask_hub", ask)
    assert adapt.find_encoder("small") == "sentence-transformers/small"
    with pytest.raises(UsageError, match="the Hub was asked"):
        adapt.find_encoder("smaller")


def test_recipes_are_found_without_a_checkout(tmp_path, monkeypatch):
    package = tmp_path / "text_jepa"
    (package / "recipes").mkdir(parents=True)
    (package / "recipes" / "tiny_cpu.yaml").touch()
    monkeypatch.chdir(tmp_path)
    assert cli.find_recipe("configs/tiny_cpu.yaml") == ROOT / "configs" / "tiny_cpu.yaml"
    monkeypatch.setattr(cli, "__file__", str(package / "cli.py"))
    assert cli.find_recipe("configs/tiny_cpu.yaml") == package / "recipes" / "tiny_cpu.yaml"
    assert cli.find_recipe("configs/none.yaml") == Path("configs/none.yaml")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "tiny_cpu.yaml").touch()
    assert cli.find_recipe("configs/tiny_cpu.yaml") == Path("configs/tiny_cpu.yaml")


@pytest.mark.parametrize(
    ("pooling", "modules", "flag"),
    [
        ("cls", [("1_Pooling", "Pooling")], "cls"),
        ("mean", [("1_WordWeights", "WordWeights"), ("2_Pooling", "Pooling")], "idf"),
    ],
)
def test_a_run_pools_as_the_encoder_does(pooling, modules, flag):
    head = SentenceHead("somewhere", pooling, tuple(modules))
    assert adapt.words_of_run("somewhere", head, ["notes"], [])[-1] == flag


def test_the_folder_of_a_run_is_new_unless_it_resumes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert adapt.folder_of_run("owner/name", "auto") == "runs/name-adapted"
    for name in ("name-adapted/checkpoint-50", "name-adapted-2/checkpoint-50", "name-adapted-3"):
        Path("runs", name).mkdir(parents=True)
    Path("runs", "name-adapted-3", LOCK).touch()
    assert adapt.folder_of_run("owner/name", None) == "runs/name-adapted-4"
    assert adapt.folder_of_run("owner/name", "false") == "runs/name-adapted-4"
    # A run that was killed while it prepared its texts has nothing to resume.
    assert adapt.folder_of_run("owner/name", "auto") == "runs/name-adapted-2"
    assert adapt.folder_of_run("owner/name", "runs/name-adapted/checkpoint-50") == "runs/name-adapted"


def test_the_encoder_is_looked_at_in_the_revision_and_the_cache_of_the_run(encoder, tmp_path, monkeypatch, capsys):
    """The branch main has no modules and another size."""
    download = tmp_path / "cache" / "models--me--encoder"
    for revision in ("main", "v1"):
        folder = shutil.copytree(encoder, download / "snapshots" / revision)
        (download / "refs").mkdir(exist_ok=True)
        (download / "refs" / revision).write_text(revision)
        (folder / ".gitattributes").touch()  # as of a download of all files
    (folder / "modules.json").write_text(json.dumps(MODULES))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    (download / "snapshots" / "main" / "config.json").write_text('{"model_type": "bert", "hidden_size": 8}')
    shutil.copytree(folder, tmp_path / "run")
    runs = []
    monkeypatch.setattr(adapt, "command_of", lambda verb: lambda argv, **names: runs.append(argv))
    place = ["--cache_dir", str(tmp_path / "cache"), "--output_dir", str(tmp_path / "run")]
    adapt.main(["me/encoder", "notes", "--model_revision", "v1", *place])
    assert "continue-from-encoder.yaml" in runs[0][0]
    assert runs[0][runs[0].index("--pooling") + 1] == "cls"
    assert "It can replace me/encoder: features 16, modules cls pooling" in capsys.readouterr().out
    adapt.main(["me/encoder", "notes", *place])
    assert "continue-masked-lm.yaml" in runs[1][0]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "name an encoder and texts"),
        (["--max_steps", "3"], "name an encoder and texts"),
        (["{encoder}"], "name the texts after"),
        (["{encoder}", "notes", "--train_file", "other"], "'notes' and --train_file set the same option"),
        (["{encoder}", "notes", "--model_name_or_path=other"], "--model_name_or_path say the same"),
        (["nowhere/at-all", "notes"], "nowhere/at-all: no encoder found"),
        (["{whole}", "notes"], "is the complete model of a run"),
        (["{last}", "notes"], "uses lasttoken pooling, which cannot be trained"),
    ],
)
def test_what_cannot_be_adapted_is_one_line(encoder, tmp_path, argv, message):
    whole = tmp_path / "whole"
    last = tmp_path / "last"
    for folder, config in ((whole, {"model_type": "text_jepa"}), (last, {"model_type": "bert"})):
        (folder / "1_Pooling").mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
    (last / "modules.json").write_text(json.dumps(MODULES))
    (last / "1_Pooling" / "config.json").write_text('{"pooling_mode": "lasttoken"}')
    with pytest.raises(UsageError, match=message) as refused:
        adapt.main([word.format(encoder=encoder, whole=whole, last=last) for word in argv])
    assert "\n" not in str(refused.value)


def test_what_is_of_another_kind_afterwards_is_said(tmp_path):
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "modules.json").write_text(json.dumps(MODULES))
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    line = adapt.describe_place("somewhere", MEAN, str(tmp_path))
    assert "It cannot fully replace somewhere: " in line
    assert "modules (mean pooling, Normalize before, mean pooling now)" in line
    assert "tokens (256 before, None now)" in line
    again = adapt.describe_place(str(tmp_path), read_head(str(tmp_path)), str(tmp_path))
    assert again == f"It can replace {tmp_path}: features 8, modules mean pooling, similarity cosine"


# ---- before, after, and centring alone ------------------------------------------------------------------------------


def vectors_of_words(texts):
    """Counts of letters beside a large offset that all texts share, which hides them from cosines until it is gone."""
    counts = np.array([[text.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts], float)
    return counts + 1e5


def test_centring_alone_is_told_from_training():
    """A run that has changed nothing is not called better where centring is."""
    generator = np.random.default_rng(0)
    texts = []
    for _ in range(40):
        letters = generator.choice(list("abcdefghijklmnopqrstuvwxyz"), size=6)
        texts.append(" ".join("".join(generator.choice(letters, size=5)) for _ in range(40)))
    systems = {"this encoder": vectors_of_words, "before": vectors_of_words}
    found = documents.compare_on_documents(
        systems,
        texts,
        reference="before",
        variants=documents.variants_of("this encoder", "before", 100),
    )
    sentence = documents.summarize(found)
    assert "no significant difference (+0.0 [+0.0, +0.0]). Centring alone" in sentence
    assert "no training) gives" in sentence
    centring = sentence.partition("no training) gives")[2]
    assert ", better (+" in centring
    assert "training compared with centring: worse (-" in centring
    sizes = [row[0] for row in documents.shorter_vectors(found)]
    assert sizes == [64]


# ---- from MiniLM to a server without torch --------------------------------------------------------------------------


def run(*words, **environment):
    """A command in the root of the repository; what it printed, all of it where it failed."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path, **environment}
    result = subprocess.run([str(word) for word in words], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
def test_minilm_is_adapted_takes_its_own_place_and_is_served_without_torch(minilm, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    pytest.importorskip("onnxruntime")
    folder = tmp_path / "adapted"
    printed = run(EXAMPLES / "adapt.sh", minilm, ROOT / "docs" / "*.md", folder, STEPS="2")
    assert "recipe continue-from-encoder" in printed
    assert f"It can replace {minilm}: features 384, modules mean pooling, Normalize, tokens 256" in printed
    assert "Before → after: " in printed
    assert "Centring alone (the mean vector subtracted, no training) gives" in printed

    _, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    before = sentence_transformers.SentenceTransformer(str(minilm), device="cpu")
    after = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    assert after.similarity_fn_name == before.similarity_fn_name
    assert after.max_seq_length == before.max_seq_length
    texts = ["How do I resume a run?", "Bread needs flour, water, salt and time. " * 60]
    expected = after.encode(texts)
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-5)

    export_command_line.main(["onnx", str(folder)])
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')")
    served = run(sys.executable, EXAMPLES / "serve_onnx.py", folder, *texts, PYTHONPATH=str(tmp_path))
    found = np.loadtxt(served.splitlines())
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_example_of_serving_says_what_it_needs():
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    command = [sys.executable, str(EXAMPLES / "serve_onnx.py"), "folder"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr == "usage: python serve_onnx.py FOLDER TEXT ...\n"


@pytest.mark.parametrize("name", ["search_a_folder.sh", "adapt.sh", "serve_onnx.py", "own_loss.py"])
def test_an_example_has_at_most_16_lines_of_code(name):
    lines = (EXAMPLES / name).read_text().splitlines()
    code = [line for line in lines if line.strip() and not line.startswith(("#", '"""'))]
    assert len(code) <= 16


def test_the_page_on_serving_shows_the_example():
    script = (EXAMPLES / "serve_onnx.py").read_text()
    code = [line for line in script[script.index("import sys") :].splitlines() if line]
    (shown,) = re.findall(r"```py\n(import sys\n.*?)```", (ROOT / "docs" / "serving.md").read_text(), re.DOTALL)
    assert [line for line in shown.splitlines() if line] == code


# ---- LoRA -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_lora_trains_matrices_beside_the_weights_and_is_merged_in_the_export(encoder, texts, tmp_path, capsys):
    pytest.importorskip("peft")
    (tmp_path / "texts.txt").write_text("".join(f"{text} {text}\n" for text in texts * 8))
    flags = "--lora 2 --max_steps 2 --save_steps 2 --eval_steps 2 --ema_frozen_steps 0 --max_length 32 --use_cpu"
    flags += " --per_device_train_batch_size 4 --sample_by line --merge false"
    flags += f" --output_dir {tmp_path}/run --cache_dir {tmp_path}/cache"
    adapt.main([str(encoder), str(tmp_path / "texts.txt"), *flags.split()])
    before = AutoModel.from_pretrained(encoder)
    after, report = AutoModel.from_pretrained(tmp_path / "run", output_loading_info=True)
    assert not report["unexpected_keys"]
    changed = {
        name
        for name, value in after.state_dict().items()
        if not name.startswith("pooler") and not torch.equal(value, before.state_dict()[name])
    }
    assert changed
    assert all(name.endswith("weight") and "LayerNorm" not in name for name in changed)
    assert not any("embeddings" in name for name in changed)
    lora = tmp_path / "run" / "checkpoint-2"
    with pytest.raises(UsageError, match="adapters was True and is False"):
        adapt.main(
            [str(encoder), str(tmp_path / "texts.txt"), *flags.split()[2:], "--resume_from_checkpoint", str(lora)]
        )
