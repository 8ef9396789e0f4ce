"""The arguments of a pretraining run: encoder, texts, masks and views, objective, training."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy

from configuration_text_jepa import TextJepaConfig
from text_jepa.cli import UsageError, config_arguments, first_line, nearest
from text_jepa.data.corpus import CorpusArguments
from text_jepa.data.strategies import MaskStrategy, SpanLengthDistribution, View
from text_jepa.train.checkpointing import resume_word


@dataclass
class ModelArguments:
    """The encoder to start from."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Encoder to start from: folder or Hub name of an encoder or a Text-JEPA."}
    )
    init: Literal["pretrained", "from_config", "embeddings", "layers"] = field(
        default="pretrained",
        metadata={
            "help": "Which part of --model_name_or_path to keep: all weights (pretrained); only its architecture and "
            "tokenizer (from_config); also its input embeddings, below new layers (embeddings); or all weights "
            "except the input embeddings, to use another tokenizer (layers): that of --tokenizer_name, or one "
            "trained on the corpus."
        },
    )
    preset: str | None = field(
        default=None,
        metadata={
            "help": "Size of a new encoder: static, tiny, mini, small, base or large. Default: static if windows "
            "predict the rest of their document, otherwise mini."
        },
    )
    config_name: str | None = field(
        default=None, metadata={"help": "Configuration of a new encoder: folder or Hub name, any architecture."}
    )
    text_config: str | None = field(
        default=None,
        metadata={"help": "Fields to change in a new encoder's configuration, as JSON: '{\"num_hidden_layers\": 3}'."},
    )
    tokenizer_name: str | None = field(
        default=None,
        metadata={"help": "Tokenizer: folder or Hub name. Default: the encoder's, or one trained on the corpus."},
    )
    add_words: list[str] | None = field(
        default=None,
        metadata={
            "help": "Words to add to the tokenizer as single tokens: a file with one on each line, or a list. Their "
            "embeddings start as the mean of those of their pieces."
        },
    )
    tokenizer_type: Literal["wordpiece", "bpe"] = field(
        default="wordpiece", metadata={"help": "Kind of a tokenizer trained on the corpus; bpe is byte-level."}
    )
    vocab_size: int = field(default=16_384, metadata={"help": "Vocabulary size of a tokenizer trained on the corpus."})
    lowercase: bool = field(
        default=True, metadata={"help": "Fold case and accents in a tokenizer trained on the corpus."}
    )
    objective: Literal["documents", "jepa", "mlm", "drop_mlm", "data2vec", "simcse"] | None = field(
        default=None,
        metadata={
            "help": "Objective, whose fields other flags override: windows predict the rest of their document "
            "(documents), hidden tokens are predicted in latent space (jepa), or a baseline in the same trainer. "
            "Default: documents; for a Text-JEPA that is trained further, its own."
        },
    )
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3"] | None = field(
        default=None,
        metadata={
            "help": "Attention of both encoders, if they offer it. Default: sdpa. The predictor always uses sdpa."
        },
    )
    allow_remote_code: list[str] | None = field(
        default=None,
        metadata={
            "help": "Folders or Hub names of encoders with an architecture that transformers does not provide, whose "
            "own Python code may be run. This code can do anything that you can: read it first. Default: no code is "
            "run."
        },
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit on the Hub."})
    cache_dir: str | None = field(
        default=None, metadata={"help": "Cache folder for downloads and the built-in corpus."}
    )
    export_encoder: Literal["target", "context"] = field(
        default="target",
        metadata={"help": "Encoder to export: the moving average (target), or the one that is optimised (context)."},
    )
    lora: int | None = field(
        default=None,
        metadata={
            "help": "Rank of the LoRA matrices (peft) that are trained instead of the encoder's weights, for large "
            "encoders; they are merged into the exported encoder. Default: no LoRA, all weights are trained."
        },
    )
    merge: bool | None = field(
        default=None,
        metadata={
            "help": "Whether to export a point between the initial and the final weights, chosen by how well passages "
            "of held-out documents find the rest of theirs. Default: true if the loss is on vectors of texts; false "
            "exports the final weights."
        },
    )
    license: str = field(
        default="unknown",
        metadata={
            "help": "Licence of the weights for the model card, by its name on the Hub: apache-2.0, cc-by-sa-4.0 …"
        },
    )
    language: list[str] | None = field(
        default=None, metadata={"help": "Languages of the texts for the model card, by their codes: en, de …"}
    )
    dataset_tags: list[str] | None = field(
        default=None,
        metadata={
            "help": "Names on the Hub of the data sets that the texts are from, for the model card. Default: "
            "--dataset_name."
        },
    )
    base_model: str | None = field(
        default=None,
        metadata={
            "help": "Name on the Hub of the encoder to start from, for the model card, if --model_name_or_path is a "
            "copy in a folder. Default: --model_name_or_path."
        },
    )

    def __post_init__(self):
        if self.lora is not None and (self.lora < 1 or not self.model_name_or_path):
            raise ValueError(f"--lora {self.lora}: expected a rank of at least 1, and a --model_name_or_path")
        if self.init != "pretrained" and not self.model_name_or_path:
            raise ValueError(f"--init {self.init} goes with --model_name_or_path")
        keeps_layers = self.model_name_or_path and self.init in ("pretrained", "layers")
        if keeps_layers and self.text_config not in (None, "{}"):
            raise ValueError(
                "--text_config changes a new encoder, not a pretrained one; add --init from_config or embeddings"
            )
        if self.vocab_size > LARGEST_VOCABULARY:
            raise ValueError(f"--vocab_size: at most {LARGEST_VOCABULARY:,}, got {self.vocab_size}")
        for code in self.language or ():
            if not re.fullmatch(r"[a-z]{2,3}(-\w+)*|multilingual|code", code):
                raise ValueError(
                    f"--language {code}: not a language code; use, for example, en, de, pt-br or multilingual"
                )
        for name in [*(self.dataset_tags or ()), self.base_model]:
            if name is not None and not re.fullmatch(r"([\w.-]+/)?[\w.-]+", name):
                raise ValueError(
                    f"--dataset_tags and --base_model are names on the Hub, such as owner/name, got {name}"
                )


# Flags of the one strategy of masks that is used without --mask_strategies, beside --mask_ratio.
SPAN_FLAGS = (
    "span_length_distribution",
    "mean_span_length",
    "max_span_length",
    "min_span_length",
    "num_spans",
    "whole_words",
)


@dataclass
class DataArguments(CorpusArguments):
    """The texts, their masks and views, and the online probe."""

    max_train_samples: int | None = field(
        default=None, metadata={"help": "Number of training documents to use. Default: all."}
    )
    max_eval_samples: int = field(default=1_000, metadata={"help": "Number of held-out texts to evaluate on."})
    max_length: int = field(
        default=128,
        metadata={
            "help": "Longest window in tokens if windows predict the rest of their document, as by default; otherwise "
            "the longest text, and longer documents are cut at the ends of sentences."
        },
    )
    max_document_length: int = field(
        default=512,
        metadata={
            "help": "Longest document in tokens if windows predict the rest of their document; longer ones are cut."
        },
    )
    min_length: int = field(default=2, metadata={"help": "Shortest document in tokens; shorter ones are left out."})
    prepare_only: bool = field(
        default=False, metadata={"help": "Stop when the corpus is tokenized and cached, before any training."}
    )
    preprocessing_num_workers: int | None = field(
        default=None, metadata={"help": "Number of processes for tokenization."}
    )
    overwrite_cache: bool = field(default=False, metadata={"help": "Tokenize again instead of reading the cache."})

    num_masks: int = field(default=1, metadata={"help": "Masks per text; they share one pass of the target encoder."})
    mask_ratio: list[str] | None = field(
        default=None,
        metadata={
            "help": "Share of the words hidden by a mask: a number; the ends of an interval drawn from for each mask "
            "(0.3 0.5); or a schedule ('{start: 0.15, end: 0.4, steps: 10000}'). 0 hides nothing. With --num_spans: "
            "the largest share hidden. Default: 0.5; 0 if the objective predicts other parts of a document "
            "and no hidden tokens."
        },
    )
    span_length_distribution: SpanLengthDistribution = field(
        default="geometric", metadata={"help": "Distribution of the lengths of hidden spans."}
    )
    mean_span_length: float = field(default=3.0, metadata={"help": "Mean length of a hidden span in tokens."})
    max_span_length: int = field(default=10, metadata={"help": "Longest hidden span in tokens."})
    num_spans: int | None = field(
        default=None,
        metadata={"help": "Number of spans to hide, of --min_span_length to --max_span_length tokens each."},
    )
    min_span_length: int = field(
        default=1, metadata={"help": "Shortest hidden span in tokens; goes with --num_spans."}
    )
    whole_words: bool = field(default=True, metadata={"help": "Hide whole words, never parts of words."})
    mask_strategies: str | None = field(
        default=None,
        metadata={
            "help": "Mask strategies, of which each mask draws one, instead of the flags above: names and fields of "
            "text_jepa.MaskStrategy, as in '{short: {ratio: 0.15}, end: {kind: suffix, ratio: 0.25}}'."
        },
    )
    equal_counts: bool = field(
        default=False,
        metadata={
            "help": "Cut all masks of a batch to the same numbers of tokens, so that positions need no padding."
        },
    )
    complement_masks: bool = field(
        default=False,
        metadata={"help": "Draw masks in pairs: each mask of a pair hides what the other leaves visible."},
    )
    view: View | None = field(
        default=None,
        metadata={
            "help": "Second text of each text: the rest of its document or the neighbouring window; or, for the "
            "sentence loss, a text of the same meaning. Default: rest with a document loss, otherwise none."
        },
    )
    view_ratio: list[float] = field(
        default_factory=lambda: [0.5, 0.9],
        metadata={"help": "Share of the words that a crop or deletion keeps: a number, or the ends of an interval."},
    )

    probe_task: str | None = field(
        default=None,
        metadata={
            "help": "Task to probe both encoders on at every evaluation, using its training split: packages (built "
            "in), a task of GLUE, or a file with the columns text and label. Its eval_probe_* figures can select the "
            "best checkpoint: --load_best_model_at_end --metric_for_best_model eval_probe_target_linear."
        },
    )
    probe_data_dir: str | None = field(
        default=None, metadata={"help": "Folder with the GLUE tasks. Default: the Hub."}
    )

    def __post_init__(self):
        super().__post_init__()
        for name in ("max_train_samples", "max_eval_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1, got {value}")
        if self.max_document_length < 4:
            raise ValueError(f"--max_document_length must be at least 4, got {self.max_document_length}")
        self._read_view()
        if self.mask_ratio is not None:
            self.mask_ratio = read_shares("mask_ratio", self.mask_ratio)
        if self.mask_strategies is not None:
            self.mask_strategies = read_strategies(self.mask_strategies)
            self._refuse_span_flags()

    def _read_view(self) -> None:
        has_column = self.view_column is not None
        if (self.view == "column") != has_column:
            raise ValueError("--view column and --view_column NAME go together")
        if self.view not in ("crop", "crop_both", "deletion") and self.view_ratio != [0.5, 0.9]:
            raise ValueError("--view_ratio goes with --view crop, crop_both or deletion")
        if len(self.view_ratio) == 1:
            self.view_ratio = self.view_ratio[0]

    def _refuse_span_flags(self) -> None:
        """Refuses flags of a single strategy beside --mask_strategies."""
        defaults = {argument.name: argument.default for argument in dataclasses.fields(self)}
        for name in ("mask_ratio", *SPAN_FLAGS):
            if getattr(self, name) != defaults[name]:
                raise ValueError(f"--{name} and --mask_strategies exclude each other: it is a field of a strategy")


ObjectiveArguments = config_arguments(TextJepaConfig, exclude=("text_config",))


def read_shares(flag: str, words: list[str]) -> Any:
    """A share, the two ends of an interval, or a schedule, from the words behind a flag."""
    shares = _read_yaml(flag, f"[{', '.join(words)}]")
    if not shares:
        raise ValueError(f"--{flag}: expected a share, the two ends of an interval, or a schedule")
    return shares if len(shares) > 1 else shares[0]


def read_strategies(text: str) -> dict[str, dict[str, Any]]:
    """The fields of mask strategies by name.

    Raises:
        UsageError: The text is not a mapping of names to fields, or a field is unknown.
    """
    strategies = _read_yaml("mask_strategies", text)
    if not isinstance(strategies, dict) or not all(isinstance(fields, dict) for fields in strategies.values()):
        raise UsageError(
            "--mask_strategies: expected names and fields, '{short: {ratio: 0.15}, end: {kind: suffix, ratio: 0.25}}'"
        )
    known = [spec.name for spec in dataclasses.fields(MaskStrategy) if spec.name != "name"]
    for name, fields in strategies.items():
        for key in fields:
            if key not in known:
                raise UsageError(
                    f"--mask_strategies: '{name}' has an unknown field '{key}'{nearest(str(key), known)} "
                    f"(the fields are {', '.join(known)})"
                )
    return strategies


def _read_yaml(flag: str, text: str) -> Any:
    """The value of a flag that is written as YAML or JSON."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"--{flag} {text}: not YAML: {error}") from error


def write_arguments(path: Path, *groups: Any) -> None:
    """Writes the arguments of all groups into a YAML file that the command takes again."""
    _write_yaml(path, values_of_arguments(groups))


# Arguments that are made of others or of the machine.
_DERIVED = (
    "accelerator_config",
    "dataloader_pin_memory",
    "disable_tqdm",
    "do_eval",
)


def write_changed_arguments(path: Path, groups: Sequence[Any], defaults: Mapping[str, Any]) -> None:
    """Writes the arguments that differ from the defaults, by name, as `write_arguments` writes all of them."""
    values = {}
    for name, value in values_of_arguments(groups).items():
        is_default = name in defaults and (defaults[name] == value or (defaults[name] is None and not value))
        if not is_default and name not in _DERIVED:
            values[name] = value
    _write_yaml(path, values)


def default_training_values() -> dict[str, Any]:
    """The default values of the training arguments, by name.

    The arguments are not constructed normally, because that would reset accelerate's global state under the running
    Trainer.
    """
    defaults = object.__new__(TextJepaTrainingArguments)
    for argument in dataclasses.fields(TextJepaTrainingArguments):
        is_made = argument.default is dataclasses.MISSING
        setattr(defaults, argument.name, argument.default_factory() if is_made else argument.default)
    return {**defaults.to_dict(), "num_train_epochs": 3.0}


def _write_yaml(path: Path, values: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def values_of_arguments(groups: Sequence[Any]) -> dict[str, Any]:
    """The arguments of all groups by name, without empty ones and secrets."""
    values = {}
    for group in groups:
        is_of_trainer = isinstance(group, TextJepaTrainingArguments)
        fields = group.to_dict() if is_of_trainer else dataclasses.asdict(group)
        for name, value in fields.items():
            is_secret = name == "hub_token"
            if not is_secret and value not in (None, [], {}):
                values[name] = value
    return values


# The length of a run of an encoder without layers whose flags do not say it: so many passes over its texts, but at
# most so many steps. For quality a run is longer: configs/default.yaml makes 7,000 steps.
MOST_PASSES = 20
MOST_STEPS = 2_000

# Tokens of a tokenizer that is trained; the tokenizers library makes room for all of them at once.
LARGEST_VOCABULARY = 10_000_000

# The least values of some arguments, which transformers does not check.
_LEAST = {
    "seed": 0,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
    "dataloader_prefetch_factor": 1,
    "predictor_learning_rate": 0,
    "embedding_learning_rate": 0,
    "weight_decay": 0,
    "adam_beta1": 0,
    "adam_beta2": 0,
    "adam_epsilon": 0,
    "max_grad_norm": 0,
    "warmup_steps": 0,
    "num_train_epochs": 0,
    "eval_delay": 0,
    "save_total_limit": 1,
    "ema_frozen_steps": 0,
}

# Arguments that are above 0, or are left out.
_POSITIVE = {
    "save_steps": "to save nothing, --save_strategy no",
    "eval_steps": "to evaluate at the end alone, --eval_strategy no",
    "logging_steps": "to log nothing, --logging_strategy no",
    "torch_empty_cache_steps": "to keep the cache, leave it out",
    "learning_rate": "the encoder would not learn anything",
    "neftune_noise_alpha": "to train without noise, leave it out",
}


# NumPy takes no larger one.
_LARGEST_SEED = 2**32 - 1


@dataclass
class TextJepaTrainingArguments(TrainingArguments):
    """`TrainingArguments` with defaults for latent prediction, and the arguments of the callbacks."""

    output_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder for the encoder, the checkpoints and the log, which must be new or empty. Default: "
            "runs/NAME after the texts, or runs/NAME-2 and so on; from Python text-jepa-output."
        },
    )
    max_steps: int = field(
        default=-1, metadata={"help": "Optimizer steps. Default: as many as --num_train_epochs takes."}
    )
    num_train_epochs: float | None = field(
        default=None,
        metadata={
            "help": "Passes over the texts, if --max_steps is not given; replaces the --max_steps of a recipe. "
            f"Default: {MOST_PASSES}, but at most {MOST_STEPS:,} steps, for encoders without layers; 3 for others, "
            "and from Python."
        },
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "Resume a run: from the newest complete checkpoint of --output_dir, if there is one (auto), or "
            "from the folder of a checkpoint."
        },
    )
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate (5e-5 suits a trained encoder)."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule after the warm-up."})
    warmup_steps: float = field(default=0.08, metadata={"help": "Warm-up: steps, or a share of the run if below 1."})
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay of AdamW, on matrices only."})
    adam_beta2: float = field(default=0.98, metadata={"help": "Decay of AdamW's second moment."})
    adam_epsilon: float = field(default=1e-6, metadata={"help": "Epsilon of AdamW."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Texts per process and batch in training."})
    per_device_eval_batch_size: int = field(
        default=64,
        metadata={
            "help": "Texts per process and batch in evaluation. Has no effect on losses: where a text is compared "
            "with those of its batch, batches are those of training."
        },
    )
    logging_steps: float = field(
        default=50, metadata={"help": "Number of steps between two log entries; collapse is checked at each of them."}
    )
    logging_first_step: bool = field(default=True, metadata={"help": "Log the first step too."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Leave losses that are not finite out of the log."}
    )
    save_total_limit: int | None = field(default=2, metadata={"help": "Number of checkpoints to keep."})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Drop columns that the model does not take; the collator needs them."}
    )
    prediction_loss_only: bool = field(default=True, metadata={"help": "Compute only losses in evaluation."})
    ddp_find_unused_parameters: bool | None = field(
        default=False,
        metadata={"help": "Look for parameters without gradient; every trainable one takes part in the loss."},
    )

    predictor_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Peak learning rate of predictor and heads, which are new beside a trained encoder. Default: "
            "--learning_rate."
        },
    )
    embedding_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Peak learning rate of the encoder's input embeddings. Default: --learning_rate."},
    )
    ema_schedule: Literal["cosine", "linear", "constant"] = field(
        default="cosine", metadata={"help": "Schedule of the target encoder's EMA decay over the run."}
    )
    ema_decay_start: float | None = field(
        default=None,
        metadata={"help": "EMA decay at the first step. Default: 1 - 100 / steps, an average over 1 % of the run."},
    )
    ema_decay_end: float | None = field(
        default=None,
        metadata={"help": "EMA decay at the last step. Default: 1 - 10 / steps, an average over 10 % of the run."},
    )
    ema_frozen_steps: int = field(
        default=0,
        metadata={
            "help": "Number of initial steps during which the target encoder is frozen, for runs that start from a "
            "trained encoder."
        },
    )
    weight_decay_end: float | None = field(
        default=None,
        metadata={"help": "Weight decay at the end of the run, reached along a cosine. Default: constant."},
    )
    mask_batching: Literal["joint", "sequential"] = field(
        default="joint",
        metadata={
            "help": "Process all masks of a text in one pass (joint), or one after the other, with the memory of a "
            "single mask (sequential). Loss terms of a whole batch then see one mask at a time; targets are computed "
            "once either way."
        },
    )
    skip_spikes: bool = field(
        default=False,
        metadata={"help": "Skip steps whose loss or gradient norm is far above those of the last 128 steps."},
    )
    hub_strategy: HubStrategy | str = field(
        default="end",
        metadata={"help": "When --push_to_hub publishes the encoder: at the end, or at every_save too."},
    )
    accept_changes: bool = field(
        default=False,
        metadata={"help": "Resume from a checkpoint although settings or data differ from those of its run."},
    )
    stop_on_collapse: bool = field(default=False, metadata={"help": "Stop the run when the collapse monitor warns."})

    def __post_init__(self):
        for name in ("ema_decay_start", "ema_decay_end"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"--{name} must lie between 0 and 1, got {value}")
        for name, bound in _LEAST.items():
            value = getattr(self, name)
            if value is not None and not value >= bound:
                raise ValueError(f"--{name} must be at least {bound}, got {value}")
        for name in (*_LEAST, *_POSITIVE):
            if getattr(self, name) == math.inf:
                raise ValueError(f"--{name} must be finite, got inf")
        for name in ("seed", "data_seed"):
            value = getattr(self, name)
            if value is not None and value > _LARGEST_SEED:
                raise ValueError(f"--{name} must be at most {_LARGEST_SEED}, got {value}")
        for name, remedy in _POSITIVE.items():
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"--{name} must be above 0, got {value}; {remedy}")
        self.leaves_length_open = self.num_train_epochs is None and self.max_steps == -1
        if self.num_train_epochs is None:
            self.num_train_epochs = 3.0
        self.resume_from_checkpoint = resume_word(self.resume_from_checkpoint)
        self.leaves_folder_open = self.output_dir is None
        if self.output_dir is None:
            self.output_dir = "text-jepa-output"
        if self.max_steps == 0 or self.max_steps < -1:
            raise ValueError(
                f"--max_steps must be above 0, got {self.max_steps}; leave it out to set the length with "
                "--num_train_epochs"
            )
        if self.weight_decay_end is not None and not self.weight_decay > 0:
            raise ValueError("--weight_decay_end requires a --weight_decay above 0")
        if not torch.cuda.is_available():
            self.dataloader_pin_memory = False
        if self.deepspeed:
            raise ValueError(
                "--deepspeed is not supported; FSDP2 is: accelerate launch --config_file configs/accelerate/fsdp2.yaml"
            )
        try:
            super().__post_init__()
            self._complete_schedule()
        except (AssertionError, ImportError, NotImplementedError, OSError, RuntimeError, TypeError) as error:
            raise ValueError(f"the Trainer rejected these arguments: {first_line(error)}") from error
        if self.accelerator_config.dispatch_batches is None:
            # Streams give batches of different width to each process, which cannot be dispatched from one.
            self.accelerator_config.dispatch_batches = False
        if self.report_to and self.run_name is None:
            # Trackio resumes the run of that name; without a name it takes the last evaluation for another run.
            self.run_name = Path(self.output_dir).absolute().name
        # The Trainer compares evaluations for a schedule that follows them, too.
        keeps_one = self.save_total_limit == 1 and self.save_strategy != "no"
        if self.metric_for_best_model is not None and keeps_one:
            raise ValueError(
                "--save_total_limit 1: a run that compares its evaluations keeps the best and the newest checkpoint; "
                "use 2"
            )
        if self.stop_on_collapse and self.logging_strategy == "no":
            raise ValueError(
                "--stop_on_collapse has no effect with --logging_strategy no: collapse is checked at each log entry; "
                "use --logging_strategy steps"
            )
        if self.hub_strategy not in (HubStrategy.END, HubStrategy.EVERY_SAVE):
            raise ValueError(
                f"--hub_strategy {self.hub_strategy.value}: checkpoints are not published, encoders are; use end or "
                "every_save"
            )

    def _complete_schedule(self) -> None:
        """Tells schedules that follow a metric if a higher one is better: by default they assume the opposite."""
        if self.greater_is_better and self.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy"):
            self.lr_scheduler_kwargs = {"mode": "max", **(self.lr_scheduler_kwargs or {})}


# Arguments that a resumed run must share with the run that left its checkpoint.
_FINGERPRINT = (
    "seed",
    "data_seed",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "world_size",
    "max_steps",
    "num_train_epochs",
    "bf16",
    "fp16",
    "mixed_precision",  # also that of the launcher
    "dataloader_drop_last",
    "optim",
    "optim_args",
    "optim_target_modules",
    "learning_rate",
    "predictor_learning_rate",
    "embedding_learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "weight_decay",
    "weight_decay_end",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "neftune_noise_alpha",
    "skip_spikes",
    "mask_batching",
    "ema_schedule",
    "ema_decay_start",
    "ema_decay_end",
    "ema_frozen_steps",
)


def selects_best_checkpoint(args: TextJepaTrainingArguments) -> bool:
    """Whether a checkpoint is selected by a metric."""
    return args.load_best_model_at_end or args.save_strategy == "best"


def fingerprint_of_arguments(args: TextJepaTrainingArguments) -> dict[str, Any]:
    """The settings that a resumed run must share with the run that left its checkpoint."""
    return {name: getattr(args, name) for name in _FINGERPRINT}
