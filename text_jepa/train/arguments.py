"""What a pretraining run can be asked for: the encoder, the texts, what of them is hidden, the objective."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy

from configuration_text_jepa import TextJepaConfig
from text_jepa.cli import UsageError, config_arguments, nearest
from text_jepa.data.corpus import CorpusArguments
from text_jepa.data.masking import MaskStrategy, SpanLengthDistribution, View


@dataclass
class ModelArguments:
    """The encoder to start from."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Encoder to start from: folder or Hub name of an encoder or a Text-JEPA."}
    )
    init: Literal["pretrained", "from_config", "embeddings", "layers"] = field(
        default="pretrained",
        metadata={
            "help": "With --model_name_or_path: keep its weights; only its architecture and tokenizer; its input "
            "embeddings too, under new layers; or all but these, for another tokenizer: --tokenizer_name, else one "
            "trained on the corpus."
        },
    )
    preset: str | None = field(
        default=None,
        metadata={
            "help": "Size of a new encoder: static, tiny, mini, small, base or large. Default: static where windows "
            "predict the rest of their document, else mini."
        },
    )
    config_name: str | None = field(
        default=None, metadata={"help": "Configuration of a new encoder: folder or Hub name, any architecture."}
    )
    text_config: str | None = field(
        default=None,
        metadata={
            "help": "Fields of a new encoder's configuration that differ, as JSON: '{\"num_hidden_layers\": 3}'."
        },
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Tokenizer: folder or Hub name. Default: the encoder's; trained if it is new."}
    )
    tokenizer_type: Literal["wordpiece", "bpe"] = field(
        default="wordpiece", metadata={"help": "Kind of a tokenizer trained on the corpus; bpe is byte-level."}
    )
    vocab_size: int = field(default=16_384, metadata={"help": "Words of a tokenizer trained on the corpus."})
    lowercase: bool = field(default=True, metadata={"help": "Fold case and accents in a tokenizer trained here."})
    objective: Literal["documents", "jepa", "mlm", "drop_mlm", "data2vec", "simcse"] | None = field(
        default=None,
        metadata={
            "help": "What other flags of the objective start from: windows that predict the rest of their document "
            "(documents), hidden tokens that are predicted in latent space (jepa), or a baseline in the same trainer. "
            "Default: documents; of a Text-JEPA that is trained further, its own."
        },
    )
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3"] | None = field(
        default=None,
        metadata={"help": "Attention of both encoders, where they offer it. Default: sdpa. The predictor's is sdpa."},
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit on the Hub."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where downloads and the built-in corpus are kept."})
    export_encoder: Literal["target", "context"] = field(
        default="target", metadata={"help": "Exported encoder: the moving average, or the one that was optimised."}
    )
    merge: bool | None = field(
        default=None,
        metadata={
            "help": "Export the weights between the first and the last ones with which passages of held-out documents "
            "find their rest best. Default: where the loss is on vectors of texts; false exports the last ones."
        },
    )
    license: str = field(
        default="unknown",
        metadata={"help": "Licence of the weights for the card, by its name on the Hub: apache-2.0, cc-by-sa-4.0 …"},
    )

    def __post_init__(self):
        if self.init != "pretrained" and not self.model_name_or_path:
            raise ValueError(f"--init {self.init} goes with --model_name_or_path")
        keeps_layers = self.model_name_or_path and self.init in ("pretrained", "layers")
        if keeps_layers and self.text_config not in (None, "{}"):
            raise ValueError(
                "--text_config changes a new encoder, not a pretrained one; add --init from_config or embeddings"
            )


@dataclass
class DataArguments(CorpusArguments):
    """The texts, and what of them is hidden."""

    shuffle_buffer: int = field(default=10_000, metadata={"help": "Texts of a stream that are shuffled together."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use so many training documents."})
    max_eval_samples: int = field(default=1_000, metadata={"help": "Evaluate on so many held-out texts."})
    max_length: int = field(
        default=128, metadata={"help": "Longest text in tokens; longer documents are split at ends of sentences."}
    )
    max_document_length: int = field(
        default=512,
        metadata={"help": "Where windows predict the rest of their document: longer documents are split into parts."},
    )
    min_length: int = field(default=2, metadata={"help": "Documents of fewer tokens are left out."})
    prepare_only: bool = field(
        default=False, metadata={"help": "End when the corpus is tokenized and cached, before any training."}
    )
    preprocessing_num_workers: int | None = field(default=None, metadata={"help": "Processes that tokenize."})
    overwrite_cache: bool = field(default=False, metadata={"help": "Tokenize again."})

    num_masks: int = field(default=1, metadata={"help": "Masks per text and step; they share one target pass."})
    mask_ratio: list[str] | None = field(
        default=None,
        metadata={
            "help": "Share of the words hidden by a mask. Default: 0.5, and 0 where no hidden token is "
            "predicted. Two ends of an interval that each mask draws from, 0.3 "
            "0.5; or a schedule, '{start: 0.15, end: 0.4, steps: 10000}'. 0 hides nothing. With --num_spans the most "
            "that they hide."
        },
    )
    span_length_distribution: SpanLengthDistribution = field(
        default="geometric", metadata={"help": "Distribution of the lengths of hidden spans."}
    )
    mean_span_length: float = field(default=3.0, metadata={"help": "Mean length of a hidden span in tokens."})
    max_span_length: int = field(default=10, metadata={"help": "Longest hidden span in tokens."})
    num_spans: int | None = field(
        default=None, metadata={"help": "Hide so many spans, of --min_span_length to --max_span_length tokens each."}
    )
    min_span_length: int = field(default=1, metadata={"help": "With --num_spans: shortest hidden span in tokens."})
    whole_words: bool = field(default=True, metadata={"help": "Hide whole words, never a part of one."})
    mask_strategies: str | None = field(
        default=None,
        metadata={
            "help": "Several ways to hide, of which each mask draws one, instead of the flags above: names and fields "
            "of text_jepa.masking.MaskStrategy, as in '{short: {ratio: 0.15}, end: {kind: suffix, ratio: 0.25}}'."
        },
    )
    equal_counts: bool = field(
        default=False, metadata={"help": "Cut all masks of a batch to the same number of tokens, without padding."}
    )
    complement_masks: bool = field(
        default=False, metadata={"help": "Masks come in pairs, of which one hides what the other sees."}
    )
    view: View | None = field(
        default=None,
        metadata={
            "help": "What belongs to each text: the rest of its document, or the neighbouring window; or for the "
            "sentence loss a second text of the same meaning. Default: rest, with a document loss."
        },
    )
    view_ratio: list[float] = field(
        default_factory=lambda: [0.5, 0.9],
        metadata={"help": "Share of the words that a crop or deletion keeps: a number, or two ends of an interval."},
    )

    probe_task: str | None = field(
        default=None,
        metadata={
            "help": "Probe both encoders at every evaluation on the training part of a task: packages (built in), one "
            "of GLUE, or a file with the columns text and label. Its eval_probe_* figures can choose the checkpoint: "
            "--load_best_model_at_end --metric_for_best_model eval_probe_target_linear."
        },
    )
    probe_data_dir: str | None = field(default=None, metadata={"help": "Folder of GLUE tasks. Default: the Hub."})

    def __post_init__(self):
        for name in ("max_train_samples", "max_eval_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1, got {value}")
        if (self.view == "column") != (self.view_column is not None):
            raise ValueError("--view column and --view_column NAME go together")
        if self.view not in ("crop", "crop_both", "deletion") and self.view_ratio != [0.5, 0.9]:
            raise ValueError("--view_ratio goes with --view crop, crop_both or deletion")
        if self.max_document_length < 4:
            raise ValueError(f"--max_document_length must be at least 4, got {self.max_document_length}")
        if self.mask_ratio is not None:
            self.mask_ratio = read_shares("mask_ratio", self.mask_ratio)
        self.view_ratio = self.view_ratio if len(self.view_ratio) > 1 else self.view_ratio[0]
        if self.mask_strategies is not None:
            self.mask_strategies = read_strategies(self.mask_strategies)
            defaults = {f.name: f.default for f in dataclasses.fields(self)}
            for name in ("mask_ratio", "whole_words", *(name for name in defaults if "span" in name)):
                if getattr(self, name) != defaults[name]:
                    raise ValueError(f"--{name} and --mask_strategies exclude each other: it is a field of a strategy")


def read_yaml(flag, text):
    """The value of a flag that is written as YAML or JSON."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"--{flag} {text}: not YAML: {error}") from error


def read_shares(flag: str, words: list[str]):
    """A share, the two ends of an interval, or a schedule, from the words behind a flag."""
    shares = read_yaml(flag, f"[{', '.join(words)}]")
    if not shares:
        raise ValueError(f"--{flag}: expected a share, the two ends of an interval, or shares by step")
    return shares if len(shares) > 1 else shares[0]


def read_strategies(text) -> dict[str, dict]:
    """The fields of mask strategies by name."""
    strategies = read_yaml("mask_strategies", text)
    if not isinstance(strategies, dict) or not all(isinstance(fields, dict) for fields in strategies.values()):
        raise UsageError(
            "--mask_strategies: expected names and fields, '{short: {ratio: 0.15}, end: {kind: suffix, ratio: 0.25}}'"
        )
    known = [f.name for f in dataclasses.fields(MaskStrategy) if f.name != "name"]
    for name, fields in strategies.items():
        for key in fields:
            if key not in known:
                raise UsageError(
                    f"--mask_strategies: '{name}' has an unknown field '{key}'{nearest(str(key), known)} "
                    f"(the fields are {', '.join(known)})"
                )
    return strategies


ObjectiveArguments = config_arguments(TextJepaConfig, exclude=("text_config",))


def write_arguments(path, *groups):
    """Writes all arguments with their values, as a YAML file that the command takes again."""
    values = {}
    for group in groups:
        found = group.to_dict() if isinstance(group, TextJepaTrainingArguments) else dataclasses.asdict(group)
        values |= {key: value for key, value in found.items() if value not in (None, [], {}) and key != "hub_token"}
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


@dataclass
class TextJepaTrainingArguments(TrainingArguments):
    """`TrainingArguments` with defaults for latent prediction, and what the callbacks need."""

    output_dir: str | None = field(
        default="text-jepa-output", metadata={"help": "Where the encoder, the checkpoints and the figures go."}
    )
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate (5e-5 suits a trained encoder)."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule after the warm-up."})
    warmup_steps: float = field(default=0.08, metadata={"help": "Warm-up: steps, or a share of the run if below 1."})
    weight_decay: float = field(default=0.05, metadata={"help": "AdamW's, on matrices only."})
    adam_beta2: float = field(default=0.98, metadata={"help": "AdamW's second moment."})
    adam_epsilon: float = field(default=1e-6, metadata={"help": "AdamW's epsilon."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Texts per process and step."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Texts per process in evaluation."})
    logging_steps: float = field(default=50, metadata={"help": "Log, and watch for collapse, every so many steps."})
    logging_first_step: bool = field(default=True, metadata={"help": "Log the first step too."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide losses that are not finite."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator owns the columns."})
    prediction_loss_only: bool = field(default=True, metadata={"help": "Keep only losses in evaluation."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Every trainable parameter takes part in the loss."}
    )

    predictor_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Peak rate of predictor and heads, which are new beside a trained encoder. Default: the same."
        },
    )
    embedding_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Peak rate of the encoder's input embeddings. Default: the same."},
    )
    ema_schedule: Literal["cosine", "linear", "constant"] = field(
        default="cosine", metadata={"help": "Course of the target encoder's decay over the run."}
    )
    ema_decay_start: float | None = field(
        default=None, metadata={"help": "First decay. Default: 1 - 100 / steps, an average over 1 % of the run."}
    )
    ema_decay_end: float | None = field(
        default=None, metadata={"help": "Last decay. Default: 1 - 10 / steps, an average over 10 % of the run."}
    )
    ema_frozen_steps: int = field(
        default=0,
        metadata={"help": "First steps in which the target encoder stays as it is, for a start from a trained one."},
    )
    weight_decay_end: float | None = field(
        default=None,
        metadata={"help": "Weight decay at the end of the run, reached along a cosine. Default: constant."},
    )
    mask_batching: Literal["joint", "sequential"] = field(
        default="joint",
        metadata={
            "help": "Masks of a text: all in one pass, or one after the other in the memory of one. Terms that look "
            "at a whole batch then look at one mask at a time; targets are made once either way."
        },
    )
    skip_spikes: bool = field(
        default=False, metadata={"help": "Leave out steps whose loss or gradient norm is far above the last 128."}
    )
    hub_strategy: HubStrategy | str = field(
        default="end",
        metadata={"help": "With --push_to_hub: publish the encoder at the end, or at every_save too."},
    )
    accept_changes: bool = field(
        default=False, metadata={"help": "Go on from a checkpoint although settings or data are not those of its run."}
    )
    stop_on_collapse: bool = field(
        default=False, metadata={"help": "End the run when the collapse monitor warns, instead of only warning."}
    )

    def __post_init__(self):
        for name in ("ema_decay_start", "ema_decay_end"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"--{name} must lie between 0 and 1, got {value}")
        least = {"seed": 0, "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1}
        least |= {"gradient_accumulation_steps": 1, "dataloader_num_workers": 0, "learning_rate": 0}
        least |= {"ema_frozen_steps": 0}
        for name, bound in least.items():
            if not getattr(self, name) >= bound:
                raise ValueError(f"--{name} must be at least {bound}, got {getattr(self, name)}")
        if self.weight_decay_end is not None and not self.weight_decay > 0:
            raise ValueError("--weight_decay_end needs a --weight_decay above 0 to begin with")
        if self.accelerator_config is None:
            # Streams give batches of different width to each process, which cannot be dispatched from one.
            self.accelerator_config = {"dispatch_batches": False}
        if not torch.cuda.is_available():
            self.dataloader_pin_memory = False
        super().__post_init__()
        if self.report_to and self.run_name is None:
            # Trackio goes on with the run of that name. Without one it takes the closing evaluation for another run.
            self.run_name = Path(self.output_dir).absolute().name
        if self.hub_strategy not in (HubStrategy.END, HubStrategy.EVERY_SAVE):
            raise ValueError(
                f"--hub_strategy {self.hub_strategy.value}: checkpoints are not published, encoders are; use end or "
                "every_save"
            )


def fingerprint_of_arguments(args: TextJepaTrainingArguments) -> dict[str, Any]:
    """The settings that a resumed run must share with the run that left its checkpoint."""
    names = ["seed", "data_seed", "per_device_train_batch_size", "gradient_accumulation_steps", "world_size"]
    names += ["max_steps", "num_train_epochs", "bf16", "fp16", "dataloader_drop_last"]
    names += ["optim", "learning_rate", "predictor_learning_rate", "embedding_learning_rate"]
    names += ["lr_scheduler_type", "lr_scheduler_kwargs"]
    names += ["warmup_steps", "weight_decay", "weight_decay_end", "adam_beta1", "adam_beta2", "adam_epsilon"]
    names += ["max_grad_norm", "skip_spikes", "mask_batching"]
    names += ["ema_schedule", "ema_decay_start", "ema_decay_end", "ema_frozen_steps"]
    return {name: getattr(args, name) for name in names}
