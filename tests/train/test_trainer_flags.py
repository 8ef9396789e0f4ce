"""Flags that transformers' Trainer takes: they work, or are refused in one line that leaves nothing behind."""

import dataclasses
import sys
from types import SimpleNamespace

import pytest
from datasets import Dataset
from transformers import TrainingArguments

from configuration_text_jepa import OBJECTIVES
from text_jepa.cli import UsageError, parse_arguments
from text_jepa.commands.main import main as text_jepa_command
from text_jepa.share.model_card import describe_optimizer, describe_precision
from text_jepa.train import build, checks
from text_jepa.train.arguments import DataArguments, ModelArguments, TextJepaTrainingArguments
from text_jepa.train.checks import _GOES_WITH, REFUSED, RENAMED


# What is as in the Trainer, or is checked by a rule of its own.
WORKS = """
    output_dir per_device_train_batch_size num_train_epochs max_steps learning_rate lr_scheduler_type
    lr_scheduler_kwargs warmup_steps optim optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon
    gradient_accumulation_steps average_tokens_across_devices max_grad_norm bf16 fp16 tf32 activation_checkpointing
    activation_checkpointing_kwargs gradient_checkpointing torch_compile
    torch_compile_backend torch_compile_mode neftune_noise_alpha torch_empty_cache_steps logging_strategy logging_steps
    logging_first_step logging_nan_inf_filter include_num_input_tokens_seen disable_tqdm report_to run_name project
    trackio_space_id trackio_bucket_id trackio_static_space_id eval_strategy eval_steps per_device_eval_batch_size
    eval_on_start
    save_strategy save_steps save_total_limit push_to_hub hub_token hub_strategy load_best_model_at_end
    ignore_data_skip full_determinism seed data_seed use_cpu accelerator_config dataloader_drop_last
    dataloader_num_workers dataloader_in_order train_sampling_strategy ddp_find_unused_parameters ddp_bucket_cap_mb
    ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout resume_from_checkpoint skip_memory_metrics
"""

# What changes nothing that matters, and is written by habit or by launchers.
HARMLESS = "do_train do_eval log_level log_level_replica log_on_each_node dataloader_pin_memory local_rank"

TEXTS = "".join(f"The keeper of lighthouse number {i} climbed down to the harbour.\n" for i in range(40))


def test_every_field_of_the_trainer_is_sorted():
    """One that is missing here is new: try it, and say whether it works, is harmless, or belongs to `REFUSED`."""
    sorted_fields = [*WORKS.split(), *HARMLESS.split(), *REFUSED, *_GOES_WITH]
    assert len(sorted_fields) == len(set(sorted_fields))
    fields = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert fields - set(sorted_fields) == set()


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the console command in this process; gives its exit code and what it wrote to stderr."""
    (tmp_path / "texts.txt").write_text(TEXTS)
    output = tmp_path / "out"

    def call(*flags):
        words = ["--preset", "tiny", "--train_file", str(tmp_path / "texts.txt"), "--output_dir", str(output)]
        words += ["--cache_dir", str(tmp_path / "cache"), "--max_length", "16", "--vocab_size", "200", "--use_cpu"]
        words += ["--per_device_train_batch_size", "4", "--objective", "jepa"]
        if not {"--max_steps", "--num_train_epochs"} & set(flags):
            words += ["--max_steps", "2"]
        monkeypatch.setattr(sys, "argv", ["text-jepa", "pretrain", *words, *flags])
        with pytest.raises(SystemExit) as exit_:
            text_jepa_command()
        return exit_.value.code, capsys.readouterr().err, output

    return call


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--save_only_model"], ["--save_only_model", "--save_strategy no"]),
        (["--label_smoothing_factor", "0.1"], ["--label_smoothing_factor", "no labels"]),
        (["--train_sampling_strategy", "sequential"], ["--train_sampling_strategy sequential", "grouped by length"]),
        (["--remove_unused_columns"], ["--remove_unused_columns", "leave it out"]),
        (["--use_liger_kernel"], ["--use_liger_kernel", "--torch_compile"]),
        (["--deepspeed", "zero.json"], ["--deepspeed", "fsdp2.yaml"]),
        (["--fsdp", "full_shard"], ["--fsdp", "fsdp2.yaml"]),
        (["--fp16_full_eval"], ["--fp16_full_eval", "precision of training"]),
        (["--metric_for_best_model", "eval_loss"], ["--metric_for_best_model has no effect", "--load_best"]),
        (["--dataloader_prefetch_factor", "2"], ["--dataloader_prefetch_factor", "--dataloader_num_workers"]),
        (
            ["--dataloader_num_workers", "1", "--dataloader_prefetch_factor", "0"],
            ["--dataloader_prefetch_factor", "at least 1"],
        ),
        (["--debug", "underflow_overflow"], ["--debug is not supported", "leave it out"]),
        (["--learning_rate", "inf"], ["--learning_rate must be finite"]),
        (["--accelerator_config", "{bad"], ["--accelerator_config: not JSON"]),
        (["--max_steps", "0"], ["--max_steps", "above 0, got 0"]),
        (["--max_steps", "-3"], ["--max_steps", "got -3"]),
        (["--num_train_epochs", "0"], ["--num_train_epochs 0", "no step"]),
        (["--num_train_epochs", "-1"], ["--num_train_epochs", "at least 0"]),
        (["--save_steps", "-5"], ["--save_steps", "above 0, got -5"]),
        (["--logging_steps", "0"], ["--logging_steps", "above 0, got 0"]),
        (["--torch_empty_cache_steps", "0"], ["--torch_empty_cache_steps", "above 0, got 0", "leave it out"]),
        (["--gradient_checkpointing_kwargs", '{"use_reentrant": false}'], ["goes with --gradient_checkpointing"]),
        (
            ["--lr_scheduler_type", "constant", "--lr_scheduler_kwargs", '{"num_cycles": 2}'],
            ["--lr_scheduler_kwargs has no effect with --lr_scheduler_type constant"],
        ),
        (["--do_train", "false"], ["--do_train false has no effect", "--prepare_only"]),
        (["--do-eval=False"], ["--do-eval false has no effect", "--eval_strategy no"]),
        (["--save_total_limit", "0"], ["--save_total_limit", "at least 1"]),
        (
            ["--save_total_limit", "1", "--save_strategy", "best", "--metric_for_best_model", "probe_target_linear"],
            ["--save_total_limit 1", "the best and the newest", "use 2"],
        ),
        (
            ["--save_total_limit", "1", "--lr_scheduler_type", "reduce_lr_on_plateau", "--eval_strategy", "steps"],
            ["--save_total_limit 1", "the best and the newest", "use 2"],
        ),
        (
            ["--save_total_limit", "1", "--lr_scheduler_type", "greedy", "--eval_strategy", "steps"],
            ["--save_total_limit 1", "the best and the newest", "use 2"],
        ),
        (
            ["--stop_on_collapse", "--logging_strategy", "no"],
            ["--stop_on_collapse has no effect", "--logging_strategy no", "--logging_strategy steps"],
        ),
        (["--adam_beta1", "1.5"], ["--optim", "beta"]),
        (["--mask_ratio", "0"], ["--mask_ratio 0", "hides none"]),
        (["--accelerator_config", '{"split_batches": true}'], ["--accelerator_config split_batches"]),
        (["--report_to", "nothing_known"], ["--report_to", "nothing_known"]),
        (["--streaming", "--save_strategy", "epoch"], ["--save_strategy epoch", "--streaming", "--save_steps"]),
        (["--streaming", "--eval_strategy", "epoch"], ["--eval_strategy epoch", "--streaming", "--eval_steps"]),
        (["--streaming", "--logging_strategy", "epoch"], ["--logging_strategy epoch", "--logging_steps"]),
    ],
    ids=lambda value: "_".join(value)[2:40] if value[0].startswith("--") else "",
)
def test_a_flag_of_no_use_or_out_of_range_is_one_line_and_nothing_is_written(run, flags, words):
    code, error, output = run(*flags)
    assert code == 2
    assert len(error.splitlines()) == 1, error
    assert [word for word in words if word not in error] == [], error
    assert not output.exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--gradient_checkpointing", "--gradient_checkpointing_kwargs", '{"nothing_known": 1}'],
            ["--gradient_checkpointing_kwargs", "nothing_known"],
        ),
        (
            [
                *("--optim", "apollo_adamw", "--optim_target_modules", "all-linear", "--gradient_checkpointing"),
                *("--gradient_checkpointing_kwargs", '{"nothing_known": 1}'),
            ],
            ["--gradient_checkpointing_kwargs", "nothing_known"],
        ),
        (["--optim", "adamw_8bit"], ["--optim adamw_8bit", "bitsandbytes"]),
        (["--optim", "schedule_free_adamw"], ["--optim schedule_free_adamw"]),
        (["--lr_scheduler_type", "cosine_with_min_lr"], ["--lr_scheduler_type cosine_with_min_lr", "min_lr"]),
        (["--lr_scheduler_kwargs", '{"nothing_known": 3}'], ["--lr_scheduler_type", "nothing_known"]),
        (["--torch_compile_backend", "nothing_known"], ["the Trainer rejected these arguments", "NOTHING_KNOWN"]),
        (["--dataloader_drop_last", "--per_device_train_batch_size", "500"], ["--dataloader_drop_last", "no step"]),
        (["--optim_args", "nothing_known=3"], ["--optim_args nothing_known", "adamw_torch", "does not read it"]),
        (["--optim_args", "rank"], ["--optim_args rank", "NAME=VALUE"]),
    ],
    ids=lambda value: "_".join(value)[2:40] if value[0].startswith("--") else "",
)
def test_what_cannot_start_is_one_line_and_leaves_nothing(run, flags, words):
    """They show only once tokenizer, model and trainer are there."""
    if "--dataloader_drop_last" in flags:
        flags = [*flags, "--num_train_epochs", "1"]
    code, error, output = run(*flags)
    assert code == 2, error
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, error
    assert "Traceback" not in error
    assert [word for word in words if word not in lines[0]] == [], error
    assert not output.exists()


@pytest.mark.parametrize("schedule", ["reduce_lr_on_plateau", "greedy"])
@pytest.mark.parametrize(
    ("metric", "given", "expected"),
    [
        ("probe_target_linear", None, {"mode": "max"}),
        ("probe_target_linear", {"patience": 2}, {"mode": "max", "patience": 2}),
        ("probe_target_linear", {"mode": "min"}, {"mode": "min"}),
        (None, None, None),
    ],
)
def test_a_schedule_that_follows_a_metric_knows_which_way_is_better(schedule, metric, given, expected):
    args = TextJepaTrainingArguments(
        use_cpu=True,
        eval_strategy="steps",
        lr_scheduler_type=schedule,
        lr_scheduler_kwargs=given,
        metric_for_best_model=metric,
    )
    assert args.lr_scheduler_kwargs == expected


class Known:
    """Reads one name among --optim_args, as an optimizer of transformers does."""

    def __init__(self, optim_args):
        self.args = SimpleNamespace(optim_args=optim_args, optim=SimpleNamespace(value="known"))
        self.model = None

    def get_optimizer_cls_and_kwargs(self, args, model):
        pairs = dict(pair.split("=") for pair in (args.optim_args or "").split(",") if pair)
        return dict, {"rank": int(pairs.get("rank", 128)), "is_fast": pairs.get("is_fast", "False") == "True"}


@pytest.mark.parametrize("optim_args", [None, "rank=4", "rank=128", "is_fast=False", "is_fast=True, rank=128"])
def test_arguments_that_an_optimizer_reads_are_taken_even_if_they_are_its_defaults(optim_args):
    checks._check_optimizer_arguments(Known(optim_args))


@pytest.mark.parametrize("optim_args", ["rnk=4", "rank=4,is_fst=True", "rank=128,x=128"])
def test_arguments_that_an_optimizer_does_not_read_are_refused(optim_args):
    name = optim_args.split(",")[-1].split("=")[0]
    with pytest.raises(UsageError, match=f"--optim_args {name}: --optim known does not read it"):
        checks._check_optimizer_arguments(Known(optim_args))


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ["--neftune_noise_alpha", "5"],
        ["--include_num_input_tokens_seen", "true"],
        ["--do_train", "--do_eval"],
        ["--disable_tqdm", "true", "--skip_memory_metrics", "false"],
        ["--eval_on_start", "--eval_strategy", "steps", "--eval_steps", "1", "--eval_delay", "1"],
        ["--lr_scheduler_type", "reduce_lr_on_plateau", "--eval_strategy", "steps", "--eval_steps", "1"],
        ["--logging_strategy", "no"],
        ["--accelerator_config", '{"even_batches": false}'],
        ["--optim", "adafactor", "--bf16"],
    ],
    ids=lambda flags: flags[0][2:],
)
def test_a_flag_that_works_trains_to_an_encoder(run, flags):
    code, error, output = run(*flags)
    assert code == 0, error
    assert (output / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["warmup_ratio", "no_cuda", "overwrite_output_dir", "evaluation_strategy", *RENAMED])
@pytest.mark.parametrize("form", ["flag", "dashes", "file"])
def test_an_old_name_is_answered_with_the_new_one(tmp_path, name, form):
    words = {
        "flag": [f"--{name}", "3"],
        "dashes": [f"--{name.replace('_', '-')}=3"],
        "file": [str(tmp_path / "a.yaml")],
    }
    (tmp_path / "a.yaml").write_text(f"{name}: 3\n")
    with pytest.raises(UsageError) as error:
        parse_arguments((TextJepaTrainingArguments,), words[form], "A test.", renamed=RENAMED)
    assert RENAMED[name] in str(error.value)


def test_what_takes_the_place_of_an_old_name_exists():
    fields = {field.name for field in dataclasses.fields(TextJepaTrainingArguments)}
    assert not fields & RENAMED.keys()


class Trainer:
    def __init__(self, optimizer, mixed_precision, dtype):
        import torch

        self.args = TextJepaTrainingArguments("out", use_cpu=True)
        self.model = torch.nn.Linear(2, 2, dtype=dtype)
        self.optimizer = optimizer(self.model.parameters())
        self.accelerator = type("Accelerator", (), {"mixed_precision": mixed_precision})


def test_the_card_states_what_optimizer_and_precision_really_were():
    import torch
    from transformers.optimization import Adafactor

    adam = Trainer(lambda weights: torch.optim.AdamW(weights, betas=(0.8, 0.9), fused=True), "bf16", torch.float32)
    assert describe_optimizer(adam).startswith("AdamW (fused), betas 0.8 and 0.9, epsilon 1e-08")
    assert describe_precision(adam) == "bf16, weights in fp32"
    adafactor = Trainer(Adafactor, "no", torch.bfloat16)
    assert describe_optimizer(adafactor).startswith("Adafactor, gradients")
    assert describe_precision(adafactor) == "bf16"
    sgd = Trainer(lambda weights: torch.optim.SGD(weights, momentum=0.9), "no", torch.float32)
    assert describe_optimizer(sgd).startswith("SGD, momentum 0.9")
    assert describe_precision(sgd) == "fp32"


def test_flags_that_have_no_effect_on_the_model_are_told(make_model, caplog):
    args = TextJepaTrainingArguments(use_cpu=True, ema_decay_start=0.5, embedding_learning_rate=0.1)
    model = make_model()
    checks.warn_of_idle_flags(args, model)
    assert not caplog.records
    model.get_input_embeddings().weight.requires_grad_(False)  # as --lora does
    checks.warn_of_idle_flags(args, model)
    assert [record.message.split()[0] for record in caplog.records] == ["--embedding_learning_rate"]
    caplog.clear()
    checks.warn_of_idle_flags(args, make_model(**OBJECTIVES["mlm"], mask_token_id=4))
    assert [record.message.split()[0] for record in caplog.records] == ["--ema_decay_start"]


def test_flags_of_a_new_tokenizer_that_have_no_effect_on_an_existing_one_are_told(tokenizer, tmp_path, caplog):
    tokenizer.save_pretrained(tmp_path / "words")
    args = SimpleNamespace(output_dir=str(tmp_path / "run"))
    plain = ModelArguments(tokenizer_name=str(tmp_path / "words"))
    build.make_tokenizer(plain, DataArguments(), args, corpus=None)
    assert not caplog.records
    asked = ModelArguments(
        tokenizer_name=str(tmp_path / "words"), vocab_size=500, tokenizer_type="bpe", lowercase=False
    )
    build.make_tokenizer(asked, DataArguments(), args, corpus=None)
    told = [record.message.split()[0] for record in caplog.records]
    assert told == ["--vocab_size", "--tokenizer_type", "--lowercase"]


def test_more_samples_than_there_are_documents_are_all_of_them(tmp_path, monkeypatch):
    """Older versions of the datasets library take no more than there are."""
    monkeypatch.setattr(Dataset, "take", lambda documents, count: documents.select(range(count)))
    (tmp_path / "texts.txt").write_text(TEXTS)
    data_args = DataArguments(train_file=[str(tmp_path / "texts.txt")], max_train_samples=1_000)
    corpus = build.make_corpus(ModelArguments(cache_dir=str(tmp_path / "cache")), data_args)
    assert len(corpus.splits["train"]) + len(corpus.splits["validation"]) == 40
