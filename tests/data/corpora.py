"""Makes documents, files and a word tokenizer for the tests of the data room."""

import csv
import gzip
import json
import random

import pyarrow
import pyarrow.parquet
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from text_jepa.data.corpus import CorpusArguments, load_corpus


WORDS = ["the", "river", "carried", "a", "little", "boat", "past", "mill", "and", "bridge", "open", "sea", "came"]

PAD, UNK, CLS, SEP = range(4)


def word_tokenizer(*more, before="[CLS]", after="[SEP]"):
    """Makes a tokenizer with one token per word and full stop, so that ids correspond to words."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", *WORDS, *more]
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{before} $A {after}".strip(), special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")


def documents(count, seed=0, most_words=40):
    """Makes documents of random words with a few full stops."""
    draw = random.Random(seed)
    texts = []
    for _ in range(count):
        words = draw.choices(WORDS, k=draw.randint(2, most_words))
        texts.append(" ".join(word + " ." * (draw.random() < 0.2) for word in words))
    return texts


def write(path, texts, column="text"):
    """Writes one document per row, in the format of the suffix."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    path.parent.mkdir(exist_ok=True, parents=True)
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({column: texts}), path)
        return path
    if kind in ("txt", "text", "md"):
        content = "".join(f"{text}\n" for text in texts)
    elif kind == "jsonl":
        content = "".join(json.dumps({column: text, "extra": 1}) + "\n" for text in texts)
    elif kind == "json":
        content = json.dumps([{column: text} for text in texts])
    else:
        with open(path, "w", newline="") as file:
            csv.writer(file, delimiter="\t" if kind == "tsv" else ",").writerows([[column], *[[t] for t in texts]])
        return path
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())
    return path


def load_splits(cache_dir, *files, **fields):
    """Loads the splits of a corpus with a separate cache."""
    arguments = CorpusArguments(*files, **fields)
    return load_corpus(arguments, cache_dir=str(cache_dir)).splits
