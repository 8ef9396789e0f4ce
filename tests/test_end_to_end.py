"""From raw text to an encoder that opens everywhere: the script as a user runs it, then fresh processes.

Three runs are made once: hidden tokens predicted by a new encoder with a tokenizer trained on the texts, and by an
existing BERT on its own tokenizer; and the default, windows that predict the rest of their document.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import (
    AutoModel,
    AutoModelForPreTraining,
    AutoTokenizer,
    BertConfig,
    BertModel,
    RobertaConfig,
    RobertaModel,
)

import run_pretraining
import run_probe
from text_jepa import TextJepaForPreTraining, TextJepaModel
from text_jepa.cli import UsageError, parse_arguments
from text_jepa.data.corpus import CorpusArguments, load_corpus
from text_jepa.data.word_weights import count_words, load_word_weights, word_weights
from text_jepa.train import arguments as train_arguments
from text_jepa.train import closing, pretraining
from text_jepa.train.arguments import TextJepaTrainingArguments
from text_jepa.train.build import config_from, make_model
from text_jepa.train.closing import weights_of
from text_jepa.train.run_log import read_metrics


ROOT = Path(__file__).parents[1]
SENTENCES = ["the harbour of the town lies in the north", "a storm"]
QUICK = ["--max_steps", "6", "--logging_steps", "3", "--per_device_train_batch_size", "8", "--max_length", "32"]
QUICK += ["--save_steps", "3", "--num_masks", "2", "--max_eval_samples", "20", "--use_cpu"]
# A learning rate that float32 rounds to 0, which is refused.
NO_RATE = "1e-60"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """150 documents that differ, some of them longer than a text may be."""
    generator = np.random.default_rng(0)
    places, things = ["harbour", "mountain", "garden", "library"], ["storm", "bridge", "letter", "lantern"]
    path = tmp_path_factory.mktemp("corpus") / "train.jsonl"
    with path.open("w") as file:
        for number in range(150):
            sentences = [
                f"The {generator.choice(things)} number {number} was seen near the {generator.choice(places)}."
                for _ in range(generator.integers(1, 9))
            ]
            file.write(json.dumps({"text": " ".join(sentences)}) + "\n")
    return path


@pytest.fixture(scope="module")
def runs(corpus, tokenizer, tmp_path_factory):
    """Folders of the runs, each with the hidden states that the encoder had in training."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    new, static = ["--vocab_size", "300", "--text_config"], {"hidden_size": 32, "num_attention_heads": 2}
    starts = {
        "scratch": ["--objective", "jepa", "--preset", "tiny", *new, json.dumps(shape)],
        "from_encoder": ["--objective", "jepa", "--model_name_or_path", str(folder / "bert")],
        "default": [*new, json.dumps(static)],
    }
    found = {}
    for name, start in starts.items():
        arguments = ["--train_file", str(corpus), "--output_dir", str(folder / name), *start, *QUICK]
        found[name] = run_pretraining.main(arguments)
        model = TextJepaForPreTraining.from_pretrained(found[name] / "pretraining")
        batch = AutoTokenizer.from_pretrained(found[name])(SENTENCES, padding=True, return_tensors="pt")
        with torch.no_grad():
            for which, encoder in (("target", model.encoder_of_targets), ("context", model.model.encoder)):
                states = encoder(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
                np.save(found[name] / f"{which}.npy", states.numpy())
    return found


KINDS = ("scratch", "from_encoder", "default")


def fresh_process(code, folder, package=False):
    """Runs code in a new process outside the repository, by default as if our package were not installed."""
    hidden = (
        "" if package else "import sys\nfor name in ('text_jepa', 'configuration_text_jepa', 'modeling_text_jepa'):\n"
    )
    hidden += "" if package else "    sys.modules[name] = None\n"
    code = f"{hidden}import numpy as np, torch, warnings\ntorch.set_num_threads(1)\n{textwrap.dedent(code)}"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf_home"), "PYTHONPATH": ""}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


COMPARE = """
def same(states, which):
    expected = np.load(f"{run}/{which}.npy")
    assert np.abs(states.detach().numpy() - expected).max() < 1e-6

def load(auto, folder, **kwargs):
    model, info = auto.from_pretrained(folder, output_loading_info=True, **kwargs)
    # transformers adds a pooler, which nothing here has trained, to a bare BERT.
    added = "pooler" if run.endswith("from_encoder") else None
    problems = {key: [k for k in keys if added not in k.split(".")] for key, keys in info.items()}
    return model.eval(), {key: keys for key, keys in problems.items() if keys}
"""


def test_output_folder_holds_what_the_plan_says(runs):
    for kind in KINDS:
        names = {path.name for path in runs[kind].iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
        modules = {"1_WordWeights", "2_Pooling"} if kind == "default" else {"1_Pooling"}
        assert {"modules.json", "sentence_bert_config.json"} <= names
        assert {name for name in names if name[0].isdigit()} == modules
        assert {"README.md", "metrics.jsonl", "curves.png", "arguments.yaml", "pretraining", "checkpoint-6"} <= names
        assert "verdict.json" in names
        assert not {name for name in names if name.endswith((".bin", ".pt", ".py"))}
        config = json.loads((runs[kind] / "config.json").read_text())
        assert "auto_map" not in config
        assert config["model_type"] == {"scratch": "modernbert", "from_encoder": "bert", "default": "distilbert"}[kind]


@pytest.mark.slow
def test_exported_encoder_opens_without_package_and_flags(runs, tmp_path):
    """AutoModel, AutoTokenizer, pipeline, a classifier and SentenceTransformer on all runs, in one fresh process."""
    fresh_process(
        f"""
        from safetensors.torch import load_file
        from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline
        from sentence_transformers import SentenceTransformer
        sentences = {SENTENCES!r}
        for run in {[str(runs[kind]) for kind in KINDS]!r}:
            {textwrap.indent(COMPARE, " " * 12).lstrip()}
            model, problems = load(AutoModel, run)
            assert not problems, problems
            tokenizer = AutoTokenizer.from_pretrained(run)
            batch = tokenizer(sentences, padding=True, return_tensors="pt")
            states = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
            same(states, "target")
            first = torch.tensor(pipeline("feature-extraction", model=run, tokenizer=run)(sentences[0])[0])
            assert np.abs(first.numpy() - states[0].detach().numpy()).max() < 1e-5
            classifier, problems = load(AutoModelForSequenceClassification, run, num_labels=3)
            assert all("classifier" in k or "head" in k for keys in problems.values() for k in keys), problems
            assert classifier(input_ids=batch["input_ids"]).logits.shape == (2, 3)
            weights = batch["attention_mask"].unsqueeze(-1)
            is_default = run.endswith("default")
            if is_default:
                word_weights = load_file(run + "/1_WordWeights/model.safetensors")["emb_layer.weight"]
                weights = weights * word_weights[batch["input_ids"]]
            mean = ((states * weights).sum(1) / weights.sum(1)).detach().numpy()
            sentence_model = SentenceTransformer(run, device="cpu")
            assert sentence_model.max_seq_length == (512 if is_default else 32)
            assert np.abs(sentence_model.encode(sentences) - mean).max() < 1e-5
        """,
        tmp_path,
    )


@pytest.mark.slow
def test_pretraining_folder_opens_as_remote_code(runs, tmp_path):
    """Offline, without the package, twice in one process, and saved again."""
    fresh_process(
        f"""
        from transformers import AutoModel, AutoModelForPreTraining, AutoTokenizer, pipeline
        from transformers import AutoModelForSequenceClassification
        sentences = {SENTENCES!r}
        for run in {[str(runs[kind]) for kind in KINDS]!r}:
            {textwrap.indent(COMPARE, " " * 12).lstrip()}
            folder = run + "/pretraining"
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
            batch = tokenizer(sentences, padding=True, return_tensors="pt")
            inputs = dict(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            for again in range(2):
                model, problems = load(AutoModel, folder, trust_remote_code=True)
                assert not problems and type(model).__name__ == "TextJepaModel", problems
                same(model(**inputs).last_hidden_state, "context")
            full, problems = load(AutoModelForPreTraining, folder, trust_remote_code=True)
            assert not problems and type(full).__name__ == "TextJepaForPreTraining", problems
            same(full.encoder_of_targets(**inputs).last_hidden_state, "target")
            copy = "copy_of_" + run.split("/")[-1]
            full.save_pretrained(copy)
            model, problems = load(AutoModel, copy, trust_remote_code=True)
            assert not problems
            same(model(**inputs).last_hidden_state, "context")
            classifier, problems = load(AutoModelForSequenceClassification, folder, trust_remote_code=True)
            assert all(k.startswith("classifier.") for keys in problems.values() for k in keys), problems
            features = pipeline("feature-extraction", model=model, tokenizer=tokenizer)(sentences[0])
            assert len(features[0][0]) == 32
        """,
        tmp_path,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_package_opens_every_folder(runs, kind):
    """Importing the package registers the classes; our class also wraps the plain encoder."""
    batch = AutoTokenizer.from_pretrained(runs[kind])(SENTENCES, padding=True, return_tensors="pt")
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    folder = runs[kind] / "pretraining"
    for auto, expected in ((AutoModel, TextJepaModel), (AutoModelForPreTraining, TextJepaForPreTraining)):
        model, info = auto.from_pretrained(folder, output_loading_info=True)
        assert type(model) is expected
        assert not any(info.values())
    for cls, path, which in ((TextJepaModel, folder, "context"), (TextJepaModel, runs[kind], "target")):
        with torch.no_grad():
            states = cls.from_pretrained(path)(**inputs).last_hidden_state.numpy()
        np.testing.assert_allclose(states, np.load(runs[kind] / f"{which}.npy"), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_tensors_are_neither_doubled_nor_missing(runs, kind):
    from safetensors import safe_open

    def names(path):
        with safe_open(path / "model.safetensors", "pt") as file:
            return set(file.keys())

    exported, complete = names(runs[kind]), names(runs[kind] / "pretraining")
    if kind == "default":
        encoders = ["model.encoder."]
        parts = {"model", "document_predictor", "lexical_space", "pooler", "running"}
    else:
        encoders = ["model.encoder.", "target_encoder."]
        parts = {"model", "target_encoder", "predictor", "latent_head", "token_head", "running"}
    for prefix in encoders:
        assert {name.removeprefix(prefix) for name in complete if name.startswith(prefix)} == exported
    assert {name.split(".")[0] for name in complete} == parts
    assert complete == names(runs[kind] / "checkpoint-6")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--target_encoder_type", "online", "--sentence_loss_type", "cosine"], "online targets collapse"),
        (["--token_loss_weight", "-1"], "token_loss_weight must be at least 0"),
    ],
)
def test_an_objective_that_a_checkpoint_cannot_have_is_refused_before_the_first_step(
    runs, corpus, tmp_path, flags, message
):
    path = str(runs["scratch"] / "pretraining")
    arguments = ["--train_file", str(corpus), "--model_name_or_path", path, *QUICK, *flags]
    with pytest.raises(UsageError, match=message):
        run_pretraining.main([*arguments, "--output_dir", str(tmp_path / "on")])
    assert not (tmp_path / "on").exists()


def test_an_encoder_of_another_depth_takes_the_kinds_of_layers_of_that_depth(runs):
    """A configuration names a kind for each layer; with their number alone it would not fit."""
    config = config_from(str(runs["scratch"]), {}, {"num_hidden_layers": 3}, {}, {})
    assert len(config.text_config.layer_types) == 3


@pytest.mark.parametrize(
    "source", ["scratch/pretraining", "scratch", "from_encoder/pretraining", "default/pretraining", "default"]
)
def test_training_continues_from_any_folder(runs, corpus, tmp_path, source):
    """A pretraining folder keeps its predictor; an exported encoder gets a new one."""
    kind, _, rest = source.partition("/")
    path = runs[kind] / rest
    still = [
        "--learning_rate",
        NO_RATE,
        "--ema_decay_start",
        "1",
        "--ema_decay_end",
        "1",
        "--token_loss_weight",
        "0.5",
    ]
    still += ["--objective", "jepa"] if source == "scratch" else []
    arguments = ["--train_file", str(corpus), "--model_name_or_path", str(path), *QUICK, *still]
    output = run_pretraining.main([*arguments, "--output_dir", str(tmp_path / "on")])
    before, after = TextJepaModel.from_pretrained(path), TextJepaModel.from_pretrained(output / "pretraining")
    for name, value in before.named_parameters():
        torch.testing.assert_close(after.get_parameter(name), value)
    complete = TextJepaForPreTraining.from_pretrained(output / "pretraining")
    assert complete.config.token_loss_weight == 0.5
    if rest and kind != "default":
        old = TextJepaForPreTraining.from_pretrained(path)
        assert torch.equal(old.predictor.mask_tokens, complete.predictor.mask_tokens)
    if kind == "default":
        old = TextJepaForPreTraining.from_pretrained(runs[kind] / "pretraining")
        assert torch.equal(complete.word_weights, old.word_weights)
        for name in ("document_predictor.output.weight", "lexical_space.vectors"):
            assert torch.equal(complete.state_dict()[name], old.state_dict()[name]) == bool(rest), name
        assert np.array_equal(load_word_weights(output), load_word_weights(runs[kind]))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("scratch", {"sentence_loss_type": "infonce", "token_loss_weight": 0.1}),
        ("default", {"document_loss_weight": 1.0, "latent_loss_weight": 0.0, "pooling": "idf", "view": "rest"}),
    ],
)
def test_arguments_file_repeats_the_run(runs, tmp_path, kind, settings):
    path = runs[kind] / "arguments.yaml"
    assert "hub_token" not in yaml.safe_load(path.read_text())
    output = run_pretraining.main([str(path), "--output_dir", str(tmp_path / "again")])
    first, second = read_metrics(runs[kind]), read_metrics(output)
    assert [r["loss"] for r in first if "loss" in r] == [r["loss"] for r in second if "loss" in r]
    # Defaults change; what the run did stays.
    kept = yaml.safe_load(path.read_text())
    assert {name: kept[name] for name in settings} == settings


def test_model_card_is_complete_and_true(runs):
    card = (runs["from_encoder"] / "README.md").read_text()
    last = {name: value for record in read_metrics(runs["from_encoder"]) for name, value in record.items()}
    assert f"| relative loss | {last['relative_loss']:.4g} |" in card
    assert f"| held-out loss | {last['eval_loss']:.4g} |" in card
    assert "train.jsonl" in card
    assert "BertModel" in card
    assert "\npython run_pretraining.py --train_file" in card
    for unfinished in ("{{", "}}", "None", "More information needed", "TODO"):
        assert unfinished not in card


@pytest.mark.parametrize("share", [0.5, None])
def test_a_run_exports_weights_between_its_start_and_its_end_and_keeps_its_end(
    corpus, tmp_path, monkeypatch, capsys, share
):
    """The share is what was chosen, or the end without merging; the comparison is printed and written."""
    starts = []

    def keep(model):
        starts.append(weights_of(model))
        return starts[-1]

    monkeypatch.setattr(pretraining, "weights_of", keep)
    monkeypatch.setattr(closing, "choose_share_of_run", lambda *_: (share, {share: 7.5}))
    arguments = ["--train_file", str(corpus), "--vocab_size", "300", *QUICK, "--output_dir", str(tmp_path / "run")]
    arguments += ["--text_config", '{"hidden_size": 32, "num_attention_heads": 2}']
    output = run_pretraining.main([*arguments, *([] if share else ["--merge", "false"])])
    (start,) = starts
    exported = AutoModel.from_pretrained(output).state_dict()
    end = TextJepaModel.from_pretrained(output / "pretraining").encoder.state_dict()
    for name, value in end.items():
        torch.testing.assert_close(exported[name], torch.lerp(start[name], value, share or 1.0))
    words = "embeddings.word_embeddings.weight"
    assert not torch.allclose(start[words], end[words], atol=1e-4)
    found = json.loads((output / "verdict.json").read_text())
    assert found["share"] == (share or 1.0)
    assert found["mean_reciprocal_rank_by_share"] == ({"0.5": 7.5} if share else {})
    assert found["verdict"] in capsys.readouterr().out
    assert found["verdict"] in (output / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["jepa", "documents"])
def test_streaming_run_trains_and_exports(corpus, tmp_path, objective):
    """200 documents are held out, and the others train: each of these is counted once for weights of words."""
    texts = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    many = tmp_path / "many.jsonl"
    many.write_text(
        "".join(json.dumps({"text": f"{number} {texts[number % len(texts)]}"}) + "\n" for number in range(400))
    )
    arguments = ["--streaming", "--train_file", str(many), "--preset", "tiny", "--vocab_size", "300"]
    arguments += ["--objective", objective, "--output_dir", str(tmp_path / "run")]
    output = run_pretraining.main([*arguments, *QUICK])
    assert AutoModel.from_pretrained(output).config.model_type == "modernbert"
    assert any("eval_loss" in record for record in read_metrics(output))
    if objective == "documents":
        tokenizer = AutoTokenizer.from_pretrained(output)
        stream = load_corpus(CorpusArguments([str(many)], streaming=True)).splits["train"]
        training_texts = [row["text"] for row in stream]
        assert len(training_texts) == 200
        expected = word_weights(count_words(training_texts, tokenizer), tokenizer)
        np.testing.assert_allclose(load_word_weights(output), expected, atol=1e-6)


@pytest.mark.slow
def test_new_encoder_takes_the_shape_of_a_configuration(runs, corpus, tmp_path):
    """`--config_name` and `--init from_config` build the architecture anew."""
    bert = runs["scratch"].parent / "bert"
    for name, flags in (
        ("config", ["--config_name", str(bert), "--tokenizer_name", str(bert)]),
        ("init", ["--model_name_or_path", str(bert), "--init", "from_config"]),
        ("ours", ["--config_name", str(runs["from_encoder"] / "pretraining"), "--tokenizer_name", str(bert)]),
    ):
        arguments = ["--train_file", str(corpus), "--output_dir", str(tmp_path / name), *flags, *QUICK]
        exported = AutoModel.from_pretrained(run_pretraining.main(arguments))
        assert exported.config.model_type == "bert"
        assert exported.config.hidden_size == 32
        original = BertModel.from_pretrained(bert).embeddings.word_embeddings.weight
        assert not torch.allclose(exported.embeddings.word_embeddings.weight, original, atol=0.05)


@pytest.mark.parametrize("start", ["new", "trained"])
def test_both_encoders_take_the_attention_that_was_asked_for(runs, start):
    folder = str(runs["scratch"].parent / "bert")
    chosen = {"config_name": folder} if start == "new" else {"model_name_or_path": folder}
    model_args = train_arguments.ModelArguments(objective="jepa", attn_implementation="eager", **chosen)
    data_args, objective_args = train_arguments.DataArguments(), train_arguments.ObjectiveArguments()
    model = make_model(model_args, data_args, objective_args, AutoTokenizer.from_pretrained(folder))
    assert model.model.encoder.config._attn_implementation == "eager"
    assert model.target_encoder.config._attn_implementation == "eager"


@pytest.mark.parametrize("init", ["embeddings", "layers"])
def test_a_run_begins_with_the_part_of_a_checkpoint_that_was_asked_for(runs, corpus, tmp_path, init):
    """The matrix of input embeddings, or all but this for a vocabulary of the corpus. Nothing learns here."""
    bert = runs["scratch"].parent / "bert"
    still = ["--objective", "jepa", "--learning_rate", NO_RATE, "--ema_decay_start", "1", "--ema_decay_end", "1"]
    still += ["--vocab_size", "150"] if init == "layers" else ["--text_config", '{"num_hidden_layers": 3}']
    arguments = ["--train_file", str(corpus), "--model_name_or_path", str(bert), "--init", init, *QUICK, *still]
    output = run_pretraining.main([*arguments, "--output_dir", str(tmp_path / "run")])
    model = TextJepaForPreTraining.from_pretrained(output / "pretraining")
    trained = dict(BertModel.from_pretrained(bert, add_pooling_layer=False).named_parameters())
    found = dict(model.model.encoder.named_parameters())
    for name, value in model.target_encoder.named_parameters():
        assert torch.equal(value, found[name]), name
    words = "embeddings.word_embeddings.weight"
    assert len(found[words]) == len(AutoTokenizer.from_pretrained(output)) or init == "embeddings"
    assert (len(found[words]) == len(trained[words])) == (init == "embeddings")
    assert (found.keys() == trained.keys()) == (init == "layers")
    # Biases and norms of a new layer are those of every new layer, also of the checkpoint's.
    for name in [name for name in trained if trained[name].dim() == 2]:
        assert torch.equal(found[name], trained[name]) == ((name == words) == (init == "embeddings")), name


def model_from(folder, tokenizer, *flags):
    """The model that a run would train, of an encoder and a tokenizer."""
    classes = (
        train_arguments.ModelArguments,
        train_arguments.DataArguments,
        train_arguments.ObjectiveArguments,
    )
    groups = parse_arguments(classes, ["--model_name_or_path", str(folder), "--max_length", "32", *flags], "")
    return make_model(*groups, tokenizer)


def test_trained_layers_see_the_same_positions_whatever_number_the_padding_has(tokenizer, tmp_path):
    """RoBERTa counts them from behind it: 1 in the checkpoint, 0 in the other tokenizer."""
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = RobertaConfig(vocab_size=len(tokenizer), pad_token_id=1, max_position_embeddings=66, **shape)
    trained = RobertaModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        trained.embeddings.position_embeddings.weight.mul_(20)
    trained.save_pretrained(tmp_path)
    assert tokenizer.pad_token_id == 0
    encoder = model_from(tmp_path, tokenizer, "--init", "layers").eval().model.encoder
    ids = torch.arange(5, 45).view(2, 20)
    with torch.no_grad():
        assert not torch.allclose(encoder(ids).last_hidden_state, trained(ids).last_hidden_state, atol=1e-3)
        encoder.get_input_embeddings().weight.copy_(trained.get_input_embeddings().weight)
        torch.testing.assert_close(encoder(ids).last_hidden_state, trained(ids).last_hidden_state)


def test_trained_embeddings_of_another_width_are_refused(runs, tokenizer):
    flags = ["--init", "embeddings", "--text_config", '{"hidden_size": 16}']
    with pytest.raises(UsageError, match=r"--text_config: the trained input embeddings are \d+ x 32, .* be \d+ x 16$"):
        model_from(runs["scratch"].parent / "bert", tokenizer, *flags)


@pytest.mark.parametrize("init", ["from_config", "embeddings", "layers"])
def test_new_weights_are_in_full_precision_beside_those_of_a_half_one(runs, tokenizer, tmp_path, init):
    BertModel.from_pretrained(runs["scratch"].parent / "bert").to(torch.bfloat16).save_pretrained(tmp_path)
    model = model_from(tmp_path, tokenizer, "--init", init)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_context_encoder_is_exported_on_request(corpus, runs, tmp_path):
    bert = runs["scratch"].parent / "bert"
    arguments = ["--train_file", str(corpus), "--model_name_or_path", str(bert), "--export_encoder", "context"]
    arguments += ["--objective", "jepa"]
    output = run_pretraining.main([*arguments, "--output_dir", str(tmp_path / "run"), *QUICK])
    context = TextJepaModel.from_pretrained(output / "pretraining").encoder
    for name, value in AutoModel.from_pretrained(output, add_pooling_layer=False).named_parameters():
        assert torch.equal(context.get_parameter(name), value)


@pytest.mark.parametrize("script", ["run_pretraining.py", "run_probe.py"])
def test_help_is_shown(script):
    module = {"run_pretraining.py": run_pretraining, "run_probe.py": run_probe}[script]
    with pytest.raises(SystemExit) as stop:
        module.main(["--help"])
    assert stop.value.code == 0


def test_preparing_ends_before_training(corpus, tmp_path, capsys):
    flags = [
        "--preset",
        "tiny",
        "--train_file",
        str(corpus),
        "--output_dir",
        str(tmp_path / "run"),
        "--vocab_size",
        "300",
    ]
    output = run_pretraining.main([*flags, "--prepare_only", *QUICK])
    assert "are tokenized and cached" in capsys.readouterr().out
    assert [path.name for path in output.iterdir()] == ["tokenizer"]
    run_pretraining.main([*flags, "--resume_from_checkpoint", "auto", *QUICK])
    assert (output / "README.md").exists()


README = (ROOT / "README.md").read_text()


def blocks_of(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("block", blocks_of("python"), ids=lambda block: block.splitlines()[0])
def test_python_of_the_readme_runs_and_prints_what_it_says(block, runs, capsys):
    """On a small encoder: only the width in the printed shapes differs."""
    exec(block.replace("runs/tiny_cpu", str(runs["scratch"])), {})
    said = [line.removeprefix("# ") for line in block.splitlines() if line.startswith(("# torch.Size", "# ("))]
    printed = capsys.readouterr().out
    for line in said:
        assert re.fullmatch(re.sub(r"\d+", r"\\d+", re.sub(r"([\[\]()])", r"\\\1", line)), printed.strip())


COMMANDS = [
    line.split("#")[0].strip() for block in blocks_of("bash") for line in block.replace("\\\n", "").splitlines()
]


@pytest.mark.parametrize("command", [line for line in COMMANDS if "run_pretraining.py" in line])
def test_flags_of_the_readme_exist(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = shlex.split(command.split("run_pretraining.py")[1])
    classes = (
        train_arguments.ModelArguments,
        train_arguments.DataArguments,
        train_arguments.ObjectiveArguments,
    )
    parse_arguments((*classes, TextJepaTrainingArguments), arguments, "")


def test_make_targets_and_files_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    for command in COMMANDS:
        if command.startswith("make "):
            assert f"\n{command.split()[1]}: " in makefile
    for name in re.findall(r"^(?:text_jepa/)?\w+\.py(?= )", README, re.MULTILINE):
        assert (ROOT / name).exists(), name
    assert "@@" not in README
