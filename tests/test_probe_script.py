"""The command that probes an encoder: its table, its files, and what it refuses. The scores: test_probing.py."""

import json

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

import run_probe


WORDS = {0: "storm lantern harbour", 1: "garden library bread"}


def jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """Two encoders, a classification, GLUE's rte and stsb, and a reranking set, all tiny."""
    folder = tmp_path_factory.mktemp("probe")
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
        BertModel(BertConfig(vocab_size=len(tokenizer), **shape), add_pooling_layer=False).save_pretrained(
            folder / name
        )
        tokenizer.save_pretrained(folder / name)
    generator = np.random.default_rng(0)

    def sentence(label):
        return " ".join(generator.choice([*WORDS[label].split(), "river", "bridge", "time"], 6))

    jsonl(folder / "own.jsonl", [{"body": sentence(i % 2), "kind": ["sea", "land"][i % 2]} for i in range(60)])
    for split, count in (("train", 40), ("validation", 20)):
        rows = [{"sentence1": sentence(i % 2), "sentence2": sentence(0), "idx": i} for i in range(count)]
        jsonl(folder / "glue" / "rte" / f"{split}.jsonl", [{**row, "label": i % 2} for i, row in enumerate(rows)])
        scores = [{**row, "label": float(i % 6)} for i, row in enumerate(rows)]
        jsonl(folder / "glue" / "stsb" / f"{split}.jsonl", scores)
    ids = [str(i) for i in range(12)]
    rerank = folder / "questions"
    rerank.mkdir()
    (rerank / "text_tokenized.txt").write_text("".join(f"{i}\t{sentence(int(i) % 2)}\t\n" for i in ids))
    lines = [
        f"{q}\t{(q + 2) % 12}\t{' '.join(i for i in ids if int(i) != q)}\t{' '.join(['1.0'] * 11)}" for q in range(4)
    ]
    (rerank / "test.txt").write_text("\n".join([*lines, "5\t\t1 2 3\t3.0 2.0 1.0"]) + "\n")
    return folder


def probe(folder, *arguments):
    return run_probe.main([str(folder / "first"), *arguments])


def test_every_system_is_scored_by_every_mode_on_the_same_rows(folder, capsys):
    scores = probe(
        folder,
        *("--task_file", str(folder / "own.jsonl"), "--text_column", "body", "--label_column", "kind"),
        *("--tasks", "rte", "stsb", "--data_dir", str(folder / "glue"), "--compare", str(folder / "second")),
        *("--rerank_dir", str(folder / "questions"), "--output_dir", str(folder / "results")),
    )
    named = {str(folder / "first"), str(folder / "second"), "random weights", "bag of its embeddings", "TF-IDF"}
    for task, rows in (("own", 12), ("rte", 20), ("stsb", 20)):
        for mode in ("linear", "knn"):
            found = [s for s in scores if (s.task, s.mode) == (task, mode)]
            assert {s.system for s in found} == named
            assert {s.rows for s in found} == {rows}
    cosines = {(s.mode, s.metric) for s in scores if s.task == "stsb" and s.mode.startswith("cosine")}
    forms = ("raw", "centred", "whitened")
    assert cosines == {(f"cosine {form}", metric) for form in forms for metric in ("pearson", "spearmanr")}
    reranked = [s for s in scores if s.task == "questions test"]
    assert {s.metric for s in reranked} == {"map", "mrr", "p@1", "p@5"}
    assert {s.system for s in reranked} == {*named, "BM25"}
    assert {s.rows for s in reranked} == {4}  # a query without positives does not count
    for s in scores:
        assert s.low <= s.high
        assert (s.ahead is None) == (s.system in (str(folder / "first"), "majority"))
    written = json.loads((folder / "results" / "results.json").read_text())
    assert [tuple(row.values()) for row in written["scores"]] == [tuple(s) for s in scores]
    assert written["command"].startswith("python run_probe.py --model_name_or_path")
    table = (folder / "results" / "results.md").read_text()
    assert capsys.readouterr().out.splitlines()[0] in table


def test_bm25_ranks_equal_scores_as_its_file_does(folder):
    """Query 0 has its positive, 2, at place 2 of candidates with one and the same score."""
    scores = probe(folder, "--rerank_dir", str(folder / "questions"))
    ranks = [2, 3, 4, 5]  # the positive of query q is q + 2 among ids without q
    found = next(s.score for s in scores if (s.system, s.metric) == ("BM25", "mrr"))
    assert found == pytest.approx(100 * np.mean([1 / rank for rank in ranks]))


def test_each_distinct_text_is_embedded_once_by_each_encoder(folder, monkeypatch):
    seen = []
    embed = run_probe.probing.embed_texts
    monkeypatch.setattr(
        run_probe.probing,
        "embed_texts",
        lambda model, tokenizer, texts, max_length: (seen.append(texts), embed(model, tokenizer, texts, max_length))[
            1
        ],
    )
    probe(folder, "--tasks", "rte", "stsb", "--data_dir", str(folder / "glue"), "--mode", "knn")
    assert len(seen) == 2  # the encoder and its random twin
    assert len(seen[0]) == len(set(seen[0]))


def test_scores_are_the_same_in_every_run(folder):
    arguments = ("--tasks", "rte", "--data_dir", str(folder / "glue"))
    assert probe(folder, *arguments) == probe(folder, *arguments)


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["--tasks", "sst"], ["sst", "'sst2'"]),
        (["--tasks", "cola", "--data_dir", "{dir}/glue"], ["cola"]),
        (["--task_file", "{dir}/own.jsonl"], ["no column 'label'", "--label_column"]),
        (["--task_file", "{dir}/none.jsonl"], ["none.jsonl", "no such file"]),
        (["--rerank_dir", "{dir}/glue"], ["test.txt"]),
        (["--compare", "{dir}/none", "--tasks", "rte", "--data_dir", "{dir}/glue"], ["none", "no encoder there"]),
        (["--mode", "guess"], ["--mode", "guess"]),
        (["--task", "rte"], ["--task", "did you mean 'tasks'"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(folder, arguments, fragments, monkeypatch, capsys):
    arguments = [argument.format(dir=folder) for argument in arguments]
    monkeypatch.setattr("sys.argv", ["run_probe.py", str(folder / "first"), *arguments])
    with pytest.raises(SystemExit) as stop:
        run_probe.console()
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert [fragment for fragment in fragments if fragment not in line] == [], line
