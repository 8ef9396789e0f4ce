"""The head of a sentence-transformers folder: read as that library does, kept by a run, or said to be lost."""

import dataclasses
import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, BertConfig, BertModel

import run_pretraining
from text_jepa.cli import UsageError
from text_jepa.commands.export import main as export
from text_jepa.commands.plot import embed
from text_jepa.encoders import sentence_head
from text_jepa.encoders.embeddings import embed_layers, embed_texts, finish_vectors, open_encoder, token_weights
from text_jepa.encoders.sentence_head import SentenceHead
from text_jepa.share.export import write_head


sentence_transformers = pytest.importorskip("sentence_transformers")
modules = sentence_transformers.sentence_transformer.modules

SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SHORT = ["the boat", "bread needs flour and water", "the river carried the little boat past the mill"]


@pytest.fixture
def save(tmp_path, tokenizer):
    """Saves a folder with a head by sentence-transformers itself."""

    def build(pooling="mean", dense=False, normalize=False, prompt=None, max_seq_length=40):
        plain = tmp_path / "plain"
        torch.manual_seed(0)
        config = BertConfig(vocab_size=len(tokenizer), initializer_range=0.5, **SHAPE)
        BertModel(config).save_pretrained(plain)
        tokenizer.save_pretrained(plain)
        transformer = modules.Transformer(str(plain), max_seq_length=max_seq_length)
        parts = [transformer, modules.Pooling(16, pooling_mode=pooling)]
        if dense:
            parts.append(modules.Dense(16, 8, activation_function=torch.nn.Tanh()))
        if normalize:
            parts.append(modules.Normalize())
        prompts = {"query": prompt} if prompt else None
        model = sentence_transformers.SentenceTransformer(
            modules=parts,
            device="cpu",
            prompts=prompts,
            default_prompt_name="query" if prompt else None,
        )
        model.save_pretrained(str(tmp_path / "head"), create_model_card=False)
        return tmp_path / "head"

    return build


def vectors_of(folder, texts=SHORT):
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu", trust_remote_code=False)
    return model.encode(texts)


HEADS = {
    "cls": {"pooling": "cls"},
    "max": {"pooling": "max"},
    "last token": {"pooling": "lasttoken"},
    "sum by root of length": {"pooling": "mean_sqrt_len_tokens"},
    "weighted mean": {"pooling": "weightedmean"},
    "normalized": {"normalize": True},
    "dense": {"dense": True, "normalize": True},
    "prompt": {"prompt": "query: ", "pooling": "cls"},
}
every_head = pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)


@every_head
def test_vectors_are_those_of_sentence_transformers(save, head):
    folder = save(**head)
    encoder = open_encoder(str(folder))
    assert encoder.max_length == 40
    expected = vectors_of(folder)
    np.testing.assert_allclose(embed_texts(encoder, SHORT), expected, atol=1e-5)
    np.testing.assert_allclose(embed(encoder, SHORT)[1], expected, atol=1e-5)
    last = embed_layers(encoder, SHORT)[-1]
    np.testing.assert_allclose(finish_vectors(encoder, last), expected, atol=1e-5)


def test_pooling_that_is_asked_for_is_all_there_is(save):
    folder = save(dense=True, normalize=True, prompt="query: ")
    encoder = open_encoder(str(folder), pooling="mean")
    assert embed_texts(encoder, SHORT).shape == (3, 16)
    assert encoder.prompt == ""


def test_maximum_of_a_long_text_is_that_of_its_windows(save):
    encoder = open_encoder(str(save(pooling="max")), max_length=8)
    text = " ".join(SHORT)
    assert np.isfinite(embed_texts(encoder, [text, "bread"])).all()


def change(file, **fields):
    file.write_text(json.dumps({**(json.loads(file.read_text()) if file.exists() else {}), **fields}))


def test_vectors_are_cut_as_the_folder_says(save):
    folder = save(normalize=True)
    change(folder / "config_sentence_transformers.json", truncate_dim=4)
    vectors = embed_texts(open_encoder(str(folder)), SHORT)
    assert vectors.shape == (3, 4)
    np.testing.assert_allclose(vectors, vectors_of(folder), atol=1e-5)


@pytest.mark.parametrize("name", ["sentence_roberta_config.json", "sentence_distilbert_config.json"])
def test_length_is_read_under_the_older_names_of_its_file(save, name):
    folder = save()
    (folder / "sentence_bert_config.json").unlink()
    (folder / name).write_text('{"max_seq_length": 4, "do_lower_case": false}')
    encoder = open_encoder(str(folder))
    assert encoder.max_length == 4


def test_first_token_is_that_of_the_text_where_padding_is_on_the_left(save):
    encoder = open_encoder(str(save(pooling="cls")))
    encoder.tokenizer.padding_side = "left"
    together = embed_texts(encoder, SHORT)
    np.testing.assert_allclose(token_weights_of(encoder, SHORT).sum(1), 1)
    assert together.shape == (3, 16)


def token_weights_of(encoder, texts):
    """The weights of a padded batch, of which the one that counts is on a token of its text."""
    batch = encoder.tokenizer(texts, padding=True, return_tensors="pt")
    weights = token_weights(encoder, batch)
    assert (weights * batch["attention_mask"]).sum() == len(texts)
    return weights


@pytest.mark.parametrize(
    ("file", "fields", "fragment"),
    [
        ("2_Dense/config.json", {"out_features": 9}, r"module Dense \(2_Dense\) cannot be read"),
        ("2_Dense/config.json", {"in_features": "many"}, r"module Dense \(2_Dense\) cannot be read"),
        ("2_Dense/config.json", {"activation_function": 3}, r"module Dense \(2_Dense\) cannot be read"),
        (
            "2_Dense/config.json",
            {"activation_function": "torch.nn.Linear"},
            r"module Dense \(2_Dense\) cannot be read",
        ),
        (
            "2_Dense/config.json",
            {"module_input_name": "token_embeddings"},
            "has the module_input_name token_embeddings",
        ),
        ("config_sentence_transformers.json", {"truncate_dim": "4"}, "truncate_dim is '4'"),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "model_type .* is 'SparseEncoder'"),
        ("config_sentence_transformers.json", {"default_prompt_name": "zz"}, "has no text prompt"),
        ("config_sentence_transformers.json", {"prompts": {"a": 3}, "default_prompt_name": "a"}, "has no text prompt"),
        ("sentence_bert_config.json", {"do_lower_case": True}, "it lowercases texts"),
    ],
)
def test_a_head_that_would_give_other_vectors_is_one_line(save, file, fields, fragment):
    folder = save(dense=True)
    change(folder / file, **fields)
    change(folder / "tokenizer_config.json", do_lower_case=False)
    with pytest.raises(UsageError, match=fragment):
        open_encoder(str(folder))


def test_a_prompt_that_is_no_text_stops_only_the_search_that_would_use_it(save):
    folder = save()
    change(folder / "config_sentence_transformers.json", prompts={"query": 3})
    encoder = open_encoder(str(folder))
    assert np.isfinite(embed_texts(encoder, SHORT)).all()
    with pytest.raises(UsageError, match="do not map names to texts"):
        _ = encoder.search_prompts


def test_a_prompt_that_is_not_pooled_stops_only_the_search_that_would_use_it(save, tmp_path):
    folder = save()
    change(folder / "1_Pooling/config.json", include_prompt=False)
    assert open_encoder(str(folder)).search_prompts == ("", "")
    change(folder / "config_sentence_transformers.json", prompts={"query": "query: ", "document": ""})
    encoder = open_encoder(str(folder))
    np.testing.assert_allclose(embed_texts(encoder, SHORT), vectors_of(folder), atol=1e-5)
    with pytest.raises(UsageError, match="its pooling excludes the prompt 'query: '"):
        _ = encoder.search_prompts
    write_head(encoder.head, tmp_path / "written", 16)
    assert json.loads((tmp_path / "written/1_Pooling/config.json").read_text())["include_prompt"] is False


@pytest.mark.parametrize(
    ("fields", "fragment"),
    [
        ({"transformer_task": "fill-mask"}, 'transformer_task .* is "fill-mask", which is not supported'),
        ({"module_output_name": "sentence_embedding"}, "module_output_name"),
        ({"modality_config": {"text": {"method": "forward", "method_output_name": "pooler_output"}}}, "pooler_output"),
        ({"processing_kwargs": {"text": {"max_length": 5}}}, "processing_kwargs .* set text"),
        ({"config_args": {"num_hidden_layers": 1}}, "config_args .* set num_hidden_layers"),
    ],
)
def test_an_encoder_that_is_to_be_called_otherwise_is_one_line(save, fields, fragment):
    folder = save()
    change(folder / "sentence_bert_config.json", **fields)
    with pytest.raises(UsageError, match=fragment):
        open_encoder(str(folder))


def test_settings_that_change_no_vector_are_taken(save):
    folder = save()
    change(folder / "sentence_bert_config.json", model_args={"torch_dtype": "float32"}, unpad_inputs=True)
    np.testing.assert_allclose(embed_texts(open_encoder(str(folder)), SHORT), vectors_of(folder), atol=1e-5)


def test_the_encoder_in_a_subfolder_is_not_passed_over_for_the_one_beside_it(save, pretrain):
    folder = save()
    listed = json.loads((folder / "modules.json").read_text())
    listed[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(listed))
    for opens in (open_encoder, lambda name: open_encoder(name, pooling="mean"), pretrain):
        with pytest.raises(UsageError, match="its encoder is in the subfolder 0_Transformer"):
            opens(str(folder))


def test_a_pooling_without_its_file_is_one_line(save):
    folder = save(pooling="cls")
    (folder / "1_Pooling/config.json").unlink()
    with pytest.raises(UsageError, match=r"1_Pooling/config\.json, which says how it pools, is missing"):
        open_encoder(str(folder))


def test_code_in_the_weights_of_a_dense_layer_does_not_run(save, tmp_path):
    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "canary"),))

    folder = save(dense=True)
    (folder / "2_Dense/model.safetensors").unlink()
    torch.save({"linear.weight": Payload()}, folder / "2_Dense/pytorch_model.bin")
    with pytest.raises(
        UsageError, match=r"Dense \(2_Dense\) contain code, which is not run; save them as safetensors"
    ):
        open_encoder(str(folder))
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("side", ["left", "right"])
def test_weights_of_places_count_from_the_first_token(save, side):
    """As in newer versions of sentence-transformers; older ones counted the padding on the left."""
    encoder = open_encoder(str(save(pooling="weightedmean")))
    encoder.tokenizer.padding_side = side
    batch = encoder.tokenizer(SHORT, padding=True, return_tensors="pt")
    weights = token_weights(encoder, batch)
    for row, mask in zip(weights, batch["attention_mask"].bool(), strict=True):
        assert row[mask].tolist() == list(range(1, mask.sum() + 1))
        assert not row[~mask].any()


def test_a_dense_layer_is_read_once(save, monkeypatch):
    folder = str(save(dense=True))
    read = []
    monkeypatch.setattr(sentence_head, "load_file", lambda path: read.append(path) or load_file(path))
    open_encoder(folder)
    assert len(read) == 1


def test_weights_of_a_dense_layer_that_are_cut_off_are_one_line(save):
    folder = save(dense=True)
    weights = folder / "2_Dense/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:40])
    with pytest.raises(UsageError, match=r"module Dense \(2_Dense\) cannot be read"):
        open_encoder(str(folder))


def test_a_dense_layer_of_another_width_is_one_line(save):
    folder = save(dense=True)
    change(folder / "2_Dense/config.json", in_features=12)
    weights = {"linear.weight": torch.zeros(8, 12), "linear.bias": torch.zeros(8)}
    save_file(weights, folder / "2_Dense/model.safetensors")
    with pytest.raises(UsageError, match="do not take the 16 features"):
        open_encoder(str(folder))


@pytest.mark.parametrize(
    "kinds",
    [["Dense", "Pooling"], ["Pooling", "Pooling"], ["Dense"], ["Normalize", "Pooling"]],
)
def test_modules_in_another_order_are_one_line(save, kinds):
    folder = save(dense=True, normalize=True)
    listed = json.loads((folder / "modules.json").read_text())
    by_kind = {module["type"].rpartition(".")[2]: module for module in listed}
    chosen = [by_kind["Transformer"], *(by_kind[kind] for kind in kinds)]
    (folder / "modules.json").write_text(json.dumps(chosen))
    with pytest.raises(UsageError, match="must pool exactly once, before all others"):
        open_encoder(str(folder))


@pytest.mark.parametrize(
    ("name", "content", "fragment"),
    [
        ("modules.json", [{"path": "1_X", "type": "mine.X"}], "third-party code"),
        ("modules.json", [{"path": "", "type": "custom_st.Transformer"}], "custom_st.Transformer is third-party code"),
        ("modules.json", [{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}], "not a Transformer"),
        ("modules.json", [{"path": "1_LSTM", "type": "sentence_transformers.models.LSTM"}], "LSTM is not supported"),
        ("1_Pooling/config.json", {"pooling_mode": ["mean", "max"]}, "mean\\+max"),
        ("modules.json", "{", "not JSON"),
    ],
)
def test_head_that_is_not_read_is_one_line(save, name, content, fragment):
    folder = save()
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UsageError, match=fragment):
        open_encoder(str(folder))


# ---- a run ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pretrain(tmp_path, capsys):
    """A run around a folder that changes no weight; gives its folder and what it printed."""

    def run(folder, *more):
        (tmp_path / "texts.txt").write_text("".join(f"The keeper of light {i} climbed down.\n" for i in range(60)))
        argv = f"--model_name_or_path {folder} --train_file {tmp_path}/texts.txt --max_length 16 --max_steps 1"
        argv += " --learning_rate 1e-30 --weight_decay 0 --use_cpu --per_device_train_batch_size 4 --save_steps 1"
        argv += f" --cache_dir {tmp_path}/cache --output_dir {tmp_path}/run"
        output = run_pretraining.main([*argv.split(), *more])
        return output, capsys.readouterr().out

    return run


@every_head
def test_run_that_changes_nothing_exports_the_same_vectors(save, pretrain, head):
    folder = save(**head)
    expected = vectors_of(folder)
    output, printed = pretrain(folder, "--objective", "mlm")
    np.testing.assert_allclose(vectors_of(output), expected, atol=1e-5)
    np.testing.assert_allclose(embed_texts(open_encoder(str(output)), SHORT), expected, atol=1e-5)
    np.testing.assert_allclose(embed_texts(open_encoder(f"{output}/pretraining"), SHORT), expected, atol=1e-5)
    model = sentence_transformers.SentenceTransformer(str(output), device="cpu", trust_remote_code=False)
    assert model.max_seq_length == 40
    # The pooler, too, so that no opening reports weights that are made up.
    exported, report = AutoModel.from_pretrained(output, output_loading_info=True)
    assert not report["missing_keys"]
    start = AutoModel.from_pretrained(folder)
    assert torch.equal(exported.pooler.dense.weight, start.pooler.dense.weight)
    assert f"The export keeps the head of {folder}: " in printed
    assert f"The export keeps the head of {folder.name}: " in (output / "README.md").read_text()


def test_export_of_a_checkpoint_keeps_the_head_or_says_what_is_gone(save, pretrain, tmp_path):
    folder = save(pooling="lasttoken", dense=True, prompt="query: ")
    expected = vectors_of(folder)
    output, _ = pretrain(folder, "--objective", "mlm")
    source = f"{output}/checkpoint-1"
    export(["encoder", source, f"{tmp_path}/exported"])
    np.testing.assert_allclose(vectors_of(tmp_path / "exported"), expected, atol=1e-5)
    folder.rename(tmp_path / "moved")
    with pytest.raises(UsageError, match="its module 2_Dense is needed for the export but no longer exists"):
        export(["encoder", source, f"{tmp_path}/again"])
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("head", "flags", "remedy"),
    [
        ({"pooling": "cls"}, "--objective documents", "--pooling cls keeps it"),
        ({"pooling": "lasttoken", "dense": True}, "--objective documents --pooling mean", "lasttoken pooling, Dense"),
        ({"normalize": True}, "--objective documents --pooling cls", "--pooling mean keeps it"),
    ],
)
def test_run_that_pools_in_another_way_says_so_in_a_line_and_on_the_card(
    save, pretrain, tmp_path, head, flags, remedy
):
    output, printed = pretrain(save(**head), *flags.split())
    (line,) = [line for line in printed.splitlines() if "is not kept" in line]
    assert remedy in line
    assert line.replace(str(tmp_path) + "/", "") in (output / "README.md").read_text()


def test_a_pooling_that_the_kept_head_overrides_is_refused(save, pretrain, tmp_path):
    with pytest.raises(UsageError, match=r"--pooling cls has no effect: .* keeps its mean pooling"):
        pretrain(save(normalize=True), "--objective", "mlm", "--pooling", "cls")


def test_the_first_token_is_exported_if_it_is_asked_for_whatever_was_trained(save, pretrain):
    folder = save()
    (folder / "modules.json").unlink()
    output, _ = pretrain(folder, "--objective", "mlm", "--pooling", "cls")
    assert open_encoder(str(output)).pooling == "cls"


def test_the_cache_of_another_machine_is_not_looked_in(tmp_path):
    for cache, kept in ((tmp_path / "here", {"cache_dir": str(tmp_path / "here")}), (tmp_path / "gone", {})):
        head = SentenceHead("me/encoder", options={"cache_dir": str(cache), "revision": "v1"})
        (tmp_path / "here").mkdir(exist_ok=True)
        again = SentenceHead.from_dict(json.loads(json.dumps(dataclasses.asdict(head))))
        assert again.options == {**kept, "revision": "v1"}


def test_head_that_is_not_read_is_lost_aloud(save, pretrain):
    folder = save()
    change = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    change.append({"path": "1_LSTM", "type": "sentence_transformers.models.LSTM"})
    (folder / "modules.json").write_text(json.dumps(change))
    _, printed = pretrain(folder, "--objective", "mlm")
    assert "uses the pooling of this run, not that of the initial encoder" in printed
    assert "LSTM is not supported" in printed
