"""Tells whether an encoder became better: a linear probe of frozen features beside honest controls.

    python run_probe.py                         # the newest encoder in runs/
    python run_probe.py PATH_OR_NAME

The task needs no download: which of ten Python packages does a held-out text of the built-in corpus document? The
controls are the same architecture with random weights and TF-IDF.
"""

import itertools
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline
from transformers import AutoConfig, AutoModel, AutoTokenizer, set_seed

from text_jepa.arguments import UsageError, parse_arguments, run_command
from text_jepa.builtin_corpus import load_builtin_corpus
from text_jepa.probing import embed_texts, linear_probe


PACKAGES = 10
TRAIN_TEXTS = 200  # per package
TEST_TEXTS = 50  # per package, at most


@dataclass
class ProbeArguments:
    """What to probe."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Encoder: folder or Hub name. Default: the newest run in runs/."}
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Texts are cut at so many tokens. Default: what the tokenizer was made for."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the random encoder and of the probe."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where the built-in corpus is kept."})


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Runs the command; returns accuracies in percent by name."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and not argv[0].startswith("-"):
        argv.insert(0, "--model_name_or_path")
    (args,) = parse_arguments((ProbeArguments,), argv, __doc__.split("\n")[0])
    transformers.utils.logging.set_verbosity_error()
    name = args.model_name_or_path or newest_run()
    try:
        tokenizer, encoder = AutoTokenizer.from_pretrained(name), AutoModel.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UsageError(f"{name}: no encoder there ({str(error).splitlines()[0]})") from error
    max_length = args.max_length or min(tokenizer.model_max_length, 512)
    set_seed(args.seed)
    untrained = AutoModel.from_config(AutoConfig.from_pretrained(name))

    for model in (encoder, untrained):
        model.to("cuda" if torch.cuda.is_available() else "cpu")

    train, test = package_task(args.cache_dir)
    tfidf = make_pipeline(TfidfVectorizer(sublinear_tf=True), TruncatedSVD(256, random_state=args.seed))
    tfidf.fit(train["text"])
    features = {
        name: lambda texts: embed_texts(encoder, tokenizer, texts, max_length),
        "random weights": lambda texts: embed_texts(untrained, tokenizer, texts, max_length),
        "TF-IDF, 256 components": tfidf.transform,
    }
    sizes = f"{len(train['text'])} training texts, {len(test['text'])} held out"
    print(f"which of {PACKAGES} packages a text documents: {sizes}")
    majority = max(map(test["package"].count, set(test["package"])))
    scores = {"majority": 100 * majority / len(test["text"])}
    for title, embed in features.items():
        scores[title] = linear_probe(
            embed(train["text"]), train["package"], embed(test["text"]), test["package"], args.seed
        )
    for title, score in scores.items():
        print(f"  {title:<40} {score:5.1f} % accuracy")
    return scores


def newest_run() -> str:
    """The folder of the last run that ended with an encoder."""
    runs = sorted(Path("runs").glob("*/modules.json"), key=lambda path: path.stat().st_mtime)
    if not runs:
        raise UsageError("no encoder in runs/; train one with `make pretrain`, or name one")
    return str(runs[-1].parent)


def package_task(cache_dir):
    """Training and test texts with their package, from the two parts of the built-in corpus."""
    corpus = load_builtin_corpus(cache_dir)
    held_out = corpus["validation"]["package"]
    packages = sorted(set(held_out), key=held_out.count)[-PACKAGES:]
    parts = []
    for split, limit in (("train", TRAIN_TEXTS), ("validation", TEST_TEXTS)):
        labels = corpus[split].shuffle(seed=0)
        rows = {package: [] for package in packages}
        for row, package in enumerate(labels["package"]):
            if package in rows and len(rows[package]) < limit:
                rows[package].append(row)
        parts.append(labels.select(itertools.chain.from_iterable(rows.values())).to_dict())
    return parts


def console():
    """Entry point of `text-jepa-probe`."""
    run_command(main)


if __name__ == "__main__":
    console()
