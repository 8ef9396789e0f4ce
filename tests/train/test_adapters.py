"""LoRA by PEFT, which need not be installed: a stand-in has its names, and the library itself is tried where it is."""

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import AutoModel, BertConfig, BertModel

import run_pretraining
from modeling_text_jepa import has_adapters, plain_weights
from text_jepa import DataCollatorForTextJepa, TextJepaForPreTraining
from text_jepa.cli import UsageError
from text_jepa.train.arguments import TextJepaTrainingArguments
from text_jepa.train.trainer import TextJepaTrainer


class LoraLinear(nn.Module):
    """A layer as PEFT makes it."""

    merged = False
    disable_adapters = False
    active_adapters = ("default",)

    def __init__(self, layer, rank=2):
        super().__init__()
        self.base_layer = layer.requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(layer.in_features, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, layer.out_features, bias=False)})
        self.lora_embedding_A = nn.ParameterDict()
        nn.init.zeros_(self.lora_B["default"].weight)

    @property
    def weight(self):
        return self.base_layer.weight

    def get_delta_weight(self, adapter):
        return self.lora_B[adapter].weight @ self.lora_A[adapter].weight

    def forward(self, states):
        return self.base_layer(states) + self.lora_B["default"](self.lora_A["default"](states))


def add_stand_in(model):
    encoder = model.model.encoder.requires_grad_(False)
    for layer in encoder.layers:
        layer.attn.Wqkv = LoraLinear(layer.attn.Wqkv)
    return model


def add_to_encoder(model):
    peft = pytest.importorskip("peft")
    model.model.encoder = peft.get_peft_model(model.model.encoder, peft.LoraConfig(target_modules=["Wqkv"]))
    return model


def add_to_model(model):
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=["Wqkv"]))


WAYS = {"stand-in": add_stand_in, "encoder": add_to_encoder, "model": add_to_model}
every_way = pytest.mark.parametrize("way", WAYS)


@pytest.fixture
def make_trainer(make_model, tokenizer, texts, tmp_path):
    def make(add, max_steps=6, **kwargs):
        ids = [tokenizer(text)["input_ids"] for text in texts * 4]
        dataset = Dataset.from_dict({"input_ids": ids, "length": [len(row) for row in ids]})
        args = TextJepaTrainingArguments(
            output_dir=str(tmp_path),
            max_steps=max_steps,
            save_steps=3,
            logging_steps=2,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            use_cpu=True,
        )
        return TextJepaTrainer(
            add(make_model()),
            args,
            DataCollatorForTextJepa(tokenizer),
            dataset,
            dataset.take(8),
            processing_class=tokenizer,
            **kwargs,
        )

    return make


@every_way
def test_lora_trains_moves_the_target_encoder_by_name_and_is_merged_in_the_export(make_trainer, tmp_path, way, batch):
    trainer = make_trainer(WAYS[way])
    before = {name: value.clone() for name, value in plain_weights(trainer.model.target_encoder).items()}
    trainer.train()
    trainer.export(tmp_path / "export")
    exported = AutoModel.from_pretrained(tmp_path / "export")
    assert not has_adapters(exported)
    torch.testing.assert_close(exported(**batch)[0], trainer.model.target_encoder(**batch)[0], rtol=0, atol=1e-5)
    moved = [name for name, value in exported.named_parameters() if not torch.equal(value, before[name])]
    assert len(moved) == 2
    assert all("Wqkv" in name for name in moved)


def test_adapters_that_come_after_an_update_count_in_the_next(make_model):
    model = make_model()
    model.update_target_encoder(0.5)
    add_stand_in(model)
    for layer in model.model.encoder.layers:
        torch.nn.init.normal_(layer.attn.Wqkv.lora_B["default"].weight)
    model.update_target_encoder(0.0)
    merged = plain_weights(model.model.encoder)
    for name, value in model.target_encoder.state_dict().items():
        torch.testing.assert_close(value, merged[name], rtol=0, atol=1e-6)


@every_way
def test_what_stands_around_the_encoder_is_new_and_trains_as_a_whole(make_trainer, way):
    predictor = make_trainer(WAYS[way]).model.predictor
    assert all(parameter.requires_grad for parameter in predictor.parameters())


@every_way
def test_a_saved_model_has_the_adapters_merged(make_trainer, tmp_path, way, batch):
    trainer = make_trainer(WAYS[way])
    trainer.train()
    trainer.model.save_pretrained(tmp_path / "model")
    again, info = TextJepaForPreTraining.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    expected = trainer.model.eval().model(**batch)[0]
    torch.testing.assert_close(again.eval().model(**batch)[0], expected, rtol=0, atol=1e-5)


@every_way
def test_a_run_with_adapters_resumes_to_the_same_bits(make_trainer, tmp_path, way):
    whole = make_trainer(WAYS[way])
    whole.train()
    expected = {name: value.clone() for name, value in whole.model.state_dict().items()}
    resumed = make_trainer(WAYS[way])
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert all(torch.equal(value, expected[name]) for name, value in resumed.model.state_dict().items())


def test_a_run_of_another_rank_is_another_run(tokenizer, texts, tmp_path):
    pytest.importorskip("peft")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    encoder = BertModel(BertConfig(vocab_size=len(tokenizer), **shape), add_pooling_layer=False)
    encoder.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    (tmp_path / "notes.txt").write_text("".join(f"{number} {text}\n" for number in range(6) for text in texts))
    flags = f"--model_name_or_path {tmp_path}/bert --train_file {tmp_path}/notes.txt --output_dir {tmp_path}/run"
    flags += f" --cache_dir {tmp_path}/cache --objective jepa --max_length 16 --max_steps 1 --save_steps 1 --use_cpu"
    run_pretraining.main([*flags.split(), "--lora", "2"])
    again = [*flags.split(), "--resume_from_checkpoint", "auto"]
    with pytest.raises(UsageError, match="lora was 2 and is 4; --accept_changes"):
        run_pretraining.main([*again, "--lora", "4"])
    for other in (["--lora", "4"], []):
        with pytest.raises(UsageError, match=r"has no counterpart of the same shape .* use the sizes"):
            run_pretraining.main([*again, *other, "--accept_changes"])


def test_adapters_that_are_no_sum_of_weights_are_refused(make_trainer):
    def add_others(model):
        add_stand_in(model)
        model.model.encoder.layers[0].attn.Wqkv.use_dora = {"default": True}
        return model

    with pytest.raises(UsageError, match=r"Wqkv.weight: only plain LoRA .* can be merged, .*; train with LoraConfig"):
        make_trainer(add_others)


@pytest.mark.parametrize("kind", ["dora", "ia3", "prompt"])
def test_other_kinds_of_peft_are_refused(make_trainer, kind):
    peft = pytest.importorskip("peft")
    shape = {"token_dim": 32, "num_layers": 2, "num_attention_heads": 2, "num_virtual_tokens": 2}
    config = {
        "dora": lambda: peft.LoraConfig(target_modules=["Wqkv"], use_dora=True),
        "ia3": lambda: peft.IA3Config(target_modules=["Wqkv"], feedforward_modules=[]),
        "prompt": lambda: peft.PromptTuningConfig(task_type="FEATURE_EXTRACTION", **shape),
    }[kind]()
    with pytest.raises(UsageError, match="LoraConfig"):
        make_trainer(lambda model: peft.get_peft_model(model, config))


@pytest.fixture
def batch(tokenizer, texts):
    encoded = tokenizer(texts, return_tensors="pt", padding=True)
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}
