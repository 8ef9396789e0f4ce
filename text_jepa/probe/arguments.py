"""The arguments of the probe."""

from dataclasses import dataclass, field

from text_jepa.cli import HelpPage
from text_jepa.data.rows import Quoting
from text_jepa.encoders.embeddings import Pooling


MODES = ("linear", "knn", "attentive", "finetune")

# Flags that have no effect without one of others.
_GOES_WITH = {
    "title_column": ("texts",),
    "task_test_file": ("task_file",),
    "pair_column": ("task_file",),
    "label_column": ("task_file", "texts"),
    "text_column": ("task_file", "texts", "train_texts"),
    "quoting": ("task_file", "texts", "train_texts", "data_dir"),
    "with_body": ("rerank_dir",),
    "data_dir": ("tasks",),
    "split": ("tasks", "rerank_dir"),
}

# Values of those that always have one, which ask for nothing.
_USUAL = {"text_column": "text", "quoting": "checked"}


@dataclass
class ProbeArguments:
    """What is probed, on which tasks and in which modes."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Encoder: folder or Hub name. Default: the newest run in runs/."}
    )
    compare: list[str] | None = field(default=None, metadata={"help": "Further encoders."})
    tasks: list[str] | None = field(
        default=None,
        metadata={
            "help": "Tasks: GLUE's by name; packages, word_content and word_order on the built-in corpus; "
            "question_words on the questions of QNLI. Default, if nothing else is named: packages, and the documents "
            "that a run on the built-in corpus holds out."
        },
    )
    data_dir: str | None = field(default=None, metadata={"help": "Folder of GLUE tasks. Default: the Hub."})
    rerank_dir: list[str] | None = field(
        default=None, metadata={"help": "Reranking sets: folders in AskUbuntu's format."}
    )
    with_body: bool = field(default=False, metadata={"help": "Rerank by title and body instead of the title."})
    split: str | None = field(
        default=None,
        metadata={"help": "Scored split of GLUE and reranking: test or validation. Default: test if it has labels."},
    )
    task_file: str | None = field(
        default=None, metadata={"help": "Labelled file of your own: parquet, json, jsonl or csv."}
    )
    task_test_file: str | None = field(
        default=None, metadata={"help": "Scored rows of --task_file. Default: every fifth row."}
    )
    texts: list[str] | None = field(
        default=None,
        metadata={
            "help": "Documents of your own, without labels: files, folders, globs. A file of prose is one document, "
            "divided at sections and paragraphs where it is longer than 2,048 characters; a row of a table is one. A "
            "passage has to find the rest of its document."
        },
    )
    train_texts: list[str] | None = field(
        default=None,
        metadata={
            "help": "Training texts of the encoder, on which TF-IDF and BM25 are fitted too, for --texts, "
            "--rerank_dir and cosines of similarity tasks."
        },
    )
    title_column: str | None = field(
        default=None, metadata={"help": "Column of titles in --texts; each title has to find its text."}
    )
    text_column: list[str] | str = field(
        default_factory=lambda: ["text"],
        metadata={
            "help": "Column of the texts in --task_file and --texts; a.b for a field within a column; in --texts "
            "several are joined by a blank line."
        },
    )
    quoting: Quoting = field(
        default="checked",
        metadata={
            "help": "How to read quotes in csv and tsv files: as cell delimiters after a plausibility check "
            "(checked), always as delimiters (standard), or as ordinary characters (none)."
        },
    )
    pair_column: str | None = field(default=None, metadata={"help": "Column of the second texts in --task_file."})
    label_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of the labels in --task_file; numbers with a fraction are scores. Default: label. Without "
            "--task_file: column of classes in --texts, predicted by nearest neighbours; no default."
        },
    )
    mode: list[str] = field(
        default_factory=lambda: ["linear", "knn"],
        metadata={
            "choices": [*MODES, "all"],
            "help": "Modes: linear probe, nearest neighbours and attention over tokens, all on frozen features; or "
            "fine-tuning.",
        },
    )
    seeds: list[int] = field(
        default_factory=lambda: [0],
        metadata={"help": "Random seeds; scores are means over them."},
    )
    layers: int = field(default=1, metadata={"help": "Number of last layers that frozen features average."})
    layer_sweep: bool = field(
        default=False, metadata={"help": "Also probe every layer of the first encoder (linear, knn, cosines)."}
    )
    pooling: Pooling | None = field(
        default=None,
        metadata={
            "help": "Plain mean over the tokens, or the state of the first one. Default: as the encoder's "
            "sentence-transformers files specify, word weights included; without such files, the plain mean."
        },
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Window in tokens: longer texts are read in several windows, pairs are truncated. Default: what "
            "the folder says, at most 512 and what the encoder has positions for."
        },
    )
    finetune_args: list[str] | None = field(
        default=None, metadata={"help": "Fine-tuning settings as KEY=VALUE: fields of TrainingArguments."}
    )
    controls: bool = field(
        default=True, metadata={"help": "Also score controls that need no training; --no_controls skips them."}
    )
    output_dir: str | None = field(default=None, metadata={"help": "Folder for results, answers and pictures."})
    do_predict: bool = field(
        default=False,
        metadata={"help": "Write predictions for hidden test splits in GLUE's format."},
    )
    update_card: bool = field(default=False, metadata={"help": "Write the scores into the encoder's README.md."})
    allow_remote_code: list[str] | None = field(
        default=None,
        metadata={
            "help": "Folders or Hub names of encoders with an architecture that transformers does not provide, whose "
            "own Python code may be run. This code can do anything that you can: read it first. Default: no code is "
            "run."
        },
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Cache of downloads and of the built-in corpus."})

    def __post_init__(self) -> None:
        self.mode = list(MODES) if "all" in self.mode else list(dict.fromkeys(self.mode))
        self.seeds = list(dict.fromkeys(self.seeds))
        if isinstance(self.text_column, list) and len(self.text_column) == 1:
            self.text_column = self.text_column[0]
        if isinstance(self.text_column, list) and self.task_file:
            raise ValueError(f"--text_column {' '.join(self.text_column)}: --task_file takes one; see --pair_column")
        if min(self.seeds) < 0:
            raise ValueError("--seeds: must not be negative")
        if max(self.seeds) >= 2**32:
            raise ValueError(f"--seeds {max(self.seeds)}: must be below {2**32}")
        if self.layers < 1:
            raise ValueError(f"--layers {self.layers}: must be at least 1, the last layer")
        for pair in self.finetune_args or ():
            if "=" not in pair:
                raise ValueError(f"--finetune_args {pair}: expected KEY=VALUE, such as learning_rate=1e-4")
        if self.finetune_args and "finetune" not in self.mode:
            raise ValueError("--finetune_args has no effect without --mode finetune")
        if self.finetune_args and not (self.tasks or self.task_file or names_nothing(self)):
            raise ValueError("--finetune_args goes with --tasks or --task_file")
        for name, others in _GOES_WITH.items():
            value = getattr(self, name)
            is_asked = value and value != _USUAL.get(name)
            if is_asked and not any(getattr(self, other) for other in others):
                raise ValueError(f"--{name} goes with --{' or --'.join(others)}")
        if self.layer_sweep and not self.output_dir:
            raise ValueError("--layer_sweep draws a picture: it needs --output_dir")
        if self.do_predict and not self.output_dir:
            raise ValueError("--do_predict writes files: it needs --output_dir")


# In the order of docs/reference/flags.md.
SECTIONS = {
    "Encoders": (
        "model_name_or_path",
        "compare",
        "pooling",
        "max_length",
        "layers",
        "layer_sweep",
        "allow_remote_code",
        "cache_dir",
    ),
    "Tasks with labels": (
        "tasks",
        "data_dir",
        "split",
        "task_file",
        "task_test_file",
        "pair_column",
        "label_column",
        "rerank_dir",
        "with_body",
    ),
    "Documents without labels": ("texts", "train_texts", "text_column", "title_column", "quoting"),
    "Modes and controls": ("mode", "seeds", "finetune_args", "controls"),
    "Results": ("output_dir", "do_predict", "update_card"),
}

PAGE = HelpPage(
    SECTIONS,
    main=(
        "compare",
        "tasks",
        "data_dir",
        "task_file",
        "rerank_dir",
        "texts",
        "train_texts",
        "mode",
        "seeds",
        "controls",
        "output_dir",
        "update_card",
    ),
    words={
        "CONFIG.yaml ...": "Files of flags, which later flags override.",
        "ENCODER": "The encoder in question: a folder or a name on the Hub. Default: the newest run in runs/.",
    },
    examples="""\
  {prog} runs/notes                                       built-in texts, no download
  {prog} runs/notes --texts unseen/ --train_texts notes/  your documents, without labels
  {prog} runs/notes --tasks sst2 stsb --data_dir glue --compare OTHER""",
)


def names_nothing(args: ProbeArguments) -> bool:
    """Whether no task, file or folder is named, so that the built-in corpus is used."""
    return not (args.tasks or args.task_file or args.rerank_dir or args.texts)
