"""The flags of the probe."""

from dataclasses import dataclass, field

from text_jepa.embeddings import Pooling


MODES = ("linear", "knn", "attentive", "finetune")


@dataclass
class ProbeArguments:
    """What to probe, on what, how."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Encoder: folder or Hub name. Default: the newest run in runs/."}
    )
    compare: list[str] | None = field(default=None, metadata={"help": "Further encoders."})
    tasks: list[str] | None = field(
        default=None,
        metadata={
            "help": "Tasks of GLUE by name; packages, word_content and word_order on the built-in corpus; "
            "question_words of the questions of QNLI. Default, if nothing else is named: packages, and the documents "
            "that a run on the built-in corpus holds out."
        },
    )
    data_dir: str | None = field(default=None, metadata={"help": "Folder of GLUE tasks. Default: the Hub."})
    rerank_dir: list[str] | None = field(default=None, metadata={"help": "Folders in the format of AskUbuntu."})
    with_body: bool = field(default=False, metadata={"help": "Rerank by title and body instead of the title."})
    split: str | None = field(
        default=None,
        metadata={"help": "Scored split of GLUE and reranking: test or validation. Default: test where labelled."},
    )
    task_file: str | None = field(default=None, metadata={"help": "A set of your own: parquet, json, jsonl or csv."})
    task_test_file: str | None = field(default=None, metadata={"help": "Its scored part. Default: every fifth row."})
    texts: list[str] | None = field(
        default=None,
        metadata={
            "help": "Documents of your own, without labels, one per line or row: files, folders, globs. A passage has "
            "to find the rest of its document."
        },
    )
    train_texts: list[str] | None = field(
        default=None,
        metadata={
            "help": "What TF-IDF and BM25 are fitted on, as the encoder was: of --texts, --rerank_dir and cosines of "
            "similarity tasks."
        },
    )
    title_column: str | None = field(
        default=None, metadata={"help": "With --texts: column of titles, each of which has to find its text."}
    )
    text_column: str = field(default="text", metadata={"help": "Column of the texts of --task_file and --texts."})
    pair_column: str | None = field(default=None, metadata={"help": "Column of its second texts."})
    label_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of its labels; numbers with a point are scores. Default: label. With --texts (no default) "
            "classes, to be told by nearest neighbours."
        },
    )
    mode: list[str] = field(
        default_factory=lambda: ["linear", "knn"],
        metadata={
            "choices": [*MODES, "all"],
            "help": "Of frozen features: linear probe, nearest neighbours, attention over the tokens; or fine-tuning.",
        },
    )
    seeds: list[int] = field(
        default_factory=lambda: [0],
        metadata={"help": "Of folds, orders, heads and random encoders; scores are means over them."},
    )
    layers: int = field(default=1, metadata={"help": "Frozen features are the average of so many last layers."})
    layer_sweep: bool = field(
        default=False, metadata={"help": "Also probe every layer of the first encoder (linear, knn, cosines)."}
    )
    pooling: Pooling | None = field(
        default=None,
        metadata={
            "help": "The plain mean over the tokens, or the state of the first. Default: what the folder says, with "
            "its weights of words; else the mean."
        },
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Longer texts are read in windows of so many tokens; pairs are cut there. Default: what the "
            "folder says, at most 512."
        },
    )
    finetune_args: list[str] | None = field(
        default=None, metadata={"help": "KEY=VALUE in place of the recipe: fields of TrainingArguments."}
    )
    controls: bool = field(
        default=True, metadata={"help": "Probe what needs no training too: --no_controls leaves it out."}
    )
    output_dir: str | None = field(default=None, metadata={"help": "Write results, answers and pictures here."})
    do_predict: bool = field(
        default=False, metadata={"help": "Write predictions of hidden test splits in GLUE's format to the output_dir."}
    )
    update_card: bool = field(default=False, metadata={"help": "Write the figures into the encoder's README.md."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where downloads and the built-in corpus are kept."})

    def __post_init__(self):
        self.mode = list(MODES) if "all" in self.mode else list(dict.fromkeys(self.mode))
        self.seeds = list(dict.fromkeys(self.seeds))
        if min(self.seeds) < 0:
            raise ValueError("--seeds: must not be negative")
        if self.layers < 1:
            raise ValueError(f"--layers {self.layers}: must be at least 1, the last layer")
        for pair in self.finetune_args or ():
            if "=" not in pair:
                raise ValueError(f"--finetune_args {pair}: expected KEY=VALUE, such as learning_rate=1e-4")
        if self.finetune_args and "finetune" not in self.mode:
            raise ValueError("--finetune_args has no effect without --mode finetune")
        if self.title_column and not self.texts:
            raise ValueError("--title_column goes with --texts")
        if self.layer_sweep and not self.output_dir:
            raise ValueError("--layer_sweep draws a picture: it needs --output_dir")
        if self.do_predict and not self.output_dir:
            raise ValueError("--do_predict writes files: it needs --output_dir")


def names_nothing(args) -> bool:
    """Whether no task, file or folder is named, so that the built-in corpus is asked."""
    return not (args.tasks or args.task_file or args.rerank_dir or args.texts)
