"""An encoder that is named is whole, knows words and needs no code of its own, or every command refuses it."""

import json

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    CanineConfig,
    CanineModel,
    CLIPConfig,
    CLIPModel,
    DPRConfig,
    DPRQuestionEncoder,
    FunnelBaseModel,
    FunnelConfig,
    IBertConfig,
    IBertModel,
    LxmertConfig,
    LxmertModel,
    ModernBertConfig,
    ModernBertModel,
    PerceiverConfig,
    PerceiverModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    XmodConfig,
    XmodModel,
)

import run_pretraining
from text_jepa import TextJepaForPreTraining, TextJepaModel, names
from text_jepa.cli import UsageError
from text_jepa.data.tokenization import train_tokenizer
from text_jepa.encoders import opening, sentence_head
from text_jepa.encoders.embeddings import load_trained, open_encoder
from text_jepa.encoders.opening import read_config, read_tokenizer, readable
from text_jepa.names import check_name
from text_jepa.probe.finetuning import finetune
from text_jepa.probe.tasks import load_task_file
from text_jepa.share.export import export_sentence_transformer
from text_jepa.share.hub import files_to_publish


SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 90868376\n"


@pytest.fixture
def encoder(tmp_path, tokenizer):
    """A whole folder."""
    folder = tmp_path / "encoder"
    BertModel(BertConfig(vocab_size=len(tokenizer), **SHAPE)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rename(folder, change):
    """Gives the weights other names; `None` drops one."""
    path = folder / "model.safetensors"
    weights = {change(name): value for name, value in load_file(path).items()}
    weights.pop(None, None)
    save_file(weights, path, {"format": "pt"})


def change(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def remove_tokenizer(folder):
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        (folder / name).unlink(missing_ok=True)


def double_layers(folder):
    change(folder / "config.json", num_hidden_layers=1)


def point(name):
    return lambda folder: (folder / name).write_text(POINTER)


def other_vocabulary(folder):
    """A tokenizer of more tokens than there are rows."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    tokenizer.add_tokens([f"word{number}" for number in range(400)])
    tokenizer.save_pretrained(folder)


def break_tokenizer(folder):
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "Nonsense"}}')


DAMAGES = {
    "weights of DistributedDataParallel": (
        lambda folder: rename(folder, lambda name: f"module.{name}"),
        ["module.", "missing"],
    ),
    "weights of a wrapper": (lambda folder: rename(folder, lambda name: f"encoder.{name}"), ["missing"]),
    "weights of torch.compile": (lambda folder: rename(folder, lambda name: f"_orig_mod.{name}"), ["missing"]),
    "one weight missing": (
        lambda folder: rename(folder, lambda name: None if name.endswith("layer.1.output.dense.bias") else name),
        ["1 weights", "layer.1.output.dense.bias"],
    ),
    "more layers than configured": (double_layers, ["layer.1.", "fewer layers"]),
    "no tokenizer": (remove_tokenizer, ["tokenizer"]),
    "tokenizer of other tokens": (other_vocabulary, ["tokens, the encoder"]),
    "broken tokenizer": (break_tokenizer, ["tokenizer"]),
    "pointer to weights": (point("model.safetensors"), ["model.safetensors", "git lfs pull"]),
    "pointer to a tokenizer": (point("tokenizer.json"), ["tokenizer.json", "git lfs pull"]),
    "pointer to a configuration": (point("config.json"), ["config.json", "git lfs pull"]),
    "cut weights": (lambda folder: (folder / "model.safetensors").write_bytes(b"\x08\x00\x00"), ["no model"]),
    "foreign architecture": (
        lambda folder: change(folder / "config.json", model_type="lex", auto_map={"AutoModel": "lex.Lex"}),
        ["'lex'", "requires custom code"],
    ),
    "a list in place of the code of the folder": (
        lambda folder: change(folder / "config.json", auto_map=["own.M"]),
        ["auto_map", "not an object"],
    ),
    "configuration of wrong types": (
        lambda folder: change(folder / "config.json", hidden_size="wide"),
        ["hidden_size"],
    ),
}
# What a folder of a foreign head has, or of older tools, and may.
HARMLESS = {
    "weights of a masked language model": lambda folder: BertForMaskedLM(
        BertConfig.from_pretrained(folder, trust_remote_code=False)
    ).save_pretrained(folder),
    "no pooler": lambda folder: rename(folder, lambda name: None if "pooler" in name else name),
    "pointers of forms that are not read": lambda folder: [
        (folder / name).write_text(POINTER) for name in ("pytorch_model.bin", "tf_model.h5", "vocab.txt", "model.onnx")
    ],
    "code of an architecture that transformers has": lambda folder: change(
        folder / "config.json", auto_map={"AutoModel": "modeling_x.X"}
    ),
}


def assert_line(error, folder, fragments):
    line = str(error.value)
    assert "\n" not in line
    assert str(folder) in line or "encoder" in line
    assert [fragment for fragment in fragments if fragment not in line] == [], line


@pytest.mark.parametrize("name", DAMAGES)
def test_encoder_that_is_not_whole_is_refused_when_it_is_opened(encoder, name):
    damage, fragments = DAMAGES[name]
    damage(encoder)
    with pytest.raises(UsageError) as refused:
        open_encoder(str(encoder))
    assert_line(refused, encoder, fragments if fragments != ["no model"] else [])


@pytest.mark.parametrize("name", DAMAGES)
def test_encoder_that_is_not_whole_is_not_trained(encoder, tmp_path, name):
    damage, fragments = DAMAGES[name]
    damage(encoder)
    (tmp_path / "texts.txt").write_text("".join(f"The keeper of light {i} climbed down.\n" for i in range(60)))
    argv = f"--model_name_or_path {encoder} --train_file {tmp_path}/texts.txt --max_length 16 --max_steps 1 --use_cpu"
    argv += f" --cache_dir {tmp_path}/cache --output_dir {tmp_path}/run"
    with pytest.raises(UsageError) as refused:
        run_pretraining.main(argv.split())
    assert_line(refused, encoder, fragments if fragments != ["no model"] else ["cannot be built"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", DAMAGES)
def test_encoder_that_is_not_whole_is_not_fine_tuned(encoder, tmp_path, name):
    damage, fragments = DAMAGES[name]
    damage(encoder)
    rows = [{"text": f"the boat {i} was {'good' if i % 2 else 'bad'}", "label": i % 2} for i in range(30)]
    (tmp_path / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = load_task_file(str(tmp_path / "task.jsonl"))
    with pytest.raises(UsageError) as refused:
        finetune(str(encoder), task, overrides={"max_steps": "1"})
    assert_line(refused, encoder, fragments[-1:] if fragments != ["no model"] else ["no encoder"])


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_not_needed_may_be_missing_or_too_much(encoder, name):
    HARMLESS[name](encoder)
    model, _ = load_trained(str(encoder))
    assert model.config.model_type == "bert"
    TextJepaForPreTraining.from_encoder(str(encoder))


@pytest.mark.parametrize("open_", [TextJepaForPreTraining.from_encoder, TextJepaModel.from_pretrained])
def test_missing_weights_are_refused_in_python(encoder, open_):
    rename(encoder, lambda name: f"module.{name}")
    with pytest.raises(ValueError, match="would be random"):
        open_(str(encoder))


def test_pretraining_model_without_a_weight_of_its_encoder_is_refused(make_model, tokenizer, tmp_path):
    model = make_model({"model_type": "bert", "vocab_size": len(tokenizer), **SHAPE})
    model.save_pretrained(tmp_path / "whole")
    tokenizer.save_pretrained(tmp_path / "whole")
    load_trained(str(tmp_path / "whole"))
    lost = "model.encoder.encoder.layer.0.output.dense.bias"
    rename(tmp_path / "whole", lambda name: None if name == lost else name)
    with pytest.raises(UsageError, match="1 weights of the encoder are missing"):
        load_trained(str(tmp_path / "whole"))


def test_more_layers_are_found_in_every_architecture(tokenizer, tmp_path):
    config = ModernBertConfig(vocab_size=len(tokenizer), pad_token_id=0, **SHAPE)
    ModernBertModel(config).save_pretrained(tmp_path / "modernbert")
    tokenizer.save_pretrained(tmp_path / "modernbert")
    change(tmp_path / "modernbert/config.json", num_hidden_layers=1, layer_types=["full_attention"])
    with pytest.raises(UsageError, match="fewer layers"):
        load_trained(str(tmp_path / "modernbert"))


def test_the_encoder_of_t5_is_refused_for_what_it_is(tokenizer, tmp_path):
    """Not for the weights of the decoder, which it lacks."""
    shape = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    T5EncoderModel(T5Config(vocab_size=len(tokenizer), **shape)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="t5 is an encoder-decoder model"):
        open_encoder(str(tmp_path))


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_tokenizers_of_every_kind_have_words(tmp_path, texts, kind):
    train_tokenizer(texts, vocab_size=300, max_length=64, kind=kind).save_pretrained(tmp_path)
    assert len(read_tokenizer(str(tmp_path))) > 100


# Tokenizer models that know the letters and words of the trial texts, and have no token for anything else.
LETTERS = {token: index for index, token in enumerate(["[PAD]", *"atexndlogr", *(f"##{x}" for x in "atexndlogr")])}
WITHOUT_UNKNOWN = {
    "wordpiece": models.WordPiece(LETTERS, unk_token="[UNK]"),
    "words": models.WordLevel({"[PAD]": 0, "a": 1, "text": 2, "and": 3, "longer": 4}, unk_token="[UNK]"),
    "unigrams": models.Unigram([(letter, -1.0) for letter in LETTERS]),
    "bpe": models.BPE(LETTERS, [], unk_token="<unk>"),
}


@pytest.mark.parametrize("kind", WITHOUT_UNKNOWN)
def test_tokenizer_that_fails_at_characters_it_does_not_know_is_refused(tmp_path, kind):
    backend = Tokenizer(WITHOUT_UNKNOWN[kind])
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]").save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"its tokenizer cannot be used \(.*(unk|UNK)"):
        read_tokenizer(str(tmp_path))


def test_dropout_of_a_tokenizer_is_not_used(tmp_path, texts, caplog):
    tokenizer = train_tokenizer(texts, vocab_size=300, kind="bpe")
    tokenizer.backend_tokenizer.model.dropout = 0.5
    tokenizer.save_pretrained(tmp_path)
    for _ in range(2):
        tokenizer = read_tokenizer(str(tmp_path))
    assert len({tuple(tokenizer(texts[0])["input_ids"]) for _ in range(20)}) == 1
    assert caplog.text.count("the dropout of its tokenizer (0.5) is not used") == 1


def test_adapters_of_peft_are_named_with_the_remedy(encoder):
    """transformers would put them into the encoder beside them, or not, as PEFT is installed or not."""
    (encoder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "someone/base"}')
    for opens in (read_config, open_encoder):
        with pytest.raises(UsageError, match=r"contains PEFT adapters \(adapter_config.json\).*merge_and_unload"):
            opens(str(encoder))
    with pytest.raises(UsageError, match="contains PEFT adapters"):
        files_to_publish(encoder)


def test_code_that_is_not_run_is_told_once(encoder, caplog):
    for name, entry in (
        ("config.json", {"AutoModel": "own.M"}),
        ("tokenizer_config.json", {"AutoTokenizer": "own.T"}),
    ):
        content = json.loads((encoder / name).read_text())
        (encoder / name).write_text(json.dumps({**content, "auto_map": entry}))
    for _ in range(2):
        tokenizer = open_encoder(str(encoder)).tokenizer
    told = [record.message for record in caplog.records if "not run" in record.message]
    assert len(told) == 2
    assert "it is opened as the" in told[0]
    assert "the code of its tokenizer is not run" in told[1]
    tokenizer.save_pretrained(encoder / "again")
    assert "auto_map" not in json.loads((encoder / "again" / "tokenizer_config.json").read_text())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(encoder, value):
    """Also where no text of a run is long enough to use them."""
    weights = load_file(encoder / "model.safetensors")
    name = next(name for name in weights if name.endswith("position_embeddings.weight"))
    weights[name][-1] = value
    save_file(weights, encoder / "model.safetensors", metadata={"format": "pt"})
    for opens in (load_trained, TextJepaForPreTraining.from_encoder):
        with pytest.raises(ValueError, match=r"position_embeddings.weight holds numbers that are not finite"):
            opens(str(encoder))


# Models that cannot be run on ids and a mask alone, and what they say.
NO_ENCODERS = {
    "canine": (CanineModel, lambda words: CanineConfig(**SHAPE), "get_input_embeddings"),
    "clip": (
        CLIPModel,
        lambda words: CLIPConfig(
            text_config={"vocab_size": words, **SHAPE},
            vision_config={"image_size": 8, "patch_size": 4, **SHAPE},
        ),
        "get_input_embeddings",
    ),
    "dpr": (DPRQuestionEncoder, lambda words: DPRConfig(vocab_size=words, **SHAPE), "last_hidden_state"),
    "funnel": (
        FunnelBaseModel,
        lambda words: FunnelConfig(vocab_size=words, block_sizes=[1, 1], d_model=16, n_head=2, d_head=8, d_inner=32),
        "have the shape",
    ),
    "ibert": (IBertModel, lambda words: IBertConfig(vocab_size=words, **SHAPE), "num_embeddings"),
    "lxmert": (
        LxmertModel,
        lambda words: LxmertConfig(
            vocab_size=words,
            hidden_size=16,
            intermediate_size=32,
            num_attention_heads=2,
            l_layers=1,
            x_layers=1,
            r_layers=1,
        ),
        "visual_feats",
    ),
    "perceiver": (
        PerceiverModel,
        lambda words: PerceiverConfig(
            vocab_size=words,
            num_latents=2,
            d_latents=16,
            d_model=16,
            num_self_attends_per_block=1,
            num_self_attention_heads=2,
            num_cross_attention_heads=2,
        ),
        "num_embeddings",
    ),
    "xmod": (XmodModel, lambda words: XmodConfig(vocab_size=words, **SHAPE), "Input language unknown"),
}


@pytest.mark.parametrize("name", NO_ENCODERS)
def test_a_model_that_cannot_be_run_on_texts_alone_is_one_line(tmp_path, tokenizer, name):
    """Training has its own check, which knows why."""
    model_class, make_config, reason = NO_ENCODERS[name]
    model_class(make_config(len(tokenizer))).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=rf"it cannot be run as an encoder of texts; use one such as .*{reason}"):
        open_encoder(str(tmp_path))


def test_states_that_are_not_finite_are_named_when_an_encoder_is_opened(encoder):
    """Its weights are."""
    weights = load_file(encoder / "model.safetensors")
    weights["embeddings.word_embeddings.weight"].fill_(3e38)
    save_file(weights, encoder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match="its states are not finite"):
        load_trained(str(encoder))


def test_attention_that_runs_on_a_gpu_only_is_not_tried_on_the_cpu(encoder, monkeypatch):
    model, tokenizer = load_trained(str(encoder))
    monkeypatch.setattr(model, "forward", None)
    model.config._attn_implementation = "flash_attention_2"
    opening.check_states(str(encoder), model, tokenizer)


@pytest.mark.parametrize("kind", ["StaticEmbedding", "BoW", "CLIPModel"])
@pytest.mark.parametrize("config", ['{"model_type": "model2vec"}', "{}", None])
def test_a_folder_without_a_transformer_names_its_first_module(tmp_path, kind, config):
    """Not its config.json, of which transformers says that its own version is too old."""
    modules = [{"idx": 0, "name": "0", "path": f"0_{kind}", "type": f"sentence_transformers.models.{kind}"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    for pooling in (None, "mean"):
        with pytest.raises(UsageError, match=rf"first module \(modules.json\) is {kind}, not a Transformer"):
            open_encoder(str(tmp_path), pooling=pooling)


def test_a_pooling_that_is_named_opens_an_encoder_whatever_its_first_module(encoder):
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.CLIPModel"}]
    (encoder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UsageError, match="CLIPModel is not supported; pass --pooling mean"):
        open_encoder(str(encoder))
    assert open_encoder(str(encoder), pooling="mean").pooling == "mean"


def test_weights_of_another_shape_say_so(encoder):
    content = json.loads((encoder / "config.json").read_text())
    name = next(name for name in ("intermediate_size", "hidden_dim") if name in content)
    (encoder / "config.json").write_text(json.dumps({**content, name: content[name] * 2}))
    with pytest.raises(UsageError, match="the shapes of its weights do not match its config"):
        load_trained(str(encoder))


def test_a_flag_that_gives_weights_another_shape_is_told(make_model, tokenizer, tmp_path):
    make_model({"model_type": "bert", "vocab_size": len(tokenizer), **SHAPE}).save_pretrained(tmp_path / "complete")
    tokenizer.save_pretrained(tmp_path / "complete")
    (tmp_path / "texts.txt").write_text("".join(f"The keeper of light {i} climbed down.\n" for i in range(60)))
    argv = f"--model_name_or_path {tmp_path}/complete --train_file {tmp_path}/texts.txt --max_length 16 --max_steps 1"
    argv += f" --use_cpu --cache_dir {tmp_path}/cache --output_dir {tmp_path}/run --pred_hidden_size 24"
    with pytest.raises(UsageError, match=r"nor the flags of this run; leave out flags .* --pred_hidden_size"):
        run_pretraining.main(argv.split())


def test_errors_of_any_library_are_one_line():
    class Strange(Exception):  # tokenizers raises no better ones
        pass

    with pytest.raises(UsageError, match=r"^here: no model can be read there \(odd\)$"), readable("here"):
        raise Strange("odd\nand more")


@pytest.mark.parametrize("length", ['"long"', "-3", "0.5", "{}"])
def test_a_length_that_is_no_number_of_tokens_is_refused(encoder, length):
    (encoder / "sentence_bert_config.json").write_text(f'{{"max_seq_length": {length}}}')
    if length == "{}":  # as good as none
        assert open_encoder(str(encoder), pooling="mean").max_length > 1
        return
    with pytest.raises(UsageError, match="no number of tokens"):
        open_encoder(str(encoder), pooling="mean")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "runs/notes",
            r"runs/notes: .*no such folder in runs; .*`hf download runs/notes` first; did you mean 'note'\?",
        ),
        ("./notes", "no such folder"),
        ("../notes", "no such folder"),
        ("/no/such/folder", "no such folder"),
        ("runs/deep/er", "no such folder"),
        ("C:\\\\notes", "no such folder"),
        ("runs/text.txt", "a file; pass the folder"),
        ("~", "no such folder; write /"),
        ("my notes", "no such folder"),
    ],
)
def test_a_path_where_no_folder_is_is_told_without_asking_the_hub(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "note").mkdir(parents=True)
    (tmp_path / "runs" / "text.txt").touch()
    monkeypatch.setattr(opening.PretrainedConfig, "get_config_dict", None)  # which would ask it
    monkeypatch.setattr(opening.AutoTokenizer, "from_pretrained", None)
    for read in (read_config, read_tokenizer):
        with pytest.raises(UsageError, match=message), readable(name):
            read(name)


def test_a_name_that_the_hub_can_have_is_asked_for(tmp_path, monkeypatch):
    """Also beside a folder of its owner, if it has been downloaded."""
    monkeypatch.chdir(tmp_path)
    check_name("someone/encoder")
    check_name("bert-base-uncased")
    (tmp_path / "someone").mkdir()
    with pytest.raises(ValueError, match="no such folder in someone"):
        check_name("someone/encoder")
    snapshot = tmp_path / "hub" / "models--someone--encoder" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").touch()
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0")
    check_name("someone/encoder", str(tmp_path / "hub"))


def test_a_name_is_asked_for_once_where_the_hub_cannot_be_reached(tmp_path, monkeypatch):
    """Downloads ask for half a minute, mostly for a folder whose name is wrong."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    asked = []

    def ask(url):
        asked.append(url)
        raise errors.pop()

    monkeypatch.setattr(names, "get_hf_file_metadata", ask)
    (tmp_path / "notes").mkdir()
    errors = [OSError("Name or service not known")]
    with pytest.raises(ValueError, match=r"^no such folder, and the Hub cannot be .*known; did you mean 'notes'\?$"):
        check_name("notse")
    errors = [OSError("Name or service not known")]
    with pytest.raises(ValueError, match=r"^no such folder, and the Hub cannot be reached"):
        check_name("someone/texts", kind="dataset")
    errors = [failure(RepositoryNotFoundError)]
    check_name("nobody")  # whose download says what is wrong
    assert [url.partition("/resolve/")[0].rpartition(".co/")[2] for url in asked] == [
        "notse",
        "datasets/someone/texts",
        "nobody",
    ]
    assert not errors


@pytest.mark.parametrize(
    "fields",
    [
        {"model_max_length": "512"},
        {"model_max_length": [512]},
        {"model_input_names": []},
        {"model_input_names": ["input_ids", "attention"]},
        {"padding_side": "up"},
    ],
    ids=str,
)
def test_a_tokenizer_of_foreign_settings_is_refused_when_it_is_opened(encoder, fields):
    """Not at the end of a run, which embeds texts with it."""
    change(encoder / "tokenizer_config.json", **fields)
    with pytest.raises(UsageError, match=r"encoder: its tokenizer cannot be used \(.*copy the tokenizer's files"):
        read_tokenizer(str(encoder))


@pytest.mark.parametrize("name", ["config.json", "card.json", "sentence_bert_config.json", "modules.json"])
@pytest.mark.parametrize("content", ["[1", "3", '"text"', "{}", "[]"])
def test_json_of_another_kind_is_named(encoder, name, content):
    (encoder / name).write_text(content)
    if content == ("[]" if name == "modules.json" else "{}"):
        assert sentence_head.read_json(str(encoder), name) == json.loads(content)
        return
    with pytest.raises(UsageError, match=rf"encoder: {name} is not (JSON|an object|a list)"):
        sentence_head.read_json(str(encoder), name)


def failure(kind):
    """What the client of the Hub raises, without an answer to make it of."""
    return kind.__new__(kind)


@pytest.mark.parametrize(
    ("error", "is_missing"),
    [
        (LocalEntryNotFoundError("We couldn't connect"), False),
        (failure(HfHubHTTPError), False),
        (ConnectionResetError("in the middle"), False),
        (RuntimeError("peer closed connection"), False),
        (failure(RepositoryNotFoundError), True),
        (ValueError("no name of a repository"), True),
    ],
)
def test_a_hub_that_fails_is_no_missing_file(monkeypatch, error, is_missing):
    """A plain mean would have taken the place of the pooling that nobody could read."""

    def fail(*args, **kwargs):
        if isinstance(error, RuntimeError):
            raise error
        raise OSError("no such file could be loaded") from error

    monkeypatch.setattr(sentence_head, "cached_file", fail)
    if is_missing:
        assert sentence_head.read_head("me/encoder").pooling == "mean"
    else:
        with pytest.raises(UsageError, match=r"me/encoder: its modules.json cannot be fetched .*HF_HUB_OFFLINE=1"):
            sentence_head.read_head("me/encoder")


@pytest.mark.parametrize(
    ("listed", "fragment"),
    [
        ([{"path": ""}], r"me/encoder/modules.json: not a list of modules \('type'\)"),
        ([3], r"me/encoder/modules.json: not a list of modules"),
        ([{"path": "../up", "type": "sentence_transformers.models.Dense"}], r"the module '../up' is outside"),
        ([{"path": "1_X", "type": "mine.X"}], r"me/encoder: its module mine.X is third-party code"),
    ],
)
def test_modules_of_a_repository_are_checked_like_those_of_a_folder(tmp_path, monkeypatch, listed, fragment):
    (tmp_path / "modules.json").write_text(json.dumps(listed))
    monkeypatch.setattr(sentence_head, "cached_file", lambda source, name, **options: str(tmp_path / name))
    with pytest.raises(UsageError, match=fragment):
        sentence_head.check_code_of_modules("me/encoder")


def test_a_head_that_sentence_transformers_cannot_read_is_one_line(encoder, tmp_path):
    pytest.importorskip("sentence_transformers")
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    modules += [{"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
    (encoder / "modules.json").write_text(json.dumps(modules))
    (encoder / "1_Pooling").mkdir()
    (encoder / "1_Pooling" / "config.json").write_text('{"word_embedding_dimension": 16, "pooling_mode_men": true}')
    with pytest.raises(UsageError, match="sentence-transformers cannot read it"):
        export_sentence_transformer(encoder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
