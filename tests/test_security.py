"""Nothing that is loaded runs, and no secret is written: the promises of `SECURITY.md`, with payloads that would.

Run: python -m pytest -q tests/test_security.py
"""

import ast
import inspect
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from datasets import load_dataset
from transformers import CONFIG_MAPPING, MODEL_MAPPING, BertConfig, BertModel

import run_pretraining
from text_jepa.cli import UsageError
from text_jepa.commands.main import main as text_jepa_command
from text_jepa.encoders import opening
from text_jepa.encoders.sentence_head import read_head
from text_jepa.share.export import copy_encoder_files, export_sentence_transformer
from text_jepa.share.hub import files_to_publish
from text_jepa.train import checkpointing


ROOT = Path(__file__).resolve().parents[1]
SOURCES = [
    path
    for pattern in ("*.py", "text_jepa/**/*.py", "benchmarks/*.py", "examples/**/*.py")
    for path in ROOT.glob(pattern)
]
SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


class Payload:
    """Unpickled, it leaves a file behind."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return (os.mkdir, (str(self.canary),))


@pytest.fixture
def canary(tmp_path):
    return tmp_path / "canary"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    lines = [f"The keeper of lighthouse number {i} climbed down again." for i in range(60)]
    (folder / "train.txt").write_text("".join(f"{line}\n" for line in lines))
    return folder


@pytest.fixture
def command(corpus, monkeypatch, capsys):
    """Runs the console command; gives its exit code and what it printed."""

    def run(output_dir, *more, data=True):
        usual = f"--cache_dir {corpus}/cache --vocab_size 200 --max_length 16 --max_steps 2 --save_steps 1 --use_cpu"
        usual += f" --max_eval_samples 8 --per_device_train_batch_size 4 --output_dir {output_dir}"
        usual += f" --train_file {corpus}/train.txt" * data
        monkeypatch.setattr(sys, "argv", ["text-jepa", "pretrain", *map(str, more), *usual.split()])
        with pytest.raises(SystemExit) as exit_:
            text_jepa_command()
        printed = capsys.readouterr()
        return exit_.value.code, printed.out + printed.err

    return run


NEW = ("--preset", "tiny", "--text_config", json.dumps(SHAPE))


def assert_refused(result, canary, *fragments):
    code, printed = result
    assert not canary.exists()
    assert code == 2
    assert "Traceback" not in printed
    line = printed.splitlines()[-1]
    assert line.startswith("error: ")
    assert [fragment for fragment in fragments if fragment not in line] == [], line


def test_payload_would_leave_its_mark(canary):
    """The other tests could not fail otherwise."""
    pickle.loads(pickle.dumps(Payload(canary)))
    assert canary.exists()


# ---- paths in files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["../outside", "/tmp/outside", "1_Pooling/../../outside", "..\\outside", "\x00", "x" * 300]
)
def test_modules_outside_the_folder_of_an_encoder_are_neither_read_nor_written(tmp_path, path):
    """They are copied into every export, and their folders made."""
    folder = tmp_path / "encoder"
    folder.mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "config.json").write_text('{"pooling_mode": "max"}')
    module = {"idx": 1, "name": "1", "path": path, "type": "sentence_transformers.models.Pooling"}
    (folder / "modules.json").write_text(json.dumps([module]))
    for read in (lambda: read_head(str(folder)), lambda: copy_encoder_files(folder, tmp_path / "new" / "export")):
        with pytest.raises(UsageError, match=r"modules.json: the module .* is (outside|not a valid folder name)"):
            read()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encoder", "outside"]


# ---- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    output = tmp_path_factory.mktemp("finished") / "run"
    argv = f"--train_file {corpus}/train.txt --cache_dir {corpus}/cache --vocab_size 200 --max_length 16 --max_steps 2"
    argv += f" --save_steps 1 --max_eval_samples 8 --per_device_train_batch_size 4 --use_cpu --output_dir {output}"
    return run_pretraining.main([*NEW, *argv.split()])


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize("kind", ["torch", "raw"])
def test_code_in_a_checkpoint_does_not_run(command, finished, tmp_path, canary, name, kind):
    """Whoever can write a file can write a manifest that agrees with it: it must not matter."""
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(run / "checkpoint-2")
    folder = run / "checkpoint-1"
    if kind == "torch":
        torch.save({"state": Payload(canary)}, folder / name)
    else:
        (folder / name).write_bytes(pickle.dumps(Payload(canary)))
    assert_refused(command(run, *NEW, "--resume_from_checkpoint", "auto"), canary, name)
    facts = checkpointing.read_manifest(folder)["facts"]
    (folder / "manifest.json").unlink()
    checkpointing.write_manifest(folder, facts)
    result = command(run, *NEW, "--resume_from_checkpoint", "auto")
    assert_refused(result, canary, "checkpoint-1", "code", "was not run")


def test_pickles_that_nothing_needs_are_neither_read_nor_written(command, finished, tmp_path, canary):
    assert not list(finished.rglob("training_args.bin"))
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(run / "checkpoint-2")
    for name in ("training_args.bin", "pytorch_model.bin", "optimizer.bin"):
        torch.save(Payload(canary), run / "checkpoint-1" / name)
    assert command(run, *NEW, "--resume_from_checkpoint", "auto")[0] == 0
    assert not canary.exists()


# ---- encoders -------------------------------------------------------------------------------------------------------


@pytest.fixture
def encoder(tmp_path, tokenizer):
    """A folder with configuration and tokenizer of a small BERT; its weights by `save`."""
    folder = tmp_path / "encoder"
    BertConfig(vocab_size=len(tokenizer), **SHAPE).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def change(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize("kind", ["torch", "raw"])
def test_code_in_pickled_weights_does_not_run(command, encoder, tmp_path, canary, kind):
    if kind == "torch":
        torch.save({"embeddings.word_embeddings.weight": Payload(canary)}, encoder / "pytorch_model.bin")
    else:
        (encoder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(canary)))
    result = command(tmp_path / "run", "--model_name_or_path", encoder)
    assert_refused(result, canary, str(encoder), "safetensors")


@pytest.mark.parametrize("flag", ["--model_name_or_path", "--config_name", "--tokenizer_name"])
def test_code_beside_a_configuration_does_not_run_and_nobody_is_asked(
    command, encoder, tmp_path, canary, flag, monkeypatch
):
    """On a terminal transformers would ask, and take a yes."""
    monkeypatch.setattr("builtins.input", lambda *args: "y")
    (encoder / "evil.py").write_text(
        f"import os\nos.mkdir({str(canary)!r})\nfrom transformers import BertConfig as C, BertModel as M\n"
    )
    change(encoder / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.C", "AutoModel": "evil.M"})
    change(encoder / "tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.C", "evil.C"]})
    more = () if flag == "--model_name_or_path" else ("--tokenizer_name", encoder)
    more = NEW if flag == "--tokenizer_name" else more
    result = command(tmp_path / "run", flag, encoder, *more)
    assert_refused(result, canary, str(encoder))
    assert "[y/N]" not in result[1]


def test_attention_of_the_hub_is_not_fetched(command, encoder, tmp_path, canary):
    """A configuration may name a repository of compiled code."""
    BertModel(BertConfig.from_pretrained(encoder)).save_pretrained(encoder)
    change(encoder / "config.json", attn_implementation="someone/attention")
    result = command(tmp_path / "run", "--model_name_or_path", encoder)
    assert_refused(result, canary, "someone/attention", "sdpa")


def test_probe_runs_no_code_of_an_encoder(encoder, tmp_path, canary, monkeypatch, capsys):
    torch.save({"x": Payload(canary)}, encoder / "pytorch_model.bin")
    rows = [{"text": f"the boat {i} was {'good' if i % 2 else 'bad'}", "label": i % 2} for i in range(20)]
    (tmp_path / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = [str(encoder), "--task_file", str(tmp_path / "task.jsonl"), "--output_dir", str(tmp_path / "probe")]
    monkeypatch.setattr(sys, "argv", ["text-jepa", "probe", *argv])
    with pytest.raises(SystemExit) as stop:
        text_jepa_command()
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {encoder}: its weight file contains code")
    assert not canary.exists()


def own_architecture(folder, tokenizer, canary):
    """A whole encoder whose architecture is in files beside it; they leave a mark, and return the encoder of BERT."""
    BertModel(BertConfig(vocab_size=len(tokenizer), **SHAPE)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "configuration_own.py").write_text(
        f"import os\nfrom transformers import BertConfig\nos.makedirs({str(canary)!r}, exist_ok=True)\n\n\n"
        "class OwnConfig(BertConfig):\n    model_type = 'own'\n"
    )
    (folder / "modeling_own.py").write_text(
        "from transformers import BertModel\nfrom .configuration_own import OwnConfig\n\n\n"
        "class OwnModel(BertModel):\n    config_class = OwnConfig\n"
    )
    code = {"AutoConfig": "configuration_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    change(folder / "config.json", model_type="own", auto_map=code)
    return folder


@pytest.fixture
def two_of_their_own(tmp_path, tokenizer, monkeypatch):
    """Two encoders of one model_type, each with code of its own, and what each leaves behind if that runs."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    for mapping in (CONFIG_MAPPING, MODEL_MAPPING):
        monkeypatch.setattr(mapping, "_extra_content", dict(mapping._extra_content))
    monkeypatch.setattr(opening, "_code_of", {})
    marks = [tmp_path / "mark1", tmp_path / "mark2"]
    folders = [own_architecture(tmp_path / mark.name.replace("mark", "own"), tokenizer, mark) for mark in marks]
    yield folders, marks
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


@pytest.mark.slow
def test_one_flag_runs_the_code_of_the_folder_that_it_names_and_of_no_other(
    command, two_of_their_own, tmp_path, capsys, caplog, monkeypatch
):
    (mine, other), (mark, other_mark) = two_of_their_own
    start = ("--model_name_or_path", mine, "--objective", "mlm")
    assert_refused(command(tmp_path / "run", *start), mark, "own", f"--allow_remote_code {mine}")
    assert_refused(command(tmp_path / "run", *start, "--allow_remote_code", f"{mine}-2"), mark, "--allow_remote_code")

    code, printed = command(tmp_path / "run", *start, "--allow_remote_code", mine)
    assert code == 0, printed
    assert mark.is_dir()
    assert f"the Python code of {mine} runs" in caplog.text
    card = (tmp_path / "run" / "README.md").read_text()
    assert "--allow_remote_code" in card
    assert mine.name in card
    assert "no remote code is needed" not in card
    assert (tmp_path / "run" / "modeling_own.py").is_file()

    # The other one is opened by the code that was allowed, as its model_type is the same.
    monkeypatch.setattr(sys, "argv", ["text-jepa", "export", "weights", str(other), str(tmp_path / "weights")])
    sys.argv += ["--texts", str(tmp_path / "texts.txt")]
    (tmp_path / "texts.txt").write_text("The keeper climbed down.\n" * 9)
    with pytest.raises(SystemExit) as stop:
        text_jepa_command()
    assert stop.value.code == 0, capsys.readouterr().err
    result = command(tmp_path / "both", *start, "--allow_remote_code", mine, other)
    assert_refused(result, other_mark, f"--allow_remote_code {other}", "name one")


def code_of(name):
    return {"AutoConfig": f"{name}configuration_own.OwnConfig", "AutoModel": f"{name}modeling_own.OwnModel"}


@pytest.mark.parametrize(
    ("fields", "fragments"),
    [
        ({"auto_map": code_of("someone/code--")}, ["that of someone/code", "name both"]),
        ({"model_type": "bert"}, ["'bert' is opened without code", "leave it out"]),
        ({"auto_map": None}, ["names no code", "leave it out"]),
        ({"auto_map": {"AutoModel": "modeling_own.OwnModel"}}, ["names no code"]),
        ({"auto_map": code_of("lost_")}, ["cannot be used"]),
    ],
)
@pytest.mark.parametrize("verb", ["probe", "export"])
def test_code_that_the_flag_does_not_name_is_not_run(two_of_their_own, monkeypatch, capsys, fields, fragments, verb):
    (mine, _), (mark, _) = two_of_their_own
    change(mine / "config.json", **fields)
    words = {"probe": [str(mine)], "export": ["encoder", str(mine), f"{mine}-out"]}[verb]
    monkeypatch.setattr(sys, "argv", ["text-jepa", verb, *words, "--allow_remote_code", str(mine)])
    with pytest.raises(SystemExit) as stop:
        text_jepa_command()
    assert_refused((stop.value.code, capsys.readouterr().err), mark, "--allow_remote_code", *fragments)
    assert not Path(f"{mine}-out").exists()


def test_code_of_others_is_not_published(two_of_their_own):
    (mine, _), _ = two_of_their_own
    (mine / "README.md").write_text("# mine\n")
    with pytest.raises(UsageError, match=r"configuration_own.py\) is not published"):
        files_to_publish(mine)


@pytest.mark.parametrize(
    ("file", "fields", "fragment"),
    [
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": [None, "own.T"]}}, r"code of others \(own.py\)"),
        ("2_Dense/config.json", {"activation_function": "own.Tanh"}, "the own.Tanh of its module 2_Dense is code"),
        ("2_Dense/config.json", {"activation_function": "torchown.Tanh"}, "the torchown.Tanh of its module 2_Dense"),
        (
            "2_Dense/config.json",
            {"activation_function": "sentence_transformers.Own"},
            "the sentence_transformers.Own of",
        ),
        ("2_Dense/config.json", {"activation_function": ""}, "the  of its module 2_Dense is code"),
    ],
)
def test_code_of_tokenizers_and_modules_is_not_published(encoder, file, fields, fragment):
    BertModel(BertConfig.from_pretrained(encoder)).save_pretrained(encoder)
    (encoder / "README.md").write_text("# mine\n")
    module = {"idx": 1, "name": "1", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    (encoder / "modules.json").write_text(json.dumps([module]))
    (encoder / "2_Dense").mkdir()
    (encoder / "2_Dense" / "config.json").write_text("{}")
    assert files_to_publish(encoder)
    change(encoder / file, **fields)
    with pytest.raises(UsageError, match=fragment):
        files_to_publish(encoder)
    if "Dense" in file:  # which sentence-transformers replaces by another one
        with pytest.raises(UsageError, match=fragment):
            export_sentence_transformer(encoder, encoder.parent / "out")


def test_an_export_names_no_code_that_is_not_in_it(command, encoder, tmp_path, canary):
    BertModel(BertConfig.from_pretrained(encoder)).save_pretrained(encoder)
    (encoder / "own.py").write_text(f"import os\nos.mkdir({str(canary)!r})\n")
    change(encoder / "config.json", auto_map={"AutoConfig": "own.C", "AutoModel": "someone/else--own.M"})
    change(encoder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.T", "own.T"]})
    code, printed = command(tmp_path / "run", "--model_name_or_path", encoder, "--objective", "mlm")
    assert code == 0, printed
    assert not canary.exists()
    for name in ("config.json", "tokenizer_config.json", "pretraining/tokenizer_config.json"):
        assert "auto_map" not in json.loads((tmp_path / "run" / name).read_text())
    pytest.importorskip("sentence_transformers")  # which keeps what the files of the tokenizer name
    export_sentence_transformer(encoder, tmp_path / "again")
    for name in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in json.loads((tmp_path / "again" / name).read_text())
    assert "modeling_text_jepa" in (tmp_path / "run" / "pretraining" / "config.json").read_text()


# ---- data and settings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["folder", "file"])
def test_code_of_a_dataset_does_not_run(command, tmp_path, canary, script):
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "corpus.py").write_text(f"import os\nos.mkdir({str(canary)!r})\n")
    name = folder if script == "folder" else folder / "corpus.py"
    assert_refused(command(tmp_path / "run", *NEW, "--dataset_name", name, data=False), canary, "--dataset_name")


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir", "!!python/name:os.mkdir", "!!python/module:os"])
@pytest.mark.parametrize("where", ["file", "mask_strategies", "mask_ratio"])
def test_code_in_yaml_does_not_run(command, tmp_path, canary, tag, where):
    path = tmp_path / "evil.yaml"
    value = f"{tag} ['{canary}']" if "apply" in tag else tag
    path.write_text(f"preset: {value}\n")
    result = command(tmp_path / "run", *((path,) if where == "file" else (*NEW, f"--{where}", value)))
    assert_refused(result, canary, "evil.yaml" if where == "file" else where)


# ---- secrets --------------------------------------------------------------------------------------------------------


SECRET = "hf_" + "Canary" * 6


def files_with(secret, folder):
    """Files, and members of archives, that hold a secret."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file():
            parts = [path.read_bytes()]
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    parts += [archive.read(name) for name in archive.namelist()]
            found += [path] * any(secret.encode() in part for part in parts)
    return found


def test_secrets_of_the_environment_are_written_nowhere(command, tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, SECRET)
    code, printed = command(tmp_path / "run", *NEW)
    assert code == 0
    assert len([path for path in (tmp_path / "run").rglob("*") if path.is_file()]) > 20
    assert files_with(SECRET, tmp_path) == []
    assert SECRET not in printed


@pytest.mark.parametrize("how", ["flag", "equals", "file"])
def test_a_token_among_the_arguments_is_refused_unsaid(command, tmp_path, how):
    path = tmp_path / "run.yaml"
    path.write_text(f"hub_token: {SECRET}\n")
    argv = {"flag": ("--hub_token", SECRET), "equals": (f"--hub_token={SECRET}",), "file": ()}[how]
    code, printed = command(tmp_path / "run", *((path,) if how == "file" else ()), *NEW, *argv)
    assert code == 2
    assert "HF_TOKEN" in printed
    assert SECRET not in printed
    assert not (tmp_path / "run").exists()


def test_secret_is_found_in_an_archive(tmp_path):
    """The search could not fail otherwise."""
    with zipfile.ZipFile(tmp_path / "state.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", SECRET * 100)
    assert files_with(SECRET, tmp_path) == [tmp_path / "state.pt"]


# ---- source ---------------------------------------------------------------------------------------------------------


FORBIDDEN = {
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "evaluate.load",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
}
FORBIDDEN |= {f"{module}.{name}" for module in ("pickle", "marshal", "joblib", "dill") for name in ("load", "loads")}
FORBIDDEN |= {"pickle.Unpickler", "shelve.open", "pandas.read_pickle", "pd.read_pickle"}
FORBIDDEN |= {"get_class_from_dynamic_module", "transformers.dynamic_module_utils.get_class_from_dynamic_module"}


# Loaders that would ask on a terminal whether to run code, unless they are told not to.
LOADERS = {"SentenceTransformer", "CrossEncoder", "SparseEncoder", "pipeline", "transformers.pipeline"}


def asks_for_code(name, given):
    """Whether a call may run code that lies beside what it loads. `super()` passes on what its caller said."""
    owner, _, method = name.rpartition(".")
    is_loader = name in LOADERS or (method == "from_pretrained" and owner != "super()")
    is_loader |= method == "from_config" and owner.startswith("Auto")
    return is_loader and given.get("trust_remote_code") != "False"


def dangers_in(source):
    """Calls that run what they read, by line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            imported = {f"{node.module}.{alias.name}" for alias in node.names} & (FORBIDDEN | {"torch.load"})
            found += [(node.lineno, name) for name in imported]
        if not isinstance(node, ast.Call):
            continue
        name, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        if (
            name in FORBIDDEN
            or (name == "torch.load" and given.get("weights_only") != "True")
            or given.get("shell", "False") != "False"
            or given.get("trust_remote_code", "False") != "False"
            or asks_for_code(name, given)
            or given.get("allow_pickle", "False") != "False"
        ):
            found.append((node.lineno, name))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_source_calls_nothing_that_runs_what_it_reads(path):
    source = path.read_text(encoding="utf-8")
    if path.name == "tour.py":  # opens what it has just written, in the words of a reader
        source = source.replace(".from_pretrained(folder", ".from_own_folder(folder")
    if path.name == "opening.py":  # the one flag that runs code of others
        head, function, rest = source.partition("def _register_code(")
        body, end, tail = rest.partition("\n\n\n")
        assert len(dangers_in(function + body)) == 2
        source = head.replace("import get_class_from_dynamic_module", "import x") + end + tail
    assert dangers_in(source) == []


def test_datasets_has_no_scripts_that_could_run():
    """So `load_dataset` need not be told."""
    assert "trust_remote_code" not in inspect.signature(load_dataset).parameters


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "from torch import load",
        "from pickle import loads",
        "pickle.load(file)",
        "eval(text)",
        "exec(text)",
        "os.system(command)",
        "subprocess.run(command, shell=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=args.trust)",
        "AutoModel.from_pretrained(name)",
        "model_class.from_pretrained(name, **options)",
        "transformers.AutoConfig.from_pretrained(name)",
        "AutoModel.from_config(config)",
        "SentenceTransformer(name, device='cpu')",
        "pipeline('feature-extraction', name)",
        "evaluate.load('glue')",
        "get_class_from_dynamic_module(reference, name)",
        "from transformers.dynamic_module_utils import get_class_from_dynamic_module",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_search_of_the_source_finds(source):
    assert dangers_in(source)


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "torch.load(path, weights_only=True)",
        "yaml.safe_load(text)",
        "super().from_pretrained(name)",
        "AutoModel.from_pretrained(name, trust_remote_code=False)",
    ],
)
def test_search_of_the_source_passes_by(source):
    assert not dangers_in(source)


def test_nothing_here_is_a_pickle():
    """Of the files under version control."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a checkout")
    suffixes = {Path(name).suffix for name in listed.stdout.splitlines()}
    assert not suffixes & {".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib"}
