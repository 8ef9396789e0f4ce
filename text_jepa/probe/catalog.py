"""The tasks that need no files: packages, word content, words of questions, order of words; and tasks by name."""

import random
import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from text_jepa.cli import UsageError, nearest
from text_jepa.data.builtin_corpus import load_builtin_corpus
from text_jepa.data.corpus import BUILDERS, suffix_of
from text_jepa.probe.arguments import names_nothing
from text_jepa.probe.glue import GLUE_TASKS, load_glue
from text_jepa.probe.reranking import RerankingTask, load_reranking
from text_jepa.probe.tasks import HOLD_OUT_EVERY, METRICS_OF_KIND, Split, Task, load_task_file, make_task


# Kinds of questions, each by the words that ask it.
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

# Of a sentence whose word order is asked for, at least and at most.
_SENTENCE_WORDS = (5, 25)
_PACKAGES = 10
_PACKAGE_TEXTS = {"train": 200, "test": 50}  # per package, at most


def word_content(texts: Sequence[str], words: int = 50, texts_per_word: int = 50, seed: int = 0) -> Task:
    """Which of some mid-frequency words stands in a text? (WC of Conneau et al. 2018, for collections of any size.)

    The words are the rarest of at least four letters that stand in enough texts, so that all are about equally
    frequent. Every text holds exactly one of them, and every word has the same number of texts, a fifth of them held
    out. Equal texts count once.

    Args:
        texts: Sentences or short texts; what an encoder cuts off it cannot know.
        words: Number of words.
        texts_per_word: Number of texts of each.
        seed: Of the choice of the texts and of the split.

    Raises:
        UsageError: The texts are too few.
    """
    if words < 2 or texts_per_word < 2:
        raise UsageError("word content needs at least 2 words and 2 texts of each")
    texts = list(dict.fromkeys(texts))
    vocabularies = [set(re.findall(r"\b[^\W\d_]{4,}\b", text.lower())) for text in texts]
    counts = Counter(word for vocabulary in vocabularies for word in vocabulary)
    pool = sorted((word for word in counts if counts[word] >= texts_per_word), key=lambda word: (counts[word], word))
    while True:
        chosen = set(pool[:words])
        if len(chosen) < words:
            raise UsageError(
                f"word content: too few of the {len(texts)} texts for {words} words with {texts_per_word} texts each; "
                "give more texts or ask for fewer"
            )
        rows = {word: [] for word in sorted(chosen)}
        for row, vocabulary in enumerate(vocabularies):
            if len(held := chosen & vocabulary) == 1:
                rows[held.pop()].append(row)
        scarce = {word for word in rows if len(rows[word]) < texts_per_word}
        if not scarce:
            break
        pool = [word for word in pool if word not in scarce]
    parts = {"train": [], "test": []}
    for label, word in enumerate(rows):
        picked = random.Random(f"{seed} {word}").sample(rows[word], texts_per_word)
        held_out = max(1, texts_per_word // HOLD_OUT_EVERY)
        parts["test"] += [(texts[row], label) for row in picked[:held_out]]
        parts["train"] += [(texts[row], label) for row in picked[held_out:]]
    return make_task(
        "word_content", "classification", _labelled(parts), METRICS_OF_KIND["classification"], tuple(rows)
    )


def question_words(texts: Sequence[str], train: int = 300, per_kind: int = 300, seed: int = 0) -> Task:
    """Which kind of question is this: who, where, when, what, which, why, how many or how?

    The question word stays in the text, so that the probe asks whether a vector still tells function words apart. A
    text with question words of two kinds, or of none, is left out; equal texts count once. Few training questions
    keep the task from being saturated.

    Args:
        texts: Questions; other texts may be among them.
        train: Number of training questions; all others are scored.
        per_kind: Most questions of a kind, so that "what", half of all, does not decide the score.
        seed: Of the choice of the questions and of the split.

    Raises:
        UsageError: There are no more questions than are to be trained on.
    """
    questions = {kind: [] for kind in _QUESTION_WORDS}
    for text in dict.fromkeys(texts):
        kinds = _kinds_of_question(text)
        if len(kinds) == 1:
            questions[kinds[0]].append(text)
    chance = random.Random(seed)
    rows = []
    for label, of_kind in enumerate(questions.values()):
        chance.shuffle(of_kind)
        rows += [(text, label) for text in of_kind[:per_kind]]
    if len(rows) <= train:
        raise UsageError(
            f"question words: {len(rows)} questions with one question word are too few for {train} training "
            "questions; give more texts or ask for fewer"
        )
    chance.shuffle(rows)
    parts = {"train": rows[:train], "test": rows[train:]}
    return make_task(
        "question_words", "classification", _labelled(parts), METRICS_OF_KIND["classification"], tuple(questions)
    )


def _kinds_of_question(text):
    lowered = text.lower()
    return [kind for kind, words in _QUESTION_WORDS.items() if re.search(rf"\b(?:{words})\b", lowered)]


def question_words_task(data_dir: str | None = None, cache_dir: str | None = None) -> Task:
    """`question_words` of the questions of GLUE's QNLI, of all its splits."""
    qnli = load_glue("qnli", data_dir, cache_dir)
    return question_words([question for split in qnli.splits.values() for question in split.texts])


def word_order(sentences: Sequence[str], limit: int = 5_000, seed: int = 0) -> Task:
    """Were two neighbouring words of this sentence exchanged? (Bigram shift of Conneau et al. 2018.)

    Sentences have 5 to 25 words. The exchanged words are inside the sentence, in lower case and without punctuation,
    so that order alone gives them away. Every second sentence is changed, and a fifth is held out; a sentence is
    never there in both forms. A vector that does not know the order of words is right in half of the cases.

    Args:
        sentences: Sentences as they were written; equal ones count once.
        limit: Most sentences of the task.
        seed: Of the choice of the sentences, of the exchanged words and of the split.

    Raises:
        UsageError: There are fewer than 10 sentences in which words can be exchanged.
    """
    chance = random.Random(seed)
    candidates = [sentence.split() for sentence in dict.fromkeys(sentences)]
    candidates = [words for words in candidates if _exchangeable(words)]
    chance.shuffle(candidates)
    rows = []
    for number, words in enumerate(candidates[:limit]):
        is_changed = number % 2
        if is_changed:
            place = chance.choice(_exchangeable(words))
            words = [*words[:place], words[place + 1], words[place], *words[place + 2 :]]
        rows.append((" ".join(words), is_changed))
    held_out = len(rows) // HOLD_OUT_EVERY
    if held_out < 2:
        raise UsageError(
            f"word order: {len(rows)} sentences in which words can be exchanged are too few; give at least 10"
        )
    parts = {"train": rows[held_out:], "test": rows[:held_out]}
    return make_task(
        "word_order",
        "classification",
        _labelled(parts),
        METRICS_OF_KIND["classification"],
        ("as written", "exchanged"),
    )


def _exchangeable(words):
    """Places of words that can change with the next one; none in a sentence that is too short or too long."""
    if not _SENTENCE_WORDS[0] <= len(words) <= _SENTENCE_WORDS[1]:
        return []
    plain = [word.isalpha() and word.islower() for word in words]
    inside = range(1, len(words) - 2)
    return [place for place in inside if plain[place] and plain[place + 1] and words[place] != words[place + 1]]


def word_order_task(cache_dir: str | None = None) -> Task:
    """`word_order` of the sentences in the held-out part of the built-in corpus, which no encoder was trained on."""
    texts = load_builtin_corpus(cache_dir)["validation"]["text"]
    # A line that ends without a stop is a heading or an item of a list.
    sentences = [sentence for text in texts for sentence in re.split(r"(?<=[.!?])\s+|\n", text)]
    return word_order([sentence for sentence in sentences if sentence.endswith((".", "!", "?"))])


def load_task(flag: str, name: str, data_dir: str | None = None, cache_dir: str | None = None) -> Task:
    """The task that a flag names: `packages`, one of GLUE, or a file with the columns `text` and `label`.

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


def package_task(cache_dir: str | None = None) -> Task:
    """Which of ten Python packages does a held-out text of the built-in corpus document?

    Trained on the corpus' training part, scored on its held-out part; needs no download.
    """
    corpus = load_builtin_corpus(cache_dir)
    counts = Counter(corpus["validation"]["package"])
    packages = sorted(sorted(counts, key=lambda package: (-counts[package], package))[:_PACKAGES])
    parts = {}
    for (split, limit), source in zip(_PACKAGE_TEXTS.items(), ("train", "validation"), strict=True):
        rows = {package: [] for package in packages}
        part = corpus[source].shuffle(seed=0)
        for text, package in zip(part["text"], part["package"], strict=True):
            if package in rows and len(rows[package]) < limit:
                rows[package].append(text)
        parts[split] = [(text, label) for label, package in enumerate(packages) for text in rows[package]]
    return make_task(
        "packages", "classification", _labelled(parts), METRICS_OF_KIND["classification"], tuple(packages)
    )


def _labelled(parts):
    return {
        split: Split([text for text, _ in rows], None, np.array([label for _, label in rows]), list(range(len(rows))))
        for split, rows in parts.items()
    }


def load_tasks(args) -> tuple[list[Task], list[RerankingTask]]:
    """The tasks and the reranking sets asked for."""
    own = {"packages": partial(package_task, args.cache_dir), "word_content": partial(words_task, args.cache_dir)}
    own["question_words"] = partial(question_words_task, args.data_dir, args.cache_dir)
    own["word_order"] = partial(word_order_task, args.cache_dir)
    known = (*GLUE_TASKS, *own)
    tasks = []
    for name in dict.fromkeys(["packages"] if names_nothing(args) else args.tasks or []):
        if name.removesuffix("_mini") not in known:
            raise UsageError(f"--tasks: no task '{name}'{nearest(name, known)} (there are {', '.join(known)})")
        tasks.append(own[name]() if name in own else load_glue(name, args.data_dir, args.cache_dir, args.split))
    if args.task_file:
        columns = (args.text_column, args.pair_column, args.label_column or "label")
        tasks.append(load_task_file(args.task_file, args.task_test_file, *columns, cache_dir=args.cache_dir))
    # AskUbuntu's name of its validation split.
    split = "dev" if args.split == "validation" else args.split or "test"
    folders = dict.fromkeys(args.rerank_dir or [])
    return tasks, [load_reranking(folder, split, args.with_body, args.cache_dir) for folder in folders]


def words_task(cache_dir) -> Task:
    """Word content of the sentences in the held-out part of the built-in corpus, which no encoder was trained on."""
    texts = load_builtin_corpus(cache_dir)["validation"]["text"]
    return word_content([sentence for text in texts for sentence in re.split(r"(?<=[.!?])\s+|\n", text) if sentence])
