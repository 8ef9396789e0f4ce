"""The probe's command: every mode and control on the same rows, nothing learned from them, one line for mistakes.

Run: python -m pytest -q tests/probe/test_run.py
"""

import io
import json
import shlex
import shutil
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from tqdm import tqdm
from transformers import AutoModel, BertConfig, BertModel, RoFormerConfig

import run_probe
from text_jepa.commands.main import main as text_jepa_command
from text_jepa.encoders import embeddings
from text_jepa.encoders.embeddings import Encoder, open_encoder
from text_jepa.probe import bootstrap, catalog, predictors, questions, report, run, systems
from text_jepa.probe.documents import LABEL, REST, TITLE
from text_jepa.probe.tasks import load_task_file


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


WORDS = {0: "storm lantern harbour", 1: "garden library bread"}
RANDOM, BAG, TFIDF = "random weights", "bag of its embeddings", "TF-IDF"
TINY_RUN = ["--finetune_args", "max_steps=2", "per_device_train_batch_size=4", "learning_rate=1e-2"]


def jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module", autouse=True)
def _few_resamples_and_epochs():
    """Intervals and attention have their own tests, in test_predictors.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, "score_resamples", partial(bootstrap.score_resamples, resamples=20))
        patch.setattr(predictors, "attentive_predict", partial(predictors.attentive_predict, epochs=2))
        yield


def sentence(generator, label):
    """Six words, some of which only this label has."""
    words = [*WORDS[label].split(), "river", "bridge", "time"]
    return " ".join(generator.choice(words, 6))


def write_encoder(folder, tokenizer, seed):
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        initializer_range=0.2,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_glue(folder, generator):
    """A rte with a hidden test split, and a stsb."""
    for split, count in (("train", 40), ("validation", 20), ("test", 8)):
        classes = []
        scores = []
        for number in range(count):
            row = {
                "sentence1": sentence(generator, number % 2),
                "sentence2": sentence(generator, 0),
                "idx": 100 + number,
            }
            label = -1 if split == "test" else number % 2
            classes.append({**row, "label": label})
            scores.append({**row, "label": float(number % 6)})
        jsonl(folder / "rte" / f"{split}.jsonl", classes)
        jsonl(folder / "stsb" / f"{split}.jsonl", scores)


def write_reranking(folder, generator):
    """Four queries with candidates of equal score, and one without a positive."""
    ids = range(12)
    texts = [f"{text_id}\t{sentence(generator, text_id % 2)}\t\n" for text_id in ids]
    scores = " ".join(["1.0"] * 11)
    lines = []
    for query in range(4):
        candidates = " ".join(str(text_id) for text_id in ids if text_id != query)
        lines.append(f"{query}\t{(query + 2) % 12}\t{candidates}\t{scores}\n")
    folder.mkdir()
    (folder / "text_tokenized.txt").write_text("".join(texts))
    (folder / "test.txt").write_text("".join([*lines, "5\t\t1 2 3\t3.0 2.0 1.0\n"]))
    (folder / "dev.txt").write_text("".join(lines[:2]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """Two encoders, a classification, two tasks of GLUE and a reranking set, all tiny."""
    folder = tmp_path_factory.mktemp("probe")
    write_encoder(folder / "first", tokenizer, seed=0)
    write_encoder(folder / "second", tokenizer, seed=1)
    generator = np.random.default_rng(0)
    own = []
    for number in range(60):
        kind = ["sea", "land"][number % 2]
        own.append({"body": sentence(generator, number % 2), "kind": kind})
    jsonl(folder / "own.jsonl", own)
    write_glue(folder / "glue", generator)
    write_reranking(folder / "questions", generator)
    return folder


def select(scores, **fields):
    """The scores with these fields."""
    found = []
    for score in scores:
        values = score._asdict()
        if fields.items() <= values.items():
            found.append(score)
    return found


def systems_of(scores, **fields):
    return {score.system for score in select(scores, **fields)}


def probe(folder, *arguments):
    return run_probe.main([str(folder / "first"), *map(str, arguments)])


def answers_of(folder, *arguments):
    """(task, mode, system) -> the predictions for all seeds, scored rows and hidden ones; and the notes."""
    results = []

    def keep(*asked):
        results.append(run.probe(*asked))
        return results[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_probe, "probe", keep)
        probe(folder, *arguments)
    answers = {}
    for task, by_mode in results[0].predicted.items():
        for mode, by_system in by_mode.items():
            for system, rows in by_system.items():
                answers[task.name, mode, system] = np.stack(rows)
    return answers, results[0].notes


@pytest.fixture(scope="module")
def done(folder):
    """One run with nearly everything, its scores, and what each forward pass of an encoder was given."""
    (folder / "first" / "README.md").write_text("---\nlicense: apache-2.0\n---\n\nA card.\n")
    embedded = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("embed_texts", "embed_layers"):
            function = getattr(embeddings, name)

            def counting(encoder, texts, function=function, **options):
                embedded.append((function.__name__, list(texts)))
                return function(encoder, texts, **options)

            patch.setattr(embeddings, name, counting)
        scores = probe(
            folder,
            *("--task_file", folder / "own.jsonl", "--text_column", "body", "--label_column", "kind"),
            *("--tasks", "rte", "stsb", "--data_dir", folder / "glue", "--compare", folder / "second"),
            *("--rerank_dir", folder / "questions", "--output_dir", folder / "results", "--seeds", 0, 1),
            *("--mode", "linear", "knn", "attentive", "--layer_sweep", "--do_predict", "--update_card"),
        )
    return SimpleNamespace(
        scores=scores,
        embedded=embedded,
        folder=folder / "results",
        first=str(folder / "first"),
    )


def test_every_system_is_scored_by_every_mode_on_the_same_rows(done, folder):
    encoders = {done.first, str(folder / "second"), RANDOM}
    layers = {"layer 0", "layer 1", "layer 2"}
    systems_of_mode = {
        "linear": encoders | layers | {BAG, TFIDF},
        "knn": encoders | layers | {BAG, TFIDF},
        "attentive": encoders,
    }
    for task, rows in (("own", 12), ("rte", 20), ("stsb", 8)):
        for mode, expected in systems_of_mode.items():
            found = select(done.scores, task=task, mode=mode)
            assert systems_of(found) == expected
            assert {score.rows for score in found} == {rows}
            assert {score.seeds for score in select(found, system=RANDOM)} == {2}
    assert systems_of(done.scores, task="rte", mode="majority") == {"majority"}

    similar = select(done.scores, task="stsb")
    for form in ("raw", "centred", "whitened"):
        metrics = {score.metric for score in select(similar, mode=f"cosine {form}")}
        assert metrics == {"pearson", "spearmanr"}
    reranked = select(done.scores, task="questions test")
    for mode in ("cosine raw", "cosine centred"):
        metrics = {score.metric for score in select(reranked, mode=mode)}
        assert metrics == {"map", "mrr", "p@1", "p@5"}
    assert {score.mode for score in reranked} == {"cosine raw", "cosine centred"}
    assert systems_of(reranked, mode="cosine raw") == encoders | layers | {BAG, TFIDF, "BM25"}
    assert {score.rows for score in reranked} == {4}  # a query without positives does not count


def test_averages_are_over_tasks_and_leave_reranking_out(done):
    averages = [s for s in done.scores if s.metric == "average"]
    assert {s.task for s in averages} == {"average of 3 tasks", "average of 2 tasks"}
    assert {s.mode for s in averages} == {"linear", "knn", "attentive", "majority"}


def test_each_distinct_text_is_embedded_once_by_each_encoder(done):
    """The first encoder in one pass for all its layers, the second, and two random ones for two seeds."""
    assert [name for name, _ in done.embedded] == ["embed_layers"] + 3 * ["embed_texts"]
    texts = done.embedded[0][1]
    assert len(texts) == len(set(texts))
    assert all(others == texts for _, others in done.embedded)


def test_random_weights_are_new_for_each_seed(folder):
    rte = ("--tasks", "rte", "--data_dir", folder / "glue", "--mode", "knn")
    (both, _), (second, _) = (
        answers_of(
            folder,
            *rte,
            "--seeds",
            3,
            4,
        ),
        answers_of(folder, *rte, "--seeds", 4),
    )
    key = ("rte", "knn", RANDOM)
    np.testing.assert_array_equal(both[key][1:], second[key])
    assert (both[key][0] != both[key][1]).any()
    assert both["rte", "knn", str(folder / "first")].shape == (1, 20)  # nothing random in it


def test_results_are_written_as_shown(done):
    written = json.loads((done.folder / "results.json").read_text())
    rows = [tuple(row.values()) for row in written["scores"]]
    assert rows == [tuple(score) for score in done.scores]
    command = shlex.split(written["command"])
    assert command[:2] == ["python", "run_probe.py"]
    assert done.first in command
    assert written["facts"]["arguments"]["seeds"] == [0, 1]
    assert (done.folder / "results.md").stat().st_size > 100
    for name in ("scores.png", "layers.png"):
        assert (done.folder / name).read_bytes().startswith(b"\x89PNG")


def test_the_last_layer_is_the_encoder_and_others_differ(done):
    similar = select(done.scores, task="stsb", mode="cosine raw", metric="pearson")
    found = {score.system: score.score for score in similar}
    assert found["layer 2"] == pytest.approx(found[done.first], abs=1e-4)
    assert len({found["layer 0"], found["layer 1"], found["layer 2"]}) == 3


def test_an_encoder_that_is_called_like_a_layer_is_none(folder, tmp_path, monkeypatch):
    shutil.copytree(folder / "first", tmp_path / "layer 1")
    monkeypatch.chdir(tmp_path)
    arguments = ["layer 1", "--tasks", "rte", "stsb", "--data_dir", str(folder / "glue"), "--mode", "knn"]
    scores = run_probe.main([*arguments, "--no_controls"])
    assert systems_of(scores, metric="average") == {"layer 1"}


def test_the_card_gets_the_figures_of_the_encoder_alone(done, folder):
    card = (folder / "first" / "README.md").read_text()
    assert "A card." in card
    assert "model-index" in card
    assert "| TF-IDF" in card
    assert "layer 1" not in card


def test_hidden_test_splits_are_predicted_in_each_mode(done):
    predictions = done.folder / "predictions"
    files = {path.relative_to(predictions).as_posix() for path in done.folder.rglob("*.tsv")}
    assert files == {"attentive/RTE.tsv", "knn/RTE.tsv", "linear/RTE.tsv"}
    header, *lines = (predictions / "linear" / "RTE.tsv").read_text().splitlines()
    assert header == "index\tprediction"
    rows = [line.split("\t") for line in lines]
    assert [row[0] for row in rows] == [str(number) for number in range(100, 108)]
    assert {row[1] for row in rows} <= {"entailment", "not_entailment"}


def test_bm25_ranks_equal_scores_as_its_file_does(done):
    """Query q has its positive, q + 2, among candidates with one and the same score: at these places of the file."""
    (found,) = select(done.scores, system="BM25", metric="mrr")
    places = np.array([2, 3, 4, 5])
    assert found.score == pytest.approx(100 * np.mean(1 / places))


@pytest.mark.slow
def test_labels_of_the_scored_split_change_no_prediction(folder, tmp_path):
    """A planted leak: whatever reads them, in any mode, control or seed, answers differently when they are exchanged.

    A second one: scored rows put into the training split, labels and all, are taken out of it again and counted.
    """
    arguments = ("--tasks", "rte", "stsb", "--mode", "all", "--layers", 2, *TINY_RUN)
    honest, _ = answers_of(folder, *arguments, "--data_dir", folder / "glue")
    shutil.copytree(folder / "glue", tmp_path / "glue")
    for task, split in (("rte", "validation"), ("stsb", "test")):
        scored = tmp_path / "glue" / task / f"{split}.jsonl"
        rows = read_jsonl(scored)
        train = tmp_path / "glue" / task / "train.jsonl"
        jsonl(train, [*read_jsonl(train), *rows])
        jsonl(
            scored,
            [
                {
                    **row,
                    "label": other["label"],
                }
                for row, other in zip(
                    rows,
                    rows[1:] + rows[:1],
                    strict=True,
                )
            ],
        )
    leaking, notes = answers_of(folder, *arguments, "--data_dir", tmp_path / "glue")
    assert honest.keys() == leaking.keys()
    modes = {mode for _, mode, _ in honest}
    assert modes >= {"linear", "knn", "attentive", "finetune", "majority", "cosine raw"}
    fine_tuned = {system for _, mode, system in honest if mode == "finetune"}
    assert fine_tuned == {str(folder / "first"), RANDOM}
    for key, predictions in honest.items():
        np.testing.assert_array_equal(predictions, leaking[key], err_msg=str(key))
    assert "rte: 20 of 60 training rows removed, because their texts also occur in validation" in notes
    assert "stsb: 8 of 48 training rows removed, because their texts also occur in test" in notes


def test_flags_of_features_reach_them(folder):
    rte = ("--tasks", "stsb", "--data_dir", folder / "glue", "--mode", "knn")
    key = ("stsb", "cosine raw", str(folder / "first"))
    changes = (
        [],
        ["--pooling", "cls"],
        ["--layers", 2],
        ["--max_length", 5],
        ["--split", "validation"],
    )
    found = []
    for flags in changes:
        answers, _ = answers_of(folder, *rte, *flags)
        found.append(answers[key])
    for row, one in enumerate(found):
        for other in found[row + 1 :]:
            assert one.shape != other.shape or np.abs(one - other).max() > 1e-3
    assert found[-1].shape == (1, 20)


def test_reranking_is_scored_on_the_split_asked_for(folder):
    scores = probe(folder, "--rerank_dir", folder / "questions", "--split", "validation")
    assert {(s.task, s.rows) for s in scores} == {("questions dev", 2)}


@pytest.fixture(scope="module")
def documents(folder):
    """Documents with a title and a kind, a third of them to fit word counting on."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(60):
        words = generator.choice(
            [
                *WORDS[number % 2].split(),
                "river",
                "bridge",
                "time",
                f"number{number}",
            ],
            40,
        )
        rows.append(
            {
                "body": " ".join(words),
                "title": f"number{number}",
                "kind": ["sea", "land"][number % 2],
            }
        )
    jsonl(folder / "documents" / "all.jsonl", rows)
    jsonl(folder / "train.jsonl", rows[:20])
    return folder / "documents"


def test_documents_are_compared_without_labels_and_a_sentence_says_what_came_out(folder, documents, tmp_path, capsys):
    asked = tmp_path / "encoder"
    shutil.copytree(folder / "second", asked)
    card = asked / "README.md"
    card.write_text("---\nlicense: apache-2.0\n---\n\nA card.\n")
    flags = ("--texts", documents, "--text_column", "body", "--title_column", "title", "--label_column", "kind")
    flags = (*flags, "--train_texts", folder / "train.jsonl", "--output_dir", tmp_path, "--update_card")
    scores = run_probe.main(
        [
            str(asked),
            "--compare",
            str(folder / "first"),
            *map(str, flags),
        ]
    )
    words = {f"{kind} ({source} texts)" for kind in (TFIDF, "BM25") for source in ("training", "scored")}
    encoders = {str(folder / "first"), str(asked), RANDOM, BAG}
    assert {s.task for s in scores} == {REST, TITLE, LABEL}
    for task in (REST, TITLE):
        found = [s for s in scores if s.task == task]
        assert {s.metric for s in found} == {"r@1", "r@10", "mrr"}
        assert {s.system for s in found} == encoders | words
        assert {s.rows for s in found} == {60}
        assert found[0].system == str(asked)
    labelled = {s.system for s in scores if s.task == LABEL}
    assert labelled == encoders | {name for name in words if name.startswith(TFIDF)}
    *lines, sentence = capsys.readouterr().out.splitlines()
    seen = "20 of 60 documents also occur in --train_texts, so the encoder may have seen them; name others"
    assert f"note: {seen}" in lines
    assert sentence.startswith("On 60 passages of 60 documents this encoder finds the rest of the document (R@10) ")
    assert f"than {folder / 'first'}" in sentence
    assert report.read_results(tmp_path / "results.json") == scores
    answers, gold = report.read_answers(tmp_path)
    assert answers[REST, "cosine raw", "mrr", RANDOM].shape == (1, 60)
    assert gold[LABEL].shape == (60,)
    assert REST in card.read_text()
    assert "model-index" in card.read_text()


def test_the_command_is_as_it_was_given_and_the_card_names_no_place(folder, documents, tmp_path):
    asked = tmp_path / "encoder"
    shutil.copytree(folder / "second", asked)
    card = asked / "README.md"
    card.write_text("---\nlicense: apache-2.0\n---\n\nA card.\n")
    argv = [str(asked), "--texts", f"{documents}/*.jsonl", "--text_column", "body", "--no_controls", "--update_card"]
    argv += ["--compare", str(folder / "first"), "--output_dir", str(tmp_path / "results")]
    run_probe.main(argv, prog="text-jepa probe")
    written = json.loads((tmp_path / "results" / "results.json").read_text())
    assert shlex.split(written["command"]) == ["text-jepa", "probe", *argv]
    shown = card.read_text()
    assert "text-jepa probe encoder --texts '*.jsonl' --text_column body" in shown
    assert "`encoder` is this encoder" in shown
    assert "| first " in shown
    assert str(tmp_path) not in shown
    assert str(folder) not in shown


def test_pairs_and_reranking_have_words_counted_in_the_training_texts_beside_those_of_the_set(folder, documents):
    arguments = ("--tasks", "stsb", "--data_dir", folder / "glue", "--mode", "knn")
    arguments = (*arguments, "--rerank_dir", folder / "questions")
    scores = probe(folder, *arguments, "--train_texts", folder / "train.jsonl", "--text_column", "body")
    words = {TFIDF, f"{TFIDF} (training texts)"}
    similar = select(scores, task="stsb", mode="cosine raw", metric="pearson")
    assert {system for system in systems_of(similar) if system.startswith(TFIDF)} == words
    assert {score.rows for score in similar} == {8}
    ranked = systems_of(scores, task="questions test", mode="cosine raw")
    assert ranked >= words | {"BM25", "BM25 (training texts)"}
    without = systems_of(probe(folder, *arguments))
    assert not any("training" in system for system in without)


def test_where_nothing_is_named_held_out_documents_of_the_builtin_corpus_are_asked(folder, monkeypatch, capsys):
    """Those that a run on it is compared on, with words counted in its training part."""
    generator = np.random.default_rng(0)

    def texts(count):
        return [
            " ".join(
                generator.choice(
                    [
                        *WORDS[0].split(),
                        "river",
                        f"bread{i}",
                    ],
                    40,
                )
            )
            for i in range(count)
        ]

    corpus = DatasetDict({"train": Dataset.from_dict({"text": texts(30)})})
    corpus["validation"] = Dataset.from_dict({"text": texts(50)})
    monkeypatch.setattr(questions, "load_builtin_corpus", lambda cache: corpus)
    monkeypatch.setattr(catalog, "package_task", lambda cache: load_task_file(*own))
    own = (str(folder / "own.jsonl"), None, "body", None, "kind")
    scores = probe(folder, "--mode", "knn")
    found = [s for s in scores if s.task == REST]
    assert {s.system for s in found} >= {f"{TFIDF} (training texts)", "BM25 (training texts)", RANDOM}
    assert {s.rows for s in found} == {25}
    assert {s.task for s in scores} == {"own", REST}
    assert capsys.readouterr().out.splitlines()[-1].startswith("On 25 passages of 25 documents this encoder")
    named = probe(
        folder,
        "--task_file",
        own[0],
        "--text_column",
        "body",
        "--label_column",
        "kind",
        "--mode",
        "knn",
    )
    assert {s.task for s in named} == {"own"}


def test_without_training_texts_word_counting_is_fitted_on_the_scored_ones(folder, documents, capsys):
    scores = probe(folder, "--texts", documents / "all.jsonl", "--text_column", "body", "--no_controls")
    assert systems_of(scores) == {str(folder / "first"), "TF-IDF (scored texts)", "BM25 (scored texts)"}
    assert {s.task for s in scores} == {REST}  # a label column has no default here
    assert "TF-IDF fitted on the scored texts" in capsys.readouterr().out


def test_random_weights_are_pooled_as_the_encoder_is(folder, tokenizer):
    """Weights that only "the" has: also of random weights the vector is the state of this token."""
    weights = np.zeros(len(tokenizer), np.float32)
    (the,) = tokenizer("the", add_special_tokens=False)["input_ids"]
    weights[the] = 1
    encoder = replace(open_encoder(str(folder / "first")), word_weights=weights)
    control = systems.untrained(encoder, 0)
    assert control.name == RANDOM
    text = "bread and the river"
    place = tokenizer(text)["input_ids"].index(the)
    states, _ = embeddings.token_states(control, [text])
    np.testing.assert_allclose(
        embeddings.embed_texts(control, [text])[0],
        states[0, place],
        atol=5e-3,
    )


@pytest.mark.parametrize("configuration", [BertConfig, RoFormerConfig], ids=["learned", "rotary"])
def test_random_weights_of_an_encoder_without_layers_know_no_positions(configuration, tokenizer):
    shape = {"hidden_size": 16, "num_hidden_layers": 0, "num_attention_heads": 2, "intermediate_size": 16}
    model = AutoModel.from_config(configuration(vocab_size=len(tokenizer), **shape))
    control = systems.untrained(Encoder("mine", model, tokenizer), 0)
    weights = {name: weight for name, weight in control.model.named_parameters() if "position_embeddings" in name}
    assert len(weights) == (configuration is BertConfig)
    assert not any(weight.any() for weight in weights.values())


@pytest.mark.slow
def test_fine_tuning_of_a_checkpoint_begins_with_the_encoder_that_is_probed(folder, make_model, tokenizer, tmp_path):
    model = make_model(
        {
            **make_model().config.text_config.to_dict(),
            "vocab_size": len(tokenizer),
        }
    )
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    rte = ("--tasks", "rte", "--data_dir", folder / "glue", "--mode", "finetune", "--no_controls", *TINY_RUN)
    scores = run_probe.main([str(tmp_path), *map(str, rte)])
    assert {(s.mode, s.system) for s in scores} == {("finetune", str(tmp_path))}


def test_encoders_are_read_from_the_cache_that_is_named(folder, tmp_path, monkeypatch):
    download = tmp_path / "models--someone--encoder"
    shutil.copytree(folder / "first", download / "snapshots" / ("1" * 40))
    (download / "snapshots" / ("1" * 40) / ".gitattributes").touch()  # all of it was downloaded
    (download / "refs").mkdir()
    (download / "refs" / "main").write_text("1" * 40)
    code = []
    monkeypatch.setattr(run_probe, "run_code_of", lambda names, **options: code.append(options))
    arguments = ("--tasks", "rte", "--data_dir", folder / "glue", "--mode", "knn", "finetune", *TINY_RUN)
    scores = run_probe.main(["someone/encoder", "--cache_dir", str(tmp_path), "--no_controls", *map(str, arguments)])
    assert {(score.mode, score.system) for score in scores} == {
        ("knn", "someone/encoder"),
        ("finetune", "someone/encoder"),
    }
    assert code == [{"cache_dir": str(tmp_path)}]


def test_word_content_is_a_task_of_the_builtin_corpus(folder, monkeypatch):
    sentences = [
        f"{place} {word} waits." for word in ("storm", "bread") for place in map("the{:02d}".format, range(60))
    ]
    corpus = {"validation": {"text": [" ".join(sentences[:60]), *sentences]}}
    monkeypatch.setattr(catalog, "load_builtin_corpus", lambda cache: corpus)
    monkeypatch.setattr(catalog, "word_content", partial(catalog.word_content, words=2))
    scores = probe(folder, "--tasks", "word_content", "--mode", "knn")
    assert {(s.task, s.rows) for s in scores} == {("word_content", 20)}


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["--tasks", "sst"], ["no task 'sst'", "'sst2'"]),
        (["--tasks", "word_contnt"], ["word_contnt", "did you mean 'word_content'"]),
        (["--tasks", "cola", "--data_dir", "{dir}/glue"], ["cola"]),
        (["--task_file", "{dir}/own.jsonl"], ["no column 'label'", "--label_column"]),
        (["--task_file", "{dir}/none.jsonl"], ["none.jsonl", "no such file"]),
        (
            ["--task_file", "{dir}/one.jsonl", "--text_column", "body"],
            ["one.jsonl", "column 'label'", "single label, 0", "at least 2"],
        ),
        (
            ["--task_file", "{dir}/rare.jsonl", "--text_column", "body"],
            ["rare.jsonl", "column 'label'", "2 of the 4 rows"],
        ),
        (["--rerank_dir", "{dir}/glue"], ["test.txt"]),
        (["--rerank_dir", "{dir}/questions", "--split", "tset"], ["tset", "'test'"]),
        (["--tasks", "rte", "--data_dir", "{dir}/glue", "--split", "test"], ["rte", "'test'", "validation"]),
        (["--compare", "{dir}/none", "--tasks", "rte", "--data_dir", "{dir}/glue"], ["none", "no model can be read"]),
        (["--compare", "{dir}/broken", "--task_file", "{dir}/ok.jsonl"], ["broken", "not finite"]),
        (["--layers", "9", "--task_file", "{dir}/ok.jsonl"], ["--layers 9", "3"]),
        (["--layers", "0"], ["--layers 0"]),
        (["--mode", "guess"], ["--mode", "guess"]),
        (["--task", "rte"], ["--task", "did you mean 'tasks'"]),
        (["--mode", "finetune", "--finetune_args", "learning_rate"], ["learning_rate", "KEY=VALUE"]),
        (
            ["--mode", "finetune", "--finetune_args", "learning_rat=1", "--task_file", "{dir}/ok.jsonl"],
            ["learning_rat", "'learning_rate'"],
        ),
        (["--finetune_args", "learning_rate=1"], ["--mode finetune"]),
        (["--do_predict"], ["--output_dir"]),
        (["--do_predict", "--output_dir", "{dir}/x", "--task_file", "{dir}/ok.jsonl"], ["hidden"]),
        (["--layer_sweep"], ["--output_dir"]),
        (["--layer_sweep", "--output_dir", "{dir}/x", "--texts", "{dir}/ok.jsonl"], ["--layer_sweep goes with tasks"]),
        (
            ["--layer_sweep", "--output_dir", "{dir}/x", "--mode", "finetune", "--task_file", "{dir}/ok.jsonl"],
            ["--layer_sweep goes with tasks in the modes linear and knn"],
        ),
        (
            ["--rerank_dir", "{dir}/published", "--no_controls"],
            ["--no_controls: published has no text_tokenized file"],
        ),
        (
            ["--rerank_dir", "{dir}/questions", "{dir}/glue/../questions"],
            ["2 sets are called 'questions test'", "rename"],
        ),
        (
            ["--tasks", "rte", "--data_dir", "{dir}/glue", "--task_file", "{dir}/rte.jsonl"],
            ["2 sets are called 'rte'", "rename"],
        ),
        (["--label_column", "kind"], ["--label_column goes with --task_file or --texts"]),
        (["--text_column", "body"], ["--text_column goes with --task_file or --texts or --train_texts"]),
        (["--quoting", "none", "--rerank_dir", "{dir}/questions"], ["--quoting goes with --task_file or --texts"]),
        (["--split", "test", "--tasks", "packages"], ["--split: packages has only one split", "GLUE"]),
        (
            ["--texts", "{dir}/ok.jsonl", "--mode", "finetune", "--finetune_args", "learning_rate=1"],
            ["--finetune_args goes with --tasks or --task_file"],
        ),
        (["--texts", "{dir}/none.txt"], ["--texts", "none.txt: no such file"]),
        (["--texts", "{dir}/own.jsonl"], ["no column 'text'", "--text_column"]),
        (
            ["--texts", "{dir}/own.jsonl", "--text_column", "body"],
            ["--texts", "too short", "16 words", "32 characters"],
        ),
        (["--texts", "{dir}/ok.jsonl", "--label_column", "text"], ["no two different texts", "--label_column"]),
        (
            ["--train_texts", "{dir}/ok.jsonl", "--task_file", "{dir}/ok.jsonl"],
            ["--train_texts goes with --texts, --rerank_dir"],
        ),
        (["--title_column", "title"], ["--title_column goes with --texts"]),
        (["--task_test_file", "none.csv"], ["--task_test_file goes with --task_file"]),
        (["--pair_column", "b", "--texts", "{dir}/ok.jsonl"], ["--pair_column goes with --task_file"]),
        (["--with_body"], ["--with_body goes with --rerank_dir"]),
        (["--data_dir", "glue"], ["--data_dir goes with --tasks"]),
        (["--split", "test", "--task_file", "{dir}/ok.jsonl"], ["--split goes with --tasks or --rerank_dir"]),
        (
            ["--mode", "finetune", "--finetune_args", "num_train_epochs=0", "--task_file", "{dir}/ok.jsonl"],
            ["num_train_epochs=0", "above 0"],
        ),
        (["--update_card", "--compare", "{dir}/second"], ["README.md"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(folder, tmp_path, arguments, fragments, monkeypatch, capsys):
    rows = [
        {"body": f"river {word}", "text": f"{word} {number}", "label": 0}
        for number, word in enumerate(WORDS[0].split() * 4)
    ]
    jsonl(folder / "one.jsonl", rows)
    jsonl(
        folder / "rare.jsonl",
        [*rows, *({"body": word, "label": 1} for word in ("time", "bread"))],
    )
    jsonl(
        folder / "ok.jsonl",
        [
            {
                **row,
                "label": i % 2,
            }
            for i, row in enumerate(rows)
        ],
    )
    shutil.copy(folder / "ok.jsonl", folder / "rte.jsonl")
    (folder / "published").mkdir(exist_ok=True)
    shutil.copy(folder / "questions" / "test.txt", folder / "published")
    if not (folder / "broken").exists():
        broken = BertModel.from_pretrained(folder / "first", add_pooling_layer=False)
        broken.embeddings.word_embeddings.weight.data.fill_(float("nan"))
        shutil.copytree(folder / "first", folder / "broken")
        broken.save_pretrained(folder / "broken")
    arguments = [argument.format(dir=folder) for argument in arguments]
    name = "second" if "--update_card" in arguments else "first"
    monkeypatch.setattr("sys.argv", ["text-jepa", "probe", str(folder / name), *arguments])
    with pytest.raises(SystemExit) as stop:
        text_jepa_command()
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert [fragment for fragment in fragments if fragment not in line] == [], line


@pytest.mark.parametrize(
    "modes",
    [
        pytest.param(
            ("linear", "knn", "--layer_sweep"),
            marks=pytest.mark.slow,
            id="features",
        ),
        pytest.param(("attentive",), id="attention"),
    ],
)
def test_bar_of_probing_ends_when_the_last_fit_does(folder, modes, tmp_path, monkeypatch):
    bars = []

    def kept(**options):
        bars.append(tqdm(**options, file=Terminal()))
        return bars[-1]

    monkeypatch.setattr(run, "tqdm", kept)
    data = ("--task_file", folder / "own.jsonl", "--text_column", "body", "--label_column", "kind")
    output = ("--output_dir", tmp_path / "results")
    probe(
        folder,
        *data,
        "--compare",
        folder / "second",
        "--seeds",
        0,
        1,
        *output,
        "--mode",
        *modes,
    )
    (bar,) = bars
    assert bar.n == bar.total > 0
