"""Tests publishing with the real client and a Hub in memory, and loading in new processes.

Run: python -m pytest -q tests/share/test_hub.py
"""

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from hub_server import HubServer, problems_of_metadata
from huggingface_hub import HfApi, ModelCard, constants
from huggingface_hub.utils import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from transformers import AutoModel, AutoTokenizer

import run_pretraining
from modeling_text_jepa import mean_pool
from text_jepa import TextJepaConfig, TextJepaForPreTraining, TextJepaTrainer, TextJepaTrainingArguments
from text_jepa.cli import UsageError
from text_jepa.commands import export
from text_jepa.commands.main import main as text_jepa_command
from text_jepa.data.collator import DataCollatorForTextJepa
from text_jepa.share.hub import files_to_publish, push_folder


SENTENCES = ["the harbour of the town lies in the north", "a storm"]
EXPORTED = {
    "1_WordWeights/config.json",
    "1_WordWeights/model.safetensors",
    "2_Pooling/config.json",
    "README.md",
    "config.json",
    "curves.png",
    "metrics.jsonl",
    "model.safetensors",
    "modules.json",
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def patch():
    """A `MonkeyPatch` for the whole module."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def server(patch):
    """The Hub, with the client of this process logged in as `me`."""
    with HubServer() as server:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "ENDPOINT", server.url)
        patch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        patch.setattr(transformers.utils.hub, "_hf_api", None, raising=False)  # cached, with the previous endpoint
        patch.setenv("HF_TOKEN", server.token)
        yield server


@pytest.fixture
def hub(server):
    """The Hub, reset before each test."""
    server.failures.clear()
    return server


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "train.txt"
    path.write_text("".join(f"The keeper of lighthouse number {i} climbed down to the harbour.\n" for i in range(60)))
    return path


@pytest.fixture(scope="module")
def command(corpus):
    """Arguments of a run of three steps with a tiny model, whose two encoders differ from the first step on."""

    def arguments(output_dir, *more):
        shape = '{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}'
        usual = (
            "--preset tiny --vocab_size 200 --max_length 16 --max_steps 3 --logging_steps 1 --save_steps 2 --use_cpu"
        )
        usual += " --ema_decay_start 0.5 --ema_decay_end 0.9 --learning_rate 1e-2 --warmup_steps 0"
        usual += (
            f" --per_device_train_batch_size 4 --max_eval_samples 8 --train_file {corpus} --output_dir {output_dir}"
        )
        return [*usual.split(), "--text_config", shape, *more]

    return arguments


@pytest.fixture(scope="module")
def run(server, command, tmp_path_factory):
    """A run that has published the encoder of every checkpoint and the last encoder."""
    publish = ["--push_to_hub", "--hub_model_id", "me/harbour", "--hub_strategy", "every_save", "--hub_always_push"]
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    return run_pretraining.main(command(folder, *publish, "--license", "cc-by-sa-4.0"))


@pytest.fixture(scope="module")
def token_run(server, command, tmp_path_factory):
    """Like `run`, but with two different encoders."""
    publish = ["--push_to_hub", "--hub_model_id", "me/tokens", "--hub_strategy", "every_save", "--hub_always_push"]
    folder = tmp_path_factory.mktemp("token_runs") / "tiny"
    return run_pretraining.main(command(folder, *publish, "--objective", "jepa", "--merge", "false"))


@pytest.fixture(scope="module")
def vectors(token_run):
    """Mean-pooled states (2, D) of the exported encoder of a run, and of the context encoder of its model."""
    tokenizer, found = AutoTokenizer.from_pretrained(token_run), []
    batch = tokenizer(SENTENCES, padding=True, truncation=True, return_tensors="pt")
    complete = TextJepaForPreTraining.from_pretrained(token_run / "pretraining")
    with torch.no_grad():
        for encoder in (complete.target_encoder, complete.model.encoder):
            states = encoder(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
            found.append(mean_pool(states, batch["attention_mask"]).numpy())
    return found


def fresh_process(code, folder, server):
    """Runs code in a new process without this package."""
    hidden = "import sys\nfor name in ('text_jepa', 'configuration_text_jepa', 'modeling_text_jepa'):\n"
    code = f"{hidden}    sys.modules[name] = None\n{code}"
    environment = {"HF_HUB_OFFLINE": "0", "HF_TOKEN": server.token, "HF_HOME": str(folder / "home")}
    environment |= {"HF_ENDPOINT": server.url, "HF_HUB_DISABLE_XET": "1"}
    environment |= {"PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]


# ---- a run ----------------------------------------------------------------------------------------------------------


def test_every_upload_is_one_commit_of_the_exported_files_alone(run, hub):
    commits = hub.repositories["me/harbour"].commits
    assert [c.title for c in commits] == ["initial commit", "Step 2", "Step 3", "Upload the encoder"]
    for commit in commits[1:]:
        assert set(commit.files) - {".gitattributes"} == EXPORTED
    assert commits[1].files["model.safetensors"] != commits[-1].files["model.safetensors"]


def test_what_is_published_is_what_lies_in_the_folder(run, hub):
    for name, content in hub.repositories["me/harbour"].files().items():
        if name != "README.md":
            assert content == (run / name).read_bytes(), name


def test_the_card_goes_under_the_name_of_the_repository(run, hub):
    published = hub.repositories["me/harbour"].files()["README.md"].decode()
    own = (run / "README.md").read_text()
    assert problems_of_metadata(published) == []
    assert published.count('model_id = "me/harbour"') == 3
    assert str(run) not in published.split("## Training")[0]
    assert "\n# harbour\n" in published
    assert ModelCard(published).data.eval_results == ModelCard(own).data.eval_results
    assert ModelCard(published).data.license == "cc-by-sa-4.0"
    assert published.split("## Training")[1] == own.split("## Training")[1]


def test_the_token_is_in_no_file(run, hub):
    """Neither in the output folder nor in the published files."""
    secret = hub.token.encode()
    assert not [path for path in run.rglob("*") if path.is_file() and secret in path.read_bytes()]
    for repository in hub.repositories.values():
        assert not [name for name, content in repository.files().items() if secret in content]


LOADING = """
import numpy as np, torch
torch.set_num_threads(1)
from huggingface_hub import constants
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoModelForPreTraining, AutoTokenizer, pipeline
sentences = {sentences!r}

def mean(states, mask):
    return ((states * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)).detach().numpy()

for phase in ("online", "offline"):
    constants.HF_HUB_OFFLINE, found = phase == "offline", {{}}
    for revision in ("main", "v1"):
        tokenizer = AutoTokenizer.from_pretrained("me/tokens", revision=revision)
        model = AutoModel.from_pretrained("me/tokens", revision=revision).eval()
        batch = tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")
        inputs = dict(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        found[revision] = mean(model(**inputs).last_hidden_state, batch["attention_mask"])
    extract = pipeline("feature-extraction", "me/tokens", truncation=True, return_tensors=True)
    found["pipeline"] = np.stack([states[0].mean(0).numpy() for states in extract(sentences)])
    found["sentence_transformer"] = SentenceTransformer("me/tokens", device="cpu").encode(sentences)
    try:
        AutoModel.from_pretrained("me/complete", trust_remote_code=False)
    except ValueError as error:
        assert "trust_remote_code" in str(error)
    else:
        raise AssertionError("code has run without consent")
    model = AutoModel.from_pretrained("me/complete", trust_remote_code=True).eval()
    assert type(model).__name__ == "TextJepaModel"
    found["context"] = mean(model(**inputs).last_hidden_state, batch["attention_mask"])
    load = dict(trust_remote_code=True, output_loading_info=True)
    full, info = AutoModelForPreTraining.from_pretrained("me/complete", **load)
    assert type(full).__name__ == "TextJepaForPreTraining" and not any(info.values()), info
    found["target"] = mean(full.eval().target_encoder(**inputs).last_hidden_state, batch["attention_mask"])
    np.savez(phase, **found)
"""


@pytest.mark.slow
def test_a_fresh_process_loads_what_was_published_with_equal_vectors(token_run, hub, vectors, tmp_path):
    """The encoder in three libraries and at a tag, the complete model as remote code; then again from the cache."""
    TextJepaForPreTraining.from_pretrained(token_run / "pretraining").push_to_hub("me/complete")
    AutoTokenizer.from_pretrained(token_run / "pretraining").push_to_hub("me/complete")
    middle = hub.repositories["me/tokens"].commits[1]
    HfApi().create_tag("me/tokens", tag="v1", revision=middle.oid)
    fresh_process(LOADING.format(sentences=SENTENCES), tmp_path, hub)
    expected, context = vectors
    assert np.abs(expected - context).max() > 1e-3
    for phase in ("online", "offline"):
        found = dict(np.load(tmp_path / f"{phase}.npz"))
        assert np.abs(found.pop("v1") - expected).max() > 1e-3  # an earlier encoder
        np.testing.assert_allclose(found.pop("context"), context, atol=1e-5)
        for name, vectors_ in found.items():
            np.testing.assert_allclose(vectors_, expected, atol=1e-5, err_msg=f"{phase} {name}")


def test_the_complete_model_is_published_with_its_code_and_a_card_of_its_own(run, hub):
    push_folder(run / "pretraining", "me/with-code")
    files = hub.repositories["me/with-code"].files()
    assert {"modeling_text_jepa.py", "configuration_text_jepa.py", "config.json", "model.safetensors"} <= set(files)
    assert not {name for name in files if "Pooling" in name or name.endswith((".bin", ".pt", "card.json"))}
    card = files["README.md"].decode()
    assert "AutoModelForPreTraining.from_pretrained(model_id, trust_remote_code=True)" in card
    assert "custom_code" in ModelCard(card).data.tags


# ---- failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ["preupload", "lfs_batch", "lfs_put", "commit"])
def test_a_failure_in_the_middle_publishes_nothing_and_keeps_the_folder(run, hub, tmp_path, route):
    folder = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoint-*"))
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[::-1] + route.encode())
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    commits = list(hub.repositories["me/harbour"].commits)
    hub.failures[route] = 403
    with pytest.raises(UsageError, match="me/harbour was not published: the Hub says 403"):
        push_folder(folder, "me/harbour")
    assert hub.repositories["me/harbour"].commits == commits
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_failing_upload_is_told_at_the_end_and_the_run_is_whole(hub, command, tmp_path, monkeypatch, capsys):
    hub.failures["commit"] = 500
    arguments = command(tmp_path / "run", "--push_to_hub", "--hub_model_id", "me/unlucky")
    monkeypatch.setattr(sys, "argv", ["text-jepa", "pretrain", *arguments])
    with pytest.raises(SystemExit) as stop:
        text_jepa_command()
    assert stop.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(
        f"error: the encoder is in {tmp_path / 'run'}, but me/unlucky was not published: Server error"
    )
    assert f"`text-jepa export push {tmp_path / 'run'} me/unlucky` tries again" in last
    assert set(files_to_publish(tmp_path / "run")) == EXPORTED
    assert {"pretraining", "checkpoint-3", "arguments.yaml"} <= {path.name for path in (tmp_path / "run").iterdir()}
    assert hub.repositories["me/unlucky"].files() == {}
    hub.failures.clear()
    export.main(["push", str(tmp_path / "run"), "me/unlucky"])
    assert set(hub.repositories["me/unlucky"].files()) == EXPORTED


@pytest.mark.parametrize("token", [None, "hf_reader0000", "hf_wrong"])
def test_a_missing_right_is_known_before_the_first_step(hub, command, tmp_path, monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    with pytest.raises(UsageError, match=r"me/other cannot be published: .*HF_TOKEN"):
        run_pretraining.main(command(tmp_path / "run", "--push_to_hub", "--hub_model_id", "me/other"))
    assert not list((tmp_path / "run").glob("metrics.jsonl"))
    assert "me/other" not in hub.repositories


def test_checkpoints_are_not_published(command, tmp_path):
    for strategy in ("checkpoint", "all_checkpoints"):
        with pytest.raises(UsageError, match=f"--hub_strategy {strategy}: .*end or every_save"):
            run_pretraining.main(command(tmp_path / "run", "--push_to_hub", "--hub_strategy", strategy))


# ---- the command ----------------------------------------------------------------------------------------------------


def test_a_finished_folder_is_pushed_by_the_command(run, hub, tmp_path, capsys):
    folder = shutil.copytree(run, tmp_path / "run")
    (folder / "optimizer.pt").write_text("state")
    (folder / ".env").write_text("SECRET=1")
    export.main(["push", str(folder), "me/private", "--private"])
    address = capsys.readouterr().out.split()[-1]
    repository = hub.repositories["me/private"]
    assert repository.private
    assert set(repository.files()) == EXPORTED
    assert address == f"{hub.url}/me/private/commit/{repository.at().oid}"
    assert HfApi().model_info("me/private").sha == repository.at().oid


def test_a_second_push_changes_only_what_has_changed(run, hub, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    push_folder(folder, "me/again")
    uploads = len(hub.asked("^/lfs/"))
    push_folder(folder, "me/again")
    assert len(hub.repositories["me/again"].commits) == 2  # nothing has changed, so there is no commit
    assert len(hub.asked("^/lfs/")) == uploads
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    push_folder(folder, "me/again")
    last, before = hub.repositories["me/again"].commits[:0:-1]
    assert {name for name in last.files if last.files[name] != before.files[name]} == {"config.json"}


def test_what_an_earlier_upload_has_left_is_removed_in_the_same_commit(run, finished, hub):
    """A reader would take the old weights, modules or prompts for those of the new encoder."""
    add_modules(finished, **{"3_Dense": "Dense"})
    add_files(finished, "3_Dense/config.json", "3_Dense/model.safetensors", "config_sentence_transformers.json")
    add_files(finished, "onnx/model.onnx", "onnx/model_int8.onnx", "model-00001-of-00002.safetensors")
    push_folder(finished, "me/changed")
    repository = hub.repositories["me/changed"]
    by_hand = dict.fromkeys(("adapter_config.json", "pytorch_model.bin", "notes.md", "data/config.json"), b"{}")
    repository.commit("by hand", {**repository.at().files, **by_hand}, "main")
    commits = len(repository.commits)
    push_folder(run, "me/changed")
    assert set(repository.files()) == EXPORTED | {"notes.md", "data/config.json"}
    assert len(repository.commits) == commits + 1


def test_a_public_repository_is_not_taken_for_a_private_one(run, hub):
    push_folder(run, "me/public")
    commits = list(hub.repositories["me/public"].commits)
    with pytest.raises(UsageError, match="me/public cannot be published privately: it exists and is public; make it"):
        export.main(["push", str(run), "me/public", "--private"])
    assert hub.repositories["me/public"].commits == commits


def test_a_branch_is_made_and_main_stays(run, hub):
    push_folder(run, "me/branched", revision="trial")
    assert set(hub.repositories["me/branched"].files("trial")) == EXPORTED
    assert hub.repositories["me/branched"].files("main") == {}


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "README.md"])
def test_an_unfinished_folder_is_not_pushed(run, hub, tmp_path, missing):
    folder = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns(missing))
    with pytest.raises(UsageError, match="not a finished encoder"):
        push_folder(folder, "me/unfinished")
    assert "me/unfinished" not in hub.repositories


def test_a_card_that_the_hub_refuses_stops_the_upload(run, hub, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text(card.replace("license: cc-by-sa-4.0", "license: my own"))
    with pytest.raises(UsageError, match=r"me/refused was not published: .*"):
        push_folder(folder, "me/refused")
    assert hub.repositories["me/refused"].files() == {}


# ---- what tokenizer and modules name --------------------------------------------------------------------------------


@pytest.fixture
def finished(run, tmp_path):
    """A copy of the folder of the run, to which tests add files."""
    folder = tmp_path / "finished"
    return shutil.copytree(run, folder, ignore=shutil.ignore_patterns("checkpoint-*", "pretraining"))


def add_modules(folder, **kinds):
    modules = json.loads((folder / "modules.json").read_text())
    for path, kind in kinds.items():
        modules.append(
            {"idx": len(modules), "name": path, "path": path, "type": f"sentence_transformers.models.{kind}"}
        )
    (folder / "modules.json").write_text(json.dumps(modules))


def add_files(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return set(names)


def test_files_of_the_tokenizer_are_published_whatever_their_names(finished):
    """PhoBERT's tokenizer reads vocab.txt and bpe.codes."""
    (finished / "tokenizer.json").unlink()
    (finished / "vocab.txt").write_text("a 1\nb 1\nab 1\n")
    (finished / "bpe.codes").write_text("a b 1\n")
    (finished / "tokenizer_config.json").write_text('{"tokenizer_class": "PhobertTokenizer"}')
    (finished / "config.json").write_text('{"model_type": "roberta"}')
    more = {"vocab.txt", "bpe.codes"}
    assert set(files_to_publish(finished)) == EXPORTED - {"tokenizer.json"} | more
    assert len(AutoTokenizer.from_pretrained(finished)) > 3


def test_the_length_is_published_under_the_older_names_of_its_file(finished):
    old = "sentence_roberta_config.json"
    (finished / "sentence_bert_config.json").rename(finished / old)
    assert set(files_to_publish(finished)) == EXPORTED - {"sentence_bert_config.json"} | {old}


def test_onnx_files_of_every_precision_are_published(finished):
    files = add_files(finished, "onnx/model.onnx", "onnx/model_fp16.onnx", "onnx/model_int8.onnx")
    files |= add_files(finished, *(f"{name}.data" for name in files))
    add_files(finished, "onnx/model_of_mine.onnx")
    assert set(files_to_publish(finished)) == EXPORTED | files


@pytest.mark.parametrize(
    ("kinds", "files"),
    [
        ({"3_Dense": "Dense"}, ["3_Dense/config.json", "3_Dense/model.safetensors"]),
        ({"3_Normalize": "Normalize"}, []),
        ({"3_Normalize": "Normalize"}, ["3_Normalize/config.json"]),
        ({"head/3_LSTM": "LSTM"}, ["head/3_LSTM/lstm_config.json", "head/3_LSTM/model.safetensors"]),
        (
            {"3_Router": "Router"},
            [
                "3_Router/router_config.json",
                "3_Router/query_0_Dense/config.json",
                "3_Router/query_0_Dense/m.safetensors",
            ],
        ),
    ],
)
def test_files_of_every_module_are_published(finished, kinds, files):
    add_modules(finished, **kinds)
    more = add_files(finished, *files)
    # A module that is not listed, and files that are not part of a module.
    add_files(finished, "4_Dense/config.json", "3_Dense/optimizer.pt", "3_Dense/.secret.json")
    assert set(files_to_publish(finished)) == EXPORTED | more


@pytest.mark.parametrize(
    ("kinds", "files", "message"),
    [
        ({"3_Dense": "Dense"}, [], r"modules.json names the module '3_Dense', which is not there; add it"),
        (
            {"3_Dense": "Dense"},
            ["3_Dense/config.json", "3_Dense/pytorch_model.bin"],
            r"pytorch_model.bin: weights in",
        ),
        ({"../finished2": "Dense"}, [], r"the module '../finished2' is outside the folder"),
    ],
)
def test_modules_that_cannot_be_published_are_refused(finished, kinds, files, message):
    add_modules(finished, **kinds)
    add_files(finished, *files)
    with pytest.raises(UsageError, match=message):
        files_to_publish(finished)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("modules.json", b"{", r"modules.json is not JSON"),
        ("modules.json", b"[3]", r"modules.json: not a list of modules"),
        ("modules.json", b'[{"path": "1_Pooling"}]', r"modules.json: not a list of modules"),
        ("modules.json", b"\xff\xfe", r"modules.json is not JSON"),
        ("tokenizer.json", b"{}", r"finished: its tokenizer cannot be read"),
        ("README.md", b"caf\xe9", r"README.md: not UTF-8"),
        ("README.md", b"---\na: [\n---\ntext\n", r"README.md: no card can be read"),
    ],
)
def test_a_damaged_file_is_named_before_anything_is_published(finished, hub, name, content, message):
    (finished / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        push_folder(finished, "me/damaged")
    assert "me/damaged" not in hub.repositories


# ---- reading --------------------------------------------------------------------------------------------------------


def test_private_and_missing_models_are_one_clear_line(run, hub, command, tmp_path, monkeypatch):
    push_folder(run / "pretraining", "me/hidden", private=True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for name, token in (("me/hidden", None), ("me/hidden", hub.stranger), ("me/nothing", hub.token)):
        monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
        with pytest.raises(UsageError) as refused:
            export.main(["encoder", name, str(tmp_path / "out")])
        assert f"{name}: no model can be read there" in str(refused.value)
        assert "HF_TOKEN" in str(refused.value)
        assert "\n" not in str(refused.value)
        with pytest.raises(UsageError, match=r"HF_TOKEN"):
            run_pretraining.main(command(tmp_path / "run", "--tokenizer_name", name))
    monkeypatch.setenv("HF_TOKEN", hub.reader)
    export.main(["encoder", "me/hidden", str(tmp_path / "out")])
    assert AutoModel.from_pretrained(tmp_path / "out").config.hidden_size == 16


def test_the_server_says_what_is_missing_as_the_hub_does(run, hub):
    api = HfApi()
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("me/nothing")
    with pytest.raises(RevisionNotFoundError):
        api.model_info("me/harbour", revision="nothing")
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download("me/harbour", "nothing.txt")
    assert api.file_exists("me/harbour", "onnx/model.onnx") is False
    assert set(api.list_repo_files("me/harbour")) == EXPORTED | {".gitattributes"}


# ---- the trainer ----------------------------------------------------------------------------------------------------


@pytest.fixture
def trainer(hub, tokenizer, texts, tmp_path):
    """A trainer as in a custom script, after its only step."""
    ids = tokenizer(texts, truncation=True, max_length=24)["input_ids"]
    examples = Dataset.from_dict({"input_ids": ids, "length": [len(row) for row in ids]})
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text_config = {"model_type": "bert", "vocab_size": len(tokenizer), "pad_token_id": 0, **shape}
    args = TextJepaTrainingArguments(
        str(tmp_path / "run"),
        max_steps=1,
        per_device_train_batch_size=4,
        push_to_hub=True,
        hub_model_id=f"me/{tmp_path.name}",
        use_cpu=True,
        save_strategy="no",
    )
    trainer = TextJepaTrainer(
        TextJepaForPreTraining(TextJepaConfig(text_config=text_config)),
        args,
        DataCollatorForTextJepa(tokenizer),
        examples,
        examples,
        processing_class=tokenizer,
    )
    trainer.train()
    return trainer


def test_the_trainer_publishes_its_encoder_and_never_writes_a_stub(hub, trainer):
    own = Path(trainer.args.output_dir, "README.md")
    own.write_text("my own card")
    trainer.create_model_card(license="mit")
    repository = hub.repositories[trainer.hub_model_id]
    assert trainer.push_to_hub() == f"{hub.url}/{repository.name}/commit/{repository.at().oid}"
    assert own.read_text() == "my own card"
    plain_mean = {name for name in EXPORTED if "/" not in name} | {"1_Pooling/config.json"}  # of the trainer's model
    assert set(repository.files()) == plain_mean
    card = repository.files()["README.md"].decode()
    assert "1 steps of 4 texts" in card
    for unfinished in ("{{", "None", "More information needed", "fine-tuned version of"):
        assert unfinished not in card


def test_a_failing_upload_of_a_checkpoint_is_a_warning_and_one_at_a_time_is_enough(hub, trainer, caplog):
    hub.failures["commit"] = 403
    trainer._push_in_background()
    trainer._finish_current_push()
    assert f"Step 1: {trainer.hub_model_id} was not published: the Hub says 403" in caplog.text
    asked = len(hub.requests)
    trainer.push_in_progress = SimpleNamespace(is_done=lambda: False)
    trainer._push_in_background()
    assert len(hub.requests) == asked


def test_a_copy_for_the_hub_that_cannot_be_written_is_a_warning_and_removed(
    hub, trainer, tmp_path, monkeypatch, caplog
):
    """As in a small folder for temporary files."""

    def fill(folder):
        Path(folder, "model.safetensors").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "small").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "small"))
    monkeypatch.setattr(trainer, "export", fill)
    asked = len(hub.requests)
    trainer._push_in_background()
    assert f"Step 1: {trainer.hub_model_id} was not published: [Errno 28] No space left" in caplog.text
    assert list((tmp_path / "small").iterdir()) == []
    assert len(hub.requests) == asked
