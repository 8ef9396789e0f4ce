"""Tasks by name, and the tasks that need no files: packages, word content, question words, word order."""

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from datasets import Dataset

from text_jepa.cli import UsageError, nearest
from text_jepa.data.builtin_corpus import load_builtin_corpus
from text_jepa.data.compressed import suffix_of
from text_jepa.data.files import BUILDERS
from text_jepa.probe.arguments import ProbeArguments, names_nothing
from text_jepa.probe.glue import GLUE_TASKS, base_name, load_glue
from text_jepa.probe.reranking import RerankingTask, load_reranking
from text_jepa.probe.tasks import HOLD_OUT_EVERY, METRICS_OF_KIND, Split, Task, load_task_file, make_task


# Kinds of questions, each with the words that ask it.
_QUESTION_WORDS = {
    "who": r"who|whom|whose",
    "where": r"where",
    "when": r"when",
    "what": r"what",
    "which": r"which",
    "why": r"why",
    "how many": r"how (?:many|much)",
    "how": r"how(?! (?:many|much))",
}

_ALPHABETIC_WORD = re.compile(r"\b[^\W\d_]{4,}\b")
_END_OF_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n")

# Shortest and longest sentence of the word order task.
_FEWEST_WORDS = 5
_MOST_WORDS = 25

_PACKAGES = 10
# Largest number of texts of each package.
_PACKAGE_TRAINING_TEXTS = 200
_PACKAGE_TEST_TEXTS = 50

_Row = tuple[str, int]


# ---- by name --------------------------------------------------------------------------------------------------------


def load_task(
    flag: str,
    name: str,
    data_dir: str | None = None,
    cache_dir: str | None = None,
) -> Task:
    """The task that a flag names: `packages`, one of GLUE, or a file with the columns `text` and `label`.

    Args:
        flag: Name of the flag, for the error.
        name: Name of the task or path of the file.
        data_dir: Folder of GLUE tasks. Defaults to the Hub.
        cache_dir: Cache of the datasets library.

    Raises:
        UsageError: There is no such file or task, or it cannot be read.
    """
    if name == "packages":
        return package_task(cache_dir)
    if suffix_of(Path(name)) not in BUILDERS:
        return load_glue(name, data_dir, cache_dir)
    if not Path(name).is_file():
        raise UsageError(f"--{flag} {name}: no such file")
    return load_task_file(name, cache_dir=cache_dir)


def load_tasks(args: ProbeArguments) -> tuple[list[Task], list[RerankingTask]]:
    """The tasks and the reranking sets that the arguments name.

    Raises:
        UsageError: One of them does not exist or cannot be read.
    """
    built_in = {
        "packages": partial(package_task, args.cache_dir),
        "word_content": partial(word_content_task, args.cache_dir),
        "question_words": partial(question_words_task, args.data_dir, args.cache_dir),
        "word_order": partial(word_order_task, args.cache_dir),
    }
    known = (*GLUE_TASKS, *built_in)
    names = ["packages"] if names_nothing(args) else args.tasks or []
    has_splits = bool(args.rerank_dir) or any(name not in built_in for name in names)
    if args.split and not has_splits:
        raise UsageError(
            f"--split: {names[0]} has only one split to score; name a task of GLUE or a reranking set, or leave the "
            "flag out"
        )
    tasks = []
    for name in dict.fromkeys(names):
        if base_name(name) not in known:
            raise UsageError(f"--tasks: no task '{name}'{nearest(name, known)} (there are {', '.join(known)})")
        if name in built_in:
            load = built_in[name]
            tasks.append(load())
        else:
            tasks.append(load_glue(name, args.data_dir, args.cache_dir, args.split, args.quoting))
    if args.task_file:
        task = load_task_file(
            args.task_file,
            args.task_test_file,
            text_column=args.text_column,
            pair_column=args.pair_column,
            label_column=args.label_column or "label",
            cache_dir=args.cache_dir,
            quoting=args.quoting,
        )
        tasks.append(task)

    # AskUbuntu's name of its validation split is dev.
    split = "dev" if args.split == "validation" else args.split or "test"
    rerankings = []
    for folder in dict.fromkeys(args.rerank_dir or []):
        rerankings.append(load_reranking(folder, split, args.with_body, args.cache_dir))
    return tasks, rerankings


# ---- packages -------------------------------------------------------------------------------------------------------


def package_task(cache_dir: str | None = None) -> Task:
    """Which of ten Python packages does a held-out text of the built-in corpus document?

    Trained on the training part of the corpus and scored on its held-out part; needs no download.
    """
    corpus = load_builtin_corpus(cache_dir)
    counts = Counter(corpus["validation"]["package"])
    by_size = sorted(counts, key=lambda package: (-counts[package], package))
    packages = sorted(by_size[:_PACKAGES])
    train = _texts_of_packages(corpus["train"], packages, _PACKAGE_TRAINING_TEXTS)
    test = _texts_of_packages(corpus["validation"], packages, _PACKAGE_TEST_TEXTS)
    return _classification("packages", train, test, packages)


def _texts_of_packages(
    part: Dataset,
    packages: Sequence[str],
    limit: int,
) -> list[_Row]:
    """At most `limit` texts of each package, with the number of the package."""
    texts = {package: [] for package in packages}
    shuffled = part.shuffle(seed=0)
    for text, package in zip(shuffled["text"], shuffled["package"], strict=True):
        if package in texts and len(texts[package]) < limit:
            texts[package].append(text)
    rows = []
    for label, package in enumerate(packages):
        rows += [(text, label) for text in texts[package]]
    return rows


# ---- word content ---------------------------------------------------------------------------------------------------


def word_content(
    texts: Sequence[str],
    words: int = 50,
    texts_per_word: int = 50,
    seed: int = 0,
) -> Task:
    """Which of some mid-frequency words occurs in a text? (WC of Conneau et al. 2018, for collections of any size.)

    The words are the rarest of at least four letters that occur in enough texts, so that all are about equally
    frequent. Every text contains exactly one of them, and every word has the same number of texts, a fifth of them
    held out. Equal texts count once.

    Args:
        texts: Sentences or short texts; an encoder cannot know what it truncates.
        words: Number of words.
        texts_per_word: Number of texts of each.
        seed: Seed of the choice of the texts and of the split.

    Raises:
        UsageError: There are too few texts.
    """
    if words < 2 or texts_per_word < 2:
        raise UsageError("word content needs at least 2 words and 2 texts of each")
    texts = list(dict.fromkeys(texts))
    vocabularies = [set(_ALPHABETIC_WORD.findall(text.lower())) for text in texts]
    rows_of_word = _rows_of_words(vocabularies, words, texts_per_word)
    train = []
    test = []
    for label, (word, rows) in enumerate(rows_of_word.items()):
        chosen = random.Random(f"{seed} {word}").sample(rows, texts_per_word)
        held_out = max(1, texts_per_word // HOLD_OUT_EVERY)
        test += [(texts[row], label) for row in chosen[:held_out]]
        train += [(texts[row], label) for row in chosen[held_out:]]
    return _classification("word_content", train, test, rows_of_word)


def _rows_of_words(
    vocabularies: Sequence[set[str]],
    words: int,
    texts_per_word: int,
) -> dict[str, list[int]]:
    """The rarest words with enough texts in which no other of them occurs, and the rows of these texts."""
    counts = Counter(word for vocabulary in vocabularies for word in vocabulary)
    frequent = [word for word in counts if counts[word] >= texts_per_word]
    pool = sorted(frequent, key=lambda word: (counts[word], word))
    while True:
        chosen = set(pool[:words])
        if len(chosen) < words:
            raise UsageError(
                f"word content: too few of the {len(vocabularies)} texts for {words} words with {texts_per_word} "
                "texts each; give more texts or ask for fewer"
            )
        rows = {word: [] for word in sorted(chosen)}
        for row, vocabulary in enumerate(vocabularies):
            found = chosen & vocabulary
            if len(found) == 1:
                (word,) = found
                rows[word].append(row)
        scarce = {word for word in rows if len(rows[word]) < texts_per_word}
        if not scarce:
            return rows
        pool = [word for word in pool if word not in scarce]


def word_content_task(cache_dir: str | None = None) -> Task:
    """`word_content` of sentences of the held-out part of the built-in corpus, which no encoder was trained on."""
    sentences = [sentence for sentence in _held_out_sentences(cache_dir) if sentence]
    return word_content(sentences)


# ---- question words -------------------------------------------------------------------------------------------------


def question_words(
    texts: Sequence[str],
    train: int = 300,
    per_kind: int = 300,
    seed: int = 0,
) -> Task:
    """Which kind of question is this: who, where, when, what, which, why, how many or how?

    The question word stays in the text: the probe asks whether a vector still tells function words apart. Texts with
    question words of two kinds, or of none, are left out; equal texts count once. The training set is small so that
    the task is not saturated.

    Args:
        texts: Questions; other texts may be among them.
        train: Number of training questions; all others are scored.
        per_kind: Largest number of questions of a kind, so that "what", half of all, does not dominate the score.
        seed: Seed of the choice of the questions and of the split.

    Raises:
        UsageError: There are not more questions than `train`.
    """
    questions = {kind: [] for kind in _QUESTION_WORDS}
    for text in dict.fromkeys(texts):
        kinds = _kinds_of_question(text)
        if len(kinds) == 1:
            questions[kinds[0]].append(text)
    generator = random.Random(seed)
    rows = []
    for label, of_kind in enumerate(questions.values()):
        generator.shuffle(of_kind)
        rows += [(text, label) for text in of_kind[:per_kind]]
    if len(rows) <= train:
        raise UsageError(
            f"question words: {len(rows)} questions with one question word are too few for {train} training "
            "questions; give more texts or ask for fewer"
        )
    generator.shuffle(rows)
    return _classification("question_words", rows[:train], rows[train:], questions)


def _kinds_of_question(text: str) -> list[str]:
    lowered = text.lower()
    kinds = []
    for kind, words in _QUESTION_WORDS.items():
        if re.search(rf"\b(?:{words})\b", lowered):
            kinds.append(kind)
    return kinds


def question_words_task(data_dir: str | None = None, cache_dir: str | None = None) -> Task:
    """`question_words` of the questions of all splits of GLUE's QNLI."""
    qnli = load_glue("qnli", data_dir, cache_dir)
    questions = []
    for split in qnli.splits.values():
        questions += split.texts
    return question_words(questions)


# ---- word order -----------------------------------------------------------------------------------------------------


def word_order(
    sentences: Sequence[str],
    limit: int = 5_000,
    seed: int = 0,
) -> Task:
    """Were two neighbouring words of this sentence swapped? (Bigram shift of Conneau et al. 2018.)

    Sentences have 5 to 25 words. The swapped words are inside the sentence, in lower case and without punctuation, so
    that order alone gives them away. Every second sentence is changed, and a fifth is held out; no sentence occurs in
    both forms. A vector that does not encode word order is right in half of the cases.

    Args:
        sentences: Sentences as they were written; equal ones count once.
        limit: Largest number of sentences.
        seed: Seed of the choice of the sentences, of the swapped words and of the split.

    Raises:
        UsageError: There are fewer than 10 sentences in which words can be swapped.
    """
    generator = random.Random(seed)
    candidates = []
    for sentence in dict.fromkeys(sentences):
        words = sentence.split()
        if _swappable_places(words):
            candidates.append(words)
    generator.shuffle(candidates)

    rows = []
    for number, words in enumerate(candidates[:limit]):
        is_changed = number % 2
        if is_changed:
            place = generator.choice(_swappable_places(words))
            words = list(words)
            words.insert(place, words.pop(place + 1))
        rows.append((" ".join(words), is_changed))
    held_out = len(rows) // HOLD_OUT_EVERY
    if held_out < 2:
        raise UsageError(
            f"word order: {len(rows)} sentences in which words can be exchanged are too few; give at least 10"
        )
    return _classification("word_order", rows[held_out:], rows[:held_out], ("as written", "exchanged"))


def _swappable_places(words: list[str]) -> list[int]:
    """Places of words that can be swapped with the next one; none in a sentence that is too short or too long."""
    if not _FEWEST_WORDS <= len(words) <= _MOST_WORDS:
        return []
    places = []
    for place in range(1, len(words) - 2):
        first = words[place]
        second = words[place + 1]
        if _is_plain(first) and _is_plain(second) and first != second:
            places.append(place)
    return places


def _is_plain(word: str) -> bool:
    return word.isalpha() and word.islower()


def word_order_task(cache_dir: str | None = None) -> Task:
    """`word_order` of sentences of the held-out part of the built-in corpus, which no encoder was trained on."""
    # A line that ends without a stop is a heading or an item of a list.
    stops = (".", "!", "?")
    sentences = [sentence for sentence in _held_out_sentences(cache_dir) if sentence.endswith(stops)]
    return word_order(sentences)


# ---- shared ---------------------------------------------------------------------------------------------------------


def _held_out_sentences(cache_dir: str | None) -> list[str]:
    """Sentences and lines of the held-out part of the built-in corpus; some are empty."""
    sentences = []
    for text in load_builtin_corpus(cache_dir)["validation"]["text"]:
        sentences += _END_OF_SENTENCE.split(text)
    return sentences


def _classification(
    name: str,
    train: Sequence[_Row],
    test: Sequence[_Row],
    label_names: Iterable[str],
) -> Task:
    """A task of texts with their class numbers."""
    splits = {"train": _split(train), "test": _split(test)}
    return make_task(
        name,
        "classification",
        splits,
        METRICS_OF_KIND["classification"],
        label_names=tuple(label_names),
    )


def _split(rows: Sequence[_Row]) -> Split:
    texts = [text for text, _ in rows]
    labels = np.array([label for _, label in rows])
    return Split(texts, None, labels, list(range(len(rows))))
