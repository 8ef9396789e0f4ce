"""Tasks of the probe: every rule and every error of loading them, on made data and, where they are, on the real ones.

Run: python -m pytest -q tests/probe/test_tasks.py
On the real data: TEXT_JEPA_DATA=folder python -m pytest -q tests/probe/test_tasks.py -k real
(the folder holds glue/, askubuntu/ and qqp_rerank/)
"""

import gzip
import json
import math
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from text_jepa.cli import UsageError
from text_jepa.probe import catalog
from text_jepa.probe import glue as glue_room
from text_jepa.probe.catalog import package_task, question_words, question_words_task, word_content, word_order
from text_jepa.probe.glue import GLUE_TASKS, load_glue
from text_jepa.probe.reranking import load_reranking
from text_jepa.probe.tasks import load_task_file


COLUMNS = {
    "cola": ["sentence"],
    "sst2": ["sentence"],
    "qqp": ["question1", "question2"],
    "mnli": ["premise", "hypothesis"],
    "mnli-mm": ["premise", "hypothesis"],
    "qnli": ["question", "sentence"],
}


def rows(split, columns=("sentence",), labels=(0, 1, 0, 1)):
    texts = {column: [f"{split} {column} {i}" for i in range(len(labels))] for column in columns}
    return texts | {
        "label": list(labels),
        "idx": [100 + i for i in range(len(labels))],
    }


def write(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = Dataset.from_dict(table)
    if path.suffix == ".parquet":
        data.to_parquet(str(path))
    elif path.suffix in (".csv", ".tsv"):
        data.to_csv(
            str(path),
            index=False,
            sep="," if path.suffix == ".csv" else "\t",
        )
    elif path.suffix == ".jsonl":
        path.write_text(
            "".join(json.dumps(row) + "\n" for row in data),
            encoding="utf-8",
        )
    else:
        path.write_text(json.dumps(list(data)), encoding="utf-8")
    return str(path)


@pytest.fixture
def glue(tmp_path):
    """Writes splits of a task (SST-2 by default) and loads it."""

    def load(task="sst2", name=None, suffix=".parquet", scored=None, **splits):
        for split, table in splits.items():
            write(tmp_path / "glue" / task / f"{split}{suffix}", table)
        return load_glue(
            name or task,
            str(tmp_path / "glue"),
            cache_dir=str(tmp_path / "cache"),
            scored=scored,
        )

    return load


@pytest.fixture
def custom(tmp_path):
    """Writes a training and perhaps a test table and loads them with `load_task_file`."""

    def load(train, test=None, suffix=".parquet", **options):
        files = [
            write(tmp_path / f"{name}{suffix}", part) for name, part in (("songs", train), ("more", test)) if part
        ]
        return load_task_file(*files, cache_dir=str(tmp_path / "cache"), **options)

    return load


# ---- GLUE -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GLUE_TASKS)
def test_every_glue_task_has_its_columns_and_metrics(glue, name):
    columns = COLUMNS.get(name, ["sentence1", "sentence2"])
    labels = [0.0, 2.5, 5.0] if name == "stsb" else [2, 1, 0] if name.startswith("mnli") else [0, 1, 1]
    held_out = "validation_mismatched" if name == "mnli-mm" else "validation"
    splits = {
        "train": rows("train", columns, labels),
        held_out: rows("validation", columns, labels),
    }
    task = glue(name.removesuffix("-mm"), name=name, **splits)
    assert (task.name, task.scored, task.notes) == (name, "validation", ())
    assert task.kind == ("regression" if name == "stsb" else "classification")
    assert task.is_similarity == (name == "stsb")
    assert task.train.texts[1] == f"train {columns[0]} 1"
    assert (task.test.pairs and task.test.pairs[1]) == (f"validation {columns[1]} 1" if columns[1:] else None)
    assert task.test.labels.tolist() == labels
    assert task.test.labels.dtype == (np.float64 if name == "stsb" else np.int64)
    assert task.test.ids == [100, 101, 102]
    expected = {"cola": ("matthews_correlation",), "stsb": ("pearson", "spearmanr")}
    pairs = ("accuracy", "f1") if name in ("mrpc", "qqp") else ("accuracy",)
    assert task.metrics == expected.get(name, pairs)


@pytest.mark.parametrize("suffix", [".parquet", ".json", ".jsonl", ".csv", ".tsv"])
def test_glue_files_of_every_kind(glue, suffix):
    task = glue(
        suffix=suffix,
        train=rows("a"),
        validation=rows("b"),
        test=rows("c"),
    )
    assert [len(task.splits[split]) for split in ("train", "validation", "test")] == [4, 4, 4]
    assert task.scored == "test"
    assert task.test.labels.tolist() == [0, 1, 0, 1]


def test_quotes_of_glue_files_that_are_not_closed_are_named_and_can_be_characters(tmp_path):
    folder = tmp_path / "glue" / "sst2"
    folder.mkdir(parents=True)
    for split in ("train", "validation"):
        lines = [f'"{word} of {split} opens a quote\t{number % 2}\n' for number, word in enumerate("abcdefgh")]
        (folder / f"{split}.tsv").write_text("sentence\tlabel\n" + "".join(lines))
    arguments = ("sst2", str(tmp_path / "glue"), str(tmp_path / "cache"))
    with pytest.raises(UsageError, match=r"train\.tsv: .* --quoting none"):
        load_glue(*arguments)
    task = load_glue(*arguments, quoting="none")
    assert [len(part.texts) for part in task.splits.values()] == [8, 8]
    assert task.splits["train"].texts[0] == '"a of train opens a quote'


def test_mini_is_taken_where_the_whole_is_missing_and_says_so(glue):
    columns = COLUMNS["qqp"]
    splits = {
        "train": rows("a", columns),
        "validation": rows("b", columns),
    }
    for name in ("qqp", "qqp_mini"):
        task = glue("qqp_mini", name=name, **splits)
        assert task.name == "qqp_mini"
        assert "cannot be compared" in task.notes[0]
    assert glue("qqp", **splits).name == "qqp"


def test_glue_from_the_hub(monkeypatch):
    features = Features(
        {
            "premise": Value("string"),
            "hypothesis": Value("string"),
            "idx": Value("int32"),
        }
        | {"label": ClassLabel(names=["entailment", "neutral", "contradiction"])}
    )
    parts = {"train": [0, 1, 2]} | {f"validation_{m}": [2, 1, 0] for m in ("matched", "mismatched")}
    parts |= {f"test_{m}": [-1, -1, -1] for m in ("matched", "mismatched")}
    hub = DatasetDict(
        {
            split: Dataset.from_dict(
                rows(
                    split,
                    ("premise", "hypothesis"),
                    labels,
                ),
                features=features,
            )
            for split, labels in parts.items()
        }
    )
    asked = []
    monkeypatch.setattr(
        glue_room,
        "load_dataset",
        lambda *names, **_: asked.append(names) or hub,
    )
    for name, part in (("mnli", "matched"), ("mnli-mm", "mismatched")):
        task = load_glue(name)
        assert task.label_names == ("entailment", "neutral", "contradiction")
        assert task.scored == "validation"
        assert task.test.texts[0] == f"validation_{part} premise 0"
        assert task.splits["test"].texts[0] == f"test_{part} premise 0"
        assert task.splits["test"].labels is None
    assert asked == [("nyu-mll/glue", "mnli")] * 2


def test_hub_out_of_reach_is_one_line_with_the_remedy(monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(glue_room, "load_dataset", offline)
    with pytest.raises(UsageError, match=r"nyu-mll/glue rte .*--data_dir.*cannot be read: Couldn't reach"):
        load_glue("rte")


def test_misspelt_or_absent_task(glue, tmp_path):
    with pytest.raises(UsageError, match=r"no task 'stbs'; did you mean 'stsb'\?"):
        load_glue("stbs")
    with pytest.raises(UsageError, match=r"no task 'sst2_mini'"):
        load_glue("sst2_mini")
    glue(train=rows("a"), validation=rows("b"))
    with pytest.raises(UsageError, match=r"--data_dir .*glue: no folder 'rte' \(there is sst2\)"):
        glue("rte")
    with pytest.raises(UsageError, match=r"no folder 'rte' \(there is nothing\)"):
        load_glue("rte", str(tmp_path / "nowhere"))


def test_hidden_test_labels_can_be_predicted_but_not_scored(glue):
    splits = {
        "train": rows("a"),
        "validation": rows("b"),
        "test": rows("c", labels=[-1] * 4),
    }
    task = glue(**splits)
    assert task.scored == "validation"
    assert task.splits["test"].labels is None
    assert task.splits["test"].ids == [100, 101, 102, 103]
    assert task.notes == ("sst2 test: hidden labels (-1); it can be predicted, not scored",)
    with pytest.raises(UsageError, match="split 'test' cannot be scored; these have labels: validation"):
        glue(**splits, scored="test")


def test_scored_split_can_be_named(glue):
    splits = {
        "train": rows("a"),
        "validation": rows("b"),
        "test": rows("c"),
    }
    assert glue(**splits).scored == "test"
    task = glue(**splits, scored="validation")
    assert task.test is task.splits["validation"]
    with pytest.raises(UsageError, match="split 'train' cannot be scored"):
        glue(**splits, scored="train")


def test_glue_string_labels_take_glues_order(glue):
    columns = ("sentence1", "sentence2")
    words = ["not_entailment", "entailment"]
    splits = {
        "train": rows("a", columns, words),
        "validation": rows("b", columns, words),
    }
    assert glue("wnli", **splits).test.labels.tolist() == [0, 1]
    assert glue("rte", **splits).test.labels.tolist() == [1, 0]
    splits["train"]["label"][1] = "entailed"
    with pytest.raises(UsageError, match=r"row 2: unknown label 'entailed'; the labels are 'entailment'"):
        glue("rte", **splits)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 0, -1], r"train.parquet, column 'label', row 4: label -1 stands for a hidden label"),
        (
            [-1] * 4,
            r"train.parquet, column 'label', row 1: label -1 .*; remove the row, or if it is a class write all",
        ),
        ([0, 1, 2, 1], r"train.parquet, column 'label', row 3: unknown label 2; the labels are 0, 1"),
        ([0, 1, None, 1], r"train.parquet, column 'label', row 3: no label; write a label or remove the row"),
        ([0.0, 1.0, math.nan, 1.0], r"train.parquet, column 'label', row 3: label nan"),
        ([0.0, 1.0, 0.5, 1.0], r"train.parquet, column 'label', row 3: label 0.5 of a class is a fraction"),
        ([1, 1, 1, 1], r"sst2: the training split has a single class; at least 2"),
        (
            [
                [1],
                [0],
                [1],
                [0],
            ],
            r"train.parquet, column 'label': holds .*, not labels",
        ),
    ],
)
def test_wrong_class_labels(glue, labels, message):
    with pytest.raises(UsageError, match=message):
        glue(train=rows("a", labels=labels), validation=rows("b"))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.0, math.nan], r"train.parquet, column 'label', row 2: label nan; write a label or remove the row"),
        ([0.0, math.inf], r"row 2: label inf"),
        ([0.0, 5.5], r"row 2: score 5.5; scores go from 0 to 5"),
        ([0.0, -1.0], r"row 2: score -1.0; scores go from 0 to 5"),
        ([0.0, None], r"row 2: no label"),
        (["0", "many"], r"row 2: 'many' is not a number"),
        ([2.0, 2.0], r"stsb: the training split has a single score"),
    ],
)
def test_wrong_scores(glue, labels, message):
    columns = ("sentence1", "sentence2")
    with pytest.raises(UsageError, match=message):
        glue(
            "stsb",
            train=rows("a", columns, labels),
            validation=rows(
                "b",
                columns,
                [1.0, 2.0],
            ),
        )


def test_wrong_labels_of_the_scored_split(glue):
    with pytest.raises(UsageError, match=r"validation.parquet, column 'label', row 1: label -1"):
        glue(
            train=rows("a"),
            validation=rows("b", labels=[-1, 0]),
        )
    with pytest.raises(UsageError, match=r"validation.parquet, column 'label', row 2: unknown label 3"):
        glue(
            train=rows("a"),
            validation=rows("b", labels=[1, 3]),
        )


def test_missing_split_column_or_text(glue):
    with pytest.raises(UsageError, match=r"--data_dir .*glue: sst2 has no split 'train' \(there is validation\)"):
        glue(validation=rows("b"))
    with pytest.raises(UsageError, match=r"sst2: neither 'validation' nor 'test' has labels"):
        glue(
            "sst2",
            train=rows("a"),
            validation=rows("b", labels=[-1, -1]),
        )
    with pytest.raises(
        UsageError, match=r"no column 'sentence'; did you mean 'sentences'\? \(its columns are sentences"
    ):
        glue(
            "cola",
            train=rows("a", ["sentences"]),
            validation=rows("b"),
        )
    table = rows("a", ["question1", "question2"])
    table["question2"][1] = None
    with pytest.raises(UsageError, match=r"train.parquet, column 'question2', row 2: no text; remove it or"):
        glue(
            "qqp",
            train=table,
            validation=rows("b", ["question1", "question2"]),
        )
    with pytest.raises(UsageError, match=r"column 'sentence' holds int64, not text"):
        glue(
            "cola",
            train={
                "sentence": [1, 2],
                "label": [0, 1],
            },
            validation=rows("b"),
        )


def test_unreadable_files(glue, tmp_path):
    glue(train=rows("a"), validation=rows("b"))
    path = tmp_path / "glue" / "sst2" / "train.parquet"
    path.write_bytes(b"no parquet at all")
    with pytest.raises(UsageError, match=r"train.parquet: cannot be read"):
        glue()
    path.write_bytes(b"")
    with pytest.raises(UsageError, match=r"train.parquet: empty"):
        glue()


@pytest.mark.parametrize("line", ["null", "[]", "3", '"text"', "{"])
def test_a_row_that_is_no_object_is_named_by_its_line(tmp_path, line):
    """At a row that is null the reader of pyarrow ends the process."""
    path = tmp_path / "labels.jsonl"
    path.write_text(f'{line}\n{{"text": "a", "label": "b"}}\n')
    with pytest.raises(UsageError, match=r"labels.jsonl(, line 1|: cannot be read|: no)"):
        load_task_file(str(path))


# ---- rows that repeat or are empty ----------------------------------------------------------------------------------


def test_a_planted_leak_leaves_the_training_split_only(glue):
    train, validation = (
        rows(
            "a",
            labels=[0, 1, 0, 1, 0, 1],
        ),
        rows("b"),
    )
    train["sentence"][2:4] = validation["sentence"][:2]  # one with the same, one with the other label
    train["label"][2:4] = [0, 0]
    task = glue(train=train, validation=validation)
    assert task.train.texts == [train["sentence"][i] for i in (0, 1, 4, 5)]
    assert task.train.labels.tolist() == [0, 1, 0, 1]
    assert task.train.ids == [100, 101, 104, 105]
    assert task.test.texts == validation["sentence"]
    assert task.notes == ("sst2: 2 of 6 training rows removed, because their texts also occur in validation",)
    everything = rows("b")
    with pytest.raises(UsageError, match="sst2: the texts of all 4 training rows also occur in validation"):
        glue(train=everything, validation=everything)


def test_a_pair_is_a_leak_only_when_both_texts_are(glue):
    columns = ["sentence1", "sentence2"]
    train, validation = rows("a", columns), rows("b", columns)
    train["sentence1"] = list(validation["sentence1"])
    task = glue("mrpc", train=train, validation=validation)
    assert len(task.train) == 4
    train["sentence2"][0] = validation["sentence2"][0]
    assert glue(
        "mrpc",
        train=train,
        validation=validation,
    ).train.ids == [101, 102, 103]


def test_repeated_training_rows_and_empty_texts_are_kept(glue):
    train = rows("a")
    train["sentence"] = ["same", "same", "", "other"]
    task = glue(train=train, validation=rows("b"))
    assert task.train.texts == ["same", "same", "", "other"]
    assert task.notes == ()


# ---- any other set --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".parquet", ".json", ".jsonl", ".csv", ".tsv"])
def test_task_file_with_string_labels(custom, suffix):
    train = {
        "line": ["NA", "null", "c", "d", "e", "f", "g", "h", "i"],
        "to": ["1a", "2b", "3c", "4d", "5e", "6f", "7g", "8h", "9i"],
        "genre": ["rock", "blues", "rock", "NA", "blues", " blues", "NA", "rock ", "NA"],
    }
    test = {
        "line": ["x", "y"],
        "to": ["5", "x6"],
        "genre": ["blues", "rock"],
    }
    task = custom(
        train,
        test,
        suffix,
        text_column="line",
        pair_column="to",
        label_column="genre",
    )
    assert (task.name, task.kind, task.scored, task.metrics) == ("songs", "classification", "test", ("accuracy",))
    assert task.label_names == ("NA", "blues", "rock")
    assert task.train.texts == train["line"]
    assert task.train.pairs == train["to"]
    assert task.train.labels.tolist() == [2, 1, 2, 0, 1, 1, 0, 2, 0]
    assert task.test.labels.tolist() == [1, 2]
    assert task.train.ids == list(range(9))
    test["genre"][1] = "polka"
    with pytest.raises(UsageError, match=r"more\S*, column 'genre', row 2: unknown label 'polka'; .* 'blues', 'rock'"):
        custom(train, test, suffix, text_column="line", label_column="genre")


def test_task_file_numbers_classes_by_the_training_labels_alone(custom):
    task = custom(
        {
            "text": list("abcdefghi"),
            "label": [7, 3, 5] * 3,
        },
        {
            "text": ["x"],
            "label": [5],
        },
    )
    assert task.train.labels.tolist() == [2, 0, 1] * 3
    assert task.test.labels.tolist() == [1]
    assert task.label_names == ("3", "5", "7")


def test_task_file_kind(custom):
    table = {
        "text": list("abcde"),
        "label": [0.5, 1.5, -1.0, 2.0, 2.5],
    }
    task = custom(table, {"text": ["f"], "label": [1.0]})
    assert (task.kind, task.metrics, task.label_names) == ("regression", ("pearson", "spearmanr"), None)
    assert task.train.labels.tolist() == table["label"]
    assert not task.is_similarity
    whole = {"text": list("abcdeg"), "label": [0.0, 1.0, 1.0, 0.0, 1.0, 0.0]}
    assert custom(
        whole,
        {
            "text": ["f"],
            "label": [1],
        },
        kind="classification",
    ).train.labels.tolist() == [0, 1, 1, 0, 1, 0]
    assert (
        custom(
            {
                "text": ["x", "y"],
                "label": [1, 2],
            },
            whole,
            kind="regression",
        ).kind
        == "regression"
    )


def test_a_first_line_with_the_delimiter_is_no_row_of_a_task_file(tmp_path):
    rows = [f"a word or two of row {number};{number % 2}" for number in range(40)]
    path = tmp_path / "labels.csv"
    path.write_text("\n".join(["sep=;", "text;label", *rows]))
    task = load_task_file(str(path), cache_dir=str(tmp_path / "cache"))
    assert len(task.train.texts) + len(task.test.texts) == 40


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_missing_and_nan_labels_of_task_files(custom, suffix):
    for labels, message in (
        ([0.5, math.nan], "row 2: (label nan|no label)"),
        (["a", None], "row 2: no label"),
        ([1, None], "row 2: (label nan|no label)"),
    ):
        with pytest.raises(UsageError, match=message):
            custom(
                {
                    "text": ["a", "b"],
                    "label": labels,
                },
                {
                    "text": ["c"],
                    "label": [1],
                },
                suffix,
            )


def write_quotes(path, delimiter):
    """A table with a text that begins with a quote, and one that ends with one further down."""
    lines = [f"text{delimiter}label"]
    for row in range(12):
        text = {3: '"word 3', 6: 'word 6"'}.get(row, f"word {row}")
        lines.append(f"{text}{delimiter}{'ab'[row % 2]}")
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_quotes_of_task_files_are_read_as_those_of_texts(tmp_path, delimiter):
    """The rows between them were one text before, with the label of the last one."""
    path = tmp_path / f"songs.{'tsv' if delimiter == chr(9) else 'csv'}"
    write_quotes(path, delimiter)
    with pytest.raises(UsageError, match=r"songs.[ct]sv, line 5: a quote .* --quoting none"):
        load_task_file(str(path))
    task = load_task_file(str(path), quoting="none")
    texts = sorted([*task.train.texts, *task.test.texts])
    assert len(texts) == 12
    assert texts[0] == '"word 3'
    assert 'word 6"' in texts


def test_task_file_without_a_test_file_holds_out_a_fifth(custom):
    labels = ["a"] * 40 + ["b"] * 10
    table = {"text": [f"text {i}" for i in range(50)], "label": labels}
    task = custom(table)
    assert (len(task.train), len(task.test), task.scored) == (40, 10, "test")
    assert Counter(task.test.labels.tolist()) == {0: 8, 1: 2}
    assert not set(task.train.texts) & set(task.test.texts)
    assert custom(table).test.ids == task.test.ids
    hidden = custom(
        table,
        {
            "text": ["new"],
            "label": [-1],
        },
    )
    assert (hidden.scored, len(hidden.test), len(hidden.train)) == ("validation", 10, 40)
    assert hidden.splits["test"].labels is None
    with pytest.raises(UsageError, match=r"songs.parquet: 4 rows are too few"):
        custom(
            {
                "text": list("abcd"),
                "label": [0.5, 1.5, 0.0, 1.0],
            }
        )


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([["a"], ["b"]] * 6, "holds lists, not labels; write one label in each row"),
        ([{"a": 1}, {"a": 2}] * 6, "holds objects, not labels"),
        (["a", 1] * 6, "holds numbers and text, not labels"),
        ([1, 2] * 6 + ["a"], "holds numbers and text, not labels"),
        ([True, "a"] * 6, "holds text and true or false, not labels"),
        ([None] * 6, "holds null, not labels"),
        (["a", "b"] * 6 + ["c"], "label 'c' has 1 of the 4 rows with a text that each label needs; add rows"),
        ([0, 1] * 3, r"label '0' has 3 of the 4 rows with a text that each label needs \(and 1 more labels\)"),
        (list(range(12)), r"label '0' has 1 of the 4 rows with a text that each label needs \(and 11 more labels\)"),
        (["a"] * 12, "holds a single label, a; at least 2 are needed"),
        (["a", "  "] * 6, "row 2: no label; write a label"),
        ([0.0, 1.0] * 5 + [2.0], "label '2' has 1 of the 4 rows"),
    ],
)
def test_labels_of_no_use_are_named_with_file_column_and_what_is_needed(tmp_path, labels, message):
    path = tmp_path / "songs.jsonl"
    rows = [json.dumps({"text": f"text {row}", "mood": label}) for row, label in enumerate(labels)]
    path.write_text("\n".join(rows))
    with pytest.raises(UsageError, match=rf"songs.jsonl, column 'mood'(:|,) {message}") as refused:
        load_task_file(str(path), label_column="mood", cache_dir=str(tmp_path / "cache"))
    assert "\n" not in str(refused.value)


def test_three_rows_of_each_label_are_enough_with_a_test_file(custom):
    test = {"text": ["x"], "label": ["a"]}
    assert len(custom({"text": list("abcdef"), "label": ["a", "b"] * 3}, test).train) == 6
    with pytest.raises(UsageError, match=r"songs.parquet, column 'label': label 'a' has 2 of the 3 rows"):
        custom({"text": list("abcde"), "label": ["b", "a", "b", "a", "b"]}, test)


def test_labels_that_a_reader_takes_for_one_are_named(custom):
    task = custom({"text": list("abcdefghijklmnopqr"), "label": ["spam", "Spam", "ham"] * 6})
    assert task.label_names == ("Spam", "ham", "spam")
    assert "labels 'Spam' and 'spam' differ only in case or blanks, and are two classes" in task.notes[0]
    assert not custom({"text": list("abcdefghijklmnopqr"), "label": ["spam", "eggs", "ham"] * 6}).notes


def test_whole_numbers_with_a_point_are_classes_and_said_to_be(custom):
    labels = [0.0, 1.0] * 6
    task = custom({"text": list("abcdefghijkl"), "label": labels})
    assert (task.kind, task.label_names) == ("classification", ("0", "1"))
    assert "labels are whole numbers, and taken as classes" in task.notes[0]
    pairs = {"text": list("abcdefghijkl"), "pair": list("bcdefghijklm"), "label": labels}
    assert custom(pairs, pair_column="pair").kind == "regression"


@pytest.mark.parametrize("suffix", [".parquet", ".json", ".jsonl", ".csv", ".tsv"])
def test_rows_of_task_files_without_a_text_are_left_out_with_a_note(custom, suffix):
    table = {"text": list("abcdefghijkl"), "label": ["x", "y"] * 6}
    table["text"][3] = ""
    table["text"][6] = " "
    if suffix not in (".csv", ".tsv"):
        table["text"][7] = None
    task = custom(table, suffix=suffix)
    left = [text for text in table["text"] if text and text.strip()]
    assert sorted(task.train.texts + task.test.texts) == left
    kept = sorted(task.train.ids + task.test.ids)
    assert [table["text"][number] for number in kept] == left
    (note,) = task.notes
    assert f"songs{suffix}: {12 - len(left)} of 12 rows have no text, row 4 the first, and are left out" in note


def test_a_pair_with_one_text_is_left_out_and_hidden_rows_are_all_predicted(custom):
    table = {"text": list("abcdefghij"), "pair": list("klmnopqrst"), "label": [0, 1] * 5}
    table["pair"][0] = None
    task = custom(table, {"text": ["", "u"], "pair": ["v", None], "label": [-1, -1]}, pair_column="pair")
    assert 0 not in task.train.ids + task.test.ids
    assert len(task.train) + len(task.test) == 9
    assert task.splits["test"].keys == [("", "v"), ("u", "")]
    with pytest.raises(UsageError, match=r"songs.parquet, column 'text': no row has a text; .*--text_column"):
        custom({"text": ["", " "] * 5, "label": [0, 1] * 5})


@pytest.mark.parametrize("suffix", [".parquet", ".json", ".jsonl"])
def test_task_files_have_fields_and_lists_as_texts_have(custom, suffix):
    bodies = [{"body": f"text {row}", "parts": ["one", f"two {row}"]} for row in range(10)]
    for labels, kind in ((list("xy") * 5, "classification"), ([0.5, 1.5] * 5, "regression")):
        table = {"doc": bodies, "tags": [["a", f"b {row}"] for row in range(10)]}
        table["meta"] = [{"label": label, "page": row} for row, label in enumerate(labels)]
        task = custom(table, suffix=suffix, text_column="doc.body", label_column="meta.label")
        assert task.kind == kind
        assert sorted(task.train.texts + task.test.texts) == sorted(body["body"] for body in bodies)
        joined = custom(table, suffix=suffix, text_column="tags", pair_column="doc.parts", label_column="meta.label")
        row = joined.train.ids[0]
        assert joined.train.keys[0] == (f"a\n\nb {row}", f"one\n\ntwo {row}")
    with pytest.raises(UsageError, match=r"no column 'doc.text' \(its columns are doc, tags, .*--text_column"):
        custom(table, suffix=suffix, text_column="doc.text", label_column="meta.label")
    with pytest.raises(UsageError, match=r"no column 'meta.kind'; .*--label_column"):
        custom(table, suffix=suffix, text_column="doc.body", label_column="meta.kind")
    with pytest.raises(UsageError, match=rf"songs{suffix}, row 1: column 'meta.page' holds int64, .*--text_column"):
        custom(table, suffix=suffix, text_column="meta.page", label_column="meta.label")


def test_a_label_of_another_kind_is_named_with_its_line(tmp_path):
    """The datasets library reads 1 and "1" as one value."""
    path = tmp_path / "songs.jsonl"
    rows = [{"text": f"text {row}", "meta": {"label": 1}, "label": 1} for row in range(10)]
    rows[6]["label"] = rows[7]["meta"]["label"] = "1"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for column, line in (("label", 7), ("meta.label", 8)):
        message = rf"column '{column}': holds numbers and text, not labels \(\"1\" in line {line} .*--label_column"
        with pytest.raises(UsageError, match=message):
            load_task_file(str(path), label_column=column, cache_dir=str(tmp_path / "cache"))


def test_scores_with_a_decimal_comma_and_texts_that_are_all_equal_are_named(custom):
    scores = {"text": list("abcdefgh"), "label": ["0,5", "1", "2,25", "3", "4", "5", "6", "7"]}
    with pytest.raises(UsageError, match=r"songs.csv, column 'label': label '0,5' has a decimal comma; .* as in 0\.5"):
        custom(scores, suffix=".csv")
    assert custom({"text": list("abcdefgh"), "label": ["0,5", "1,5"] * 4}).label_names == ("0,5", "1,5")
    with pytest.raises(UsageError, match=r"songs.csv, column 'label', row 1: '0,5' is not a number; .* decimal point"):
        custom(scores, suffix=".csv", kind="regression")
    with pytest.raises(
        UsageError, match=r"songs.parquet, column 'text': all rows have the same text; .*--text_column"
    ):
        custom({"text": ["same"] * 10, "label": [0, 1] * 5})


def test_held_out_rows_leave_no_copy_in_train(custom):
    table = {
        "text": [f"text {i % 25}" for i in range(50)],
        "label": [i % 25 % 2 for i in range(50)],
    }
    task = custom(table)
    assert not set(task.train.texts) & set(task.test.texts)
    assert "training rows removed" in task.notes[0]


def test_task_file_names_what_is_missing(custom, tmp_path):
    table = {
        "text": list("abcde"),
        "label": [0, 1, 0, 1, 0],
    }
    with pytest.raises(UsageError, match=r"no column 'txet'; did you mean 'text'\? .*--text_column"):
        custom(table, text_column="txet")
    with pytest.raises(UsageError, match=r"no column 'other' .*--pair_column"):
        custom(table, pair_column="other")
    with pytest.raises(
        UsageError, match=r"no column 'labels'; did you mean 'label'\? .*--label_column .*-1 for hidden"
    ):
        custom(table, label_column="labels")
    with pytest.raises(UsageError, match=r"more.parquet: no column 'label'"):
        custom(table, {"text": ["a"]})
    with pytest.raises(UsageError, match=r"--task_file .*gone.csv: no such file"):
        load_task_file(str(tmp_path / "gone.csv"))
    with pytest.raises(UsageError, match=r"--task_test_file .*gone.csv: no such file"):
        load_task_file(str(tmp_path / "songs.parquet"), str(tmp_path / "gone.csv"))


# ---- reranking ------------------------------------------------------------------------------------------------------

TEXTS = "1\thow to mount\tthe disk\n2\tmount a disk\t\n3\tkill a process\tnow\n4\tlost\n5\tunused\tx\n"
LINES = ["1\t2 9\t3 2\t2.5 1.5", "3\t\t4 2\t9 8"]


@pytest.fixture
def reranking(tmp_path):
    def load(lines=LINES, texts=TEXTS, suffix=".txt", split="dev", **options):
        for name, content in (("dev", lines and "\n".join(lines) + "\n"), ("text_tokenized", texts)):
            if content is not None:
                data = content.encode()
                (tmp_path / f"{name}{suffix}").write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
        return load_reranking(
            str(tmp_path),
            split,
            cache_dir=str(tmp_path / "cache"),
            **options,
        )

    return load


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz"])
def test_reranking_queries_and_texts(reranking, suffix, tmp_path):
    task = reranking(suffix=suffix)
    assert (task.kind, task.split, task.name) == ("reranking", "dev", tmp_path.name)
    first, second = task.queries
    assert (first.id, first.candidates, first.relevant.tolist()) == ("1", ["3", "2"], [False, True])
    assert first.bm25.tolist() == [2.5, 1.5]
    assert first.usable
    assert not second.usable
    assert task.texts == {
        "1": "how to mount",
        "2": "mount a disk",
        "3": "kill a process",
        "4": "lost",
        "5": "unused",
    }
    assert task.notes == (
        f"{tmp_path.name} dev: 1 of 2 queries have no positive candidate",
        f"{tmp_path.name} dev: 1 positive ids are not among the candidates and do not count",
    )
    with_body = reranking(suffix=suffix, with_body=True).texts
    assert with_body["1"] == "how to mount the disk"
    assert with_body["2"] == "mount a disk"


def test_reranking_texts_from_parquet(reranking, tmp_path):
    table = {
        "id": [1, 2, 3, 4],
        "title": list("abcd"),
        "body": ["x", "", "y", "z"],
    }
    write(tmp_path / "text_tokenized.parquet", table)
    assert reranking(texts=None).texts == {
        "1": "a",
        "2": "b",
        "3": "c",
        "4": "d",
    }
    assert reranking(texts=None, with_body=True).texts["1"] == "a x"
    write(tmp_path / "text_tokenized.parquet", {"id": [1], "title": ["a"]})
    with pytest.raises(UsageError, match=r"text_tokenized.parquet: no column 'body'"):
        reranking(texts=None)


def test_reranking_without_texts_has_bm25_alone(reranking):
    task = reranking(texts=None)
    assert task.texts is None
    assert "only the BM25 column can be scored" in task.notes[0]
    with pytest.raises(UsageError, match=r"neither texts .* nor BM25 scores in dev.txt"):
        reranking(["1\t2\t2 3"], texts=None)


def test_reranking_without_bm25_has_texts_alone(reranking):
    assert reranking(["1\t2\t2 3"]).queries[0].bm25 is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1", r"dev.txt, line 2: 1 columns; expected query id, positive ids"),
        ("1\t2\t2 3\t1 2\t5", r"line 2: 5 columns"),
        ("1\t2\t\t", r"line 2: no candidate ids in column 3"),
        ("\t2\t2 3\t1 2", r"line 2: no query id in column 1"),
        ("1\t2\t2 2\t1 2", r"line 2: candidate 2 is named twice"),
        ("1\t2\t2 3\t1 two", r"line 2: a BM25 score in column 4 is not a number"),
        ("1\t2\t2 3\t1 nan", r"line 2: a BM25 score in column 4 is not a number"),
        ("1\t2\t2 3\t1", r"line 2: 1 BM25 scores for 2 candidates"),
        ("1\t2\t2 77\t1 2", r"text_tokenized.txt: no text for 1 ids, e.g. 77"),
    ],
)
def test_malformed_reranking_lines(reranking, line, message):
    with pytest.raises(UsageError, match=message):
        reranking([LINES[0], line])


def test_reranking_files_that_are_missing_or_broken(reranking, tmp_path):
    with pytest.raises(UsageError, match=r"no dve.txt or dve.txt.gz; did you mean 'dev'\? \(there is dev\)"):
        reranking(split="dve")
    with pytest.raises(UsageError, match=r"text_tokenized.txt, line 1: a single column"):
        reranking(texts="1 how to mount\n")
    with pytest.raises(UsageError, match=r"dev.txt: no query has a positive id among its candidates"):
        reranking([LINES[1]])
    with pytest.raises(UsageError, match=r"dev.txt: empty"):
        reranking([""])
    (tmp_path / "dev.txt").unlink()
    (tmp_path / "dev.txt.gz").write_bytes(gzip.compress(("\n".join([*LINES, ""]) * 50).encode())[:-12])
    with pytest.raises(UsageError, match=r"dev.txt.gz: cannot be read"):
        reranking(lines=None)
    (tmp_path / "dev.txt").write_bytes(b"1\t\xff\t2\n")
    with pytest.raises(UsageError, match=r"dev.txt: cannot be read"):
        reranking(lines=None)


# ---- made from texts ------------------------------------------------------------------------------------------------


def collection():
    """Six words of rising frequency (10, 12, … texts), in texts that also hold words that are everywhere."""
    words = ["alder", "birch", "cedar", "daphne", "elder", "fig"]
    texts = [f"{word.title()} number {i} stands there" for n, word in enumerate(words) for i in range(10 + 2 * n)]
    return texts + ["alder and birch stand together"] * 3 + ["alder with birch", texts[0]]


def test_word_content_asks_for_exactly_one_of_equally_frequent_words():
    task = word_content(collection(), words=4, texts_per_word=10)
    assert task.label_names == ("alder", "birch", "cedar", "daphne")
    assert (len(task.train), len(task.test), task.scored) == (32, 8, "test")
    for split in task.splits.values():
        assert len(set(Counter(split.labels.tolist()).values())) == 1
        for text, label in zip(split.texts, split.labels, strict=True):
            assert [word for word in task.label_names if word in text.lower()] == [task.label_names[label]]
    assert not set(task.train.texts) & set(task.test.texts)


def test_word_content_replaces_words_that_do_not_stand_alone():
    def some(words, count):
        return [f"{words} {i}" for i in range(count)]

    texts = some("alder", 5) + some("alder birch", 5) + some("birch", 6) + some("cedar", 12) + some("daphne", 14)
    assert word_content(
        texts,
        words=2,
        texts_per_word=10,
    ).label_names == ("cedar", "daphne")
    assert word_content(
        texts,
        words=2,
        texts_per_word=5,
    ).label_names == ("alder", "birch")


def test_word_content_is_deterministic_by_seed():
    first, again, other = (
        word_content(
            collection(),
            3,
            5,
            seed=seed,
        )
        for seed in (0, 0, 1)
    )
    assert first.train.texts == again.train.texts
    assert first.train.texts != other.train.texts
    assert first.label_names == other.label_names


def test_word_content_of_too_few_texts():
    with pytest.raises(UsageError, match=r"word content: too few of the 70 texts for 50 words .* ask for fewer"):
        word_content(list(dict.fromkeys(collection()))[:70])
    with pytest.raises(UsageError, match="at least 2 words"):
        word_content(collection(), words=1)


def questions(count):
    """So many questions of each of three kinds."""
    starts = ["Who wrote", "How many read", "In what year came"]
    return [f"{start} book {number}?" for number in range(count) for start in starts]


def test_question_words_asks_for_the_kind_of_a_question_whose_word_stays_in_it():
    task = question_words(questions(20), train=12)
    assert (len(task.train), len(task.test)) == (12, 48)
    expected = {"Who": "who", "How": "how many", "In": "what"}
    for split in (task.train, task.test):
        for text, label in zip(split.texts, split.labels, strict=True):
            assert task.label_names[label] == expected[text.split()[0]]
    assert not set(task.train.texts) & set(task.test.texts)


def test_question_words_leaves_out_questions_of_two_kinds_and_of_none():
    unclear = ["Who said what?", "Name the book.", "When and how?", "Whatever happened?"]
    task = question_words(unclear + questions(5) + questions(5), train=3)
    assert sorted(task.train.texts + task.test.texts) == sorted(questions(5))


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("HOW MUCH is it?", "how many"),
        ("How is it?", "how"),
        ("By whom is it?", "who"),
        ("Is it somehow why?", "why"),
    ],
)
def test_kind_of_a_question_is_the_whole_word_in_any_case(question, kind):
    task = question_words([*questions(5), question], train=3)
    labels = dict(
        zip(
            task.train.texts + task.test.texts,
            [*task.train.labels, *task.test.labels],
            strict=True,
        )
    )
    assert task.label_names[labels[question]] == kind


def test_question_words_has_no_more_of_the_commonest_kind_than_asked_for():
    many = [f"What is number {number}?" for number in range(40)]
    task = question_words(many + questions(10), train=5, per_kind=10)
    assert Counter([*task.train.labels, *task.test.labels]) == {
        0: 10,
        3: 10,
        6: 10,
    }


def test_question_words_of_too_few_questions():
    with pytest.raises(UsageError, match=r"9 questions with one question word are too few for 300 .* ask for fewer"):
        question_words(questions(3))


def test_question_words_are_those_of_all_splits_of_qnli(tmp_path):
    for split, shift in (("train", 0), ("validation", 200)):
        asked = [f"Who wrote {number + shift}?" for number in range(200)]
        asked += [f"Where is {number + shift}?" for number in range(200)]
        table = {
            "question": asked,
            "sentence": ["It is."] * 400,
            "label": [0, 1] * 200,
        }
        write(tmp_path / "glue/qnli_mini" / f"{split}.parquet", table)
    task = question_words_task(str(tmp_path / "glue"), str(tmp_path / "cache"))
    assert len(task.train) + len(task.test) == 600
    numbers = [int(text[:-1].split()[-1]) for text in task.test.texts]
    assert min(numbers) < 200 < max(numbers)


def sentences(count):
    return [f"The  {word} one sees the number {n}." for n in range(count) for word in ("old", "new")]


def test_word_order_exchanges_two_neighbours_inside_every_second_sentence():
    task = word_order(sentences(20))
    assert (len(task.train), len(task.test)) == (32, 8)
    written = {" ".join(sentence.split()) for sentence in sentences(20)}
    for split in (task.train, task.test):
        assert np.bincount(split.labels).tolist() == [len(split) // 2] * 2
        for text, label in zip(split.texts, split.labels, strict=True):
            assert (text in written) == (label == 0)
            words = text.split()
            assert words[0] == "The"
            back = [
                [
                    *words[:i],
                    words[i + 1],
                    words[i],
                    *words[i + 2 :],
                ]
                for i in range(len(words) - 1)
            ]
            assert label == 0 or written & {" ".join(one) for one in back}


def test_word_order_has_no_sentence_in_both_forms():
    task = word_order(sentences(20))
    bags = [tuple(sorted(text.split())) for text in task.train.texts + task.test.texts]
    assert len(set(bags)) == len(bags) == 40


def test_word_order_cannot_be_seen_by_capitals_marks_or_blanks():
    """Words with a mark, a capital or a digit stay where they are, and both forms have single blanks."""
    unfit = ["Too few words here.", "Paris, London, Rome, Berlin and 9 of UNO.", "so so so so so so so"]
    task = word_order(sentences(20) + unfit)
    assert len(task.train) + len(task.test) == 40
    assert not any("  " in text for text in task.train.texts + task.test.texts)


def test_word_order_is_deterministic_by_seed_and_limited():
    first, again, other = (
        word_order(
            sentences(20),
            limit=20,
            seed=seed,
        )
        for seed in (0, 0, 1)
    )
    assert first.train.texts == again.train.texts
    assert first.train.texts != other.train.texts
    assert len(first.train) + len(first.test) == 20


def test_word_order_of_too_few_sentences():
    with pytest.raises(UsageError, match=r"word order: 8 sentences .* give at least 10"):
        word_order(sentences(4))


def test_package_task(monkeypatch):
    def part(split, copies):
        names = [f"package{n:02}" for n in range(12) for _ in range(copies * (n + 1))]
        return Dataset.from_dict(
            {
                "text": [f"{split} {i}" for i in range(len(names))],
                "package": names,
            }
        )

    corpus = DatasetDict(
        {
            "train": part("train", 40),
            "validation": part("held out", 5),
        }
    )
    monkeypatch.setattr(catalog, "load_builtin_corpus", lambda cache_dir: corpus)
    task = package_task()
    assert task.label_names == tuple(f"package{n:02}" for n in range(2, 12))  # the ten with most held-out texts
    assert (task.name, task.kind, task.scored) == ("packages", "classification", "test")
    assert set(Counter(task.train.labels.tolist()).values()) == {120, 160, 200}
    assert max(Counter(task.test.labels.tolist()).values()) == 50
    assert all(text.startswith("train") for text in task.train.texts)
    assert all(text.startswith("held out") for text in task.test.texts)
    names = dict(
        zip(
            corpus["train"]["text"],
            corpus["train"]["package"],
            strict=True,
        )
    )
    for text, label in zip(
        task.train.texts,
        task.train.labels,
        strict=True,
    ):
        assert names[text] == task.label_names[label]
    assert package_task().train.texts == task.train.texts


# ---- the real data --------------------------------------------------------------------------------------------------

DATA = os.environ.get("TEXT_JEPA_DATA")
real = pytest.mark.skipif(not DATA, reason="TEXT_JEPA_DATA names no folder")

# Rows of train, validation and test as in the READMEs, the scored split, and training rows found in it.
SIZES = {
    "cola": ((8551, 1043, 0), "validation", 18),
    "sst2": ((67349, 872, 1821), "test", 2),
    "mrpc": ((3668, 408, 1725), "test", 0),
    "stsb": ((5749, 1500, 1379), "test", 9),
    "qqp": ((11744, 2351, 2352), "test", 0),
    "qnli": ((4455, 1008, 0), "validation", 0),
    "rte": ((2490, 277, 0), "validation", 0),
    "wnli": ((635, 71, 0), "validation", 0),
}


@real
@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_real_glue(name, tmp_path):
    task = load_glue(
        name,
        str(Path(DATA) / "glue"),
        cache_dir=str(tmp_path),
    )
    sizes, scored, removed = SIZES[name]
    found = [len(task.splits.get(split, ())) for split in ("train", "validation", "test")]
    assert found == [sizes[0] - removed, *sizes[1:]]
    assert task.scored == scored
    assert task.name == (f"{name}_mini" if name in ("qqp", "qnli") else name)
    assert any(f"{removed} of" in note for note in task.notes) == bool(removed)


@real
@pytest.mark.parametrize(
    ("folder", "split", "queries", "usable"),
    [
        ("askubuntu", "dev", 200, 189),
        ("askubuntu", "test", 200, 186),
        ("qqp_rerank", "dev", 208, 200),
        ("qqp_rerank", "test", 208, 200),
    ],
)
def test_real_reranking(folder, split, queries, usable):
    task = load_reranking(str(Path(DATA) / folder), split, with_body=True)
    assert len(task.queries) == queries
    assert sum(query.usable for query in task.queries) == usable
    assert {len(query.candidates) for query in task.queries} == {20}
    assert (task.texts is None) == (folder == "askubuntu")
