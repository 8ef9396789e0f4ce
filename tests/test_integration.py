"""Exported encoders in sentence-transformers and mteb: their evaluators and ours give the same figures, offline.

On the real data too: TEXT_JEPA_DATA=folder python -m pytest -q tests/test_integration.py
"""

import os
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from text_jepa import TextJepaForPreTraining, export_encoder
from text_jepa.encoders import embeddings
from text_jepa.encoders.embeddings import embed_texts, open_encoder
from text_jepa.probe import predictors
from text_jepa.probe.glue import load_glue
from text_jepa.probe.reranking import Query, RerankingTask, load_reranking, rerank_per_query
from text_jepa.probe.tasks import Split, Task


st = pytest.importorskip("sentence_transformers")
evaluation = pytest.importorskip("sentence_transformers.sentence_transformer.evaluation")

EXAMPLE = Path(__file__).parents[1] / "examples" / "evaluate_with_mteb.py"
DATA = os.environ.get("TEXT_JEPA_DATA")
MAX_LENGTH = 64


@pytest.fixture(scope="module", params=["from scratch", "from an encoder"])
def encoder(request, tokenizer, make_model, tmp_path_factory):
    """The folder of an exported encoder: a ModernBERT of ours, or the BERT that a run started from."""
    folder = tmp_path_factory.mktemp("encoder")
    shape = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape |= {"intermediate_size": 32, "initializer_range": 0.2}
    if request.param == "from scratch":
        model = make_model({"model_type": "modernbert", "pad_token_id": tokenizer.pad_token_id, **shape})
    else:
        torch.manual_seed(0)
        BertModel(BertConfig(**shape)).save_pretrained(folder / "start")
        model = TextJepaForPreTraining.from_encoder(folder / "start")
    export_encoder(model, tokenizer, folder / "exported", MAX_LENGTH)
    return str(folder / "exported")


def vectors_of(encoder, texts):
    """By our own means, a dictionary."""
    texts = sorted(set(texts))
    return dict(zip(texts, embed_texts(open_encoder(encoder), texts), strict=True))


def sentence(generator, words=5):
    nouns = ["lighthouse", "harbour", "garden", "beans", "report", "bread", "river", "boat", "bridge", "summer"]
    return " ".join(generator.choice([*nouns, "the", "and", "in", "water", "time", "measured"], words))


def made_similarity():
    generator = np.random.default_rng(0)
    # None is longer than the encoder's window: sentence-transformers would cut it off, and we read it whole.
    texts, pairs = ([sentence(generator, 2 + row % 8) for row in range(60)] for _ in range(2))
    split = Split(texts, pairs, generator.integers(0, 6, 60).astype(float), list(range(60)))
    return Task("made", "regression", {"train": split, "test": split}, "test", ("pearson", "spearmanr"))


def made_reranking():
    """Nine queries with one to three of six candidates, and one query without, which no figure counts."""
    generator = np.random.default_rng(1)
    texts = {str(number): sentence(generator) for number in range(70)}
    assert len(set(texts.values())) == len(texts)
    queries = [
        Query(str(q), [str(10 + 6 * q + i) for i in range(6)], np.arange(6) < (q % 3 + 1) * (q < 9), None)
        for q in range(10)
    ]
    return RerankingTask("made questions", "test", queries, texts)


def our_similarity(encoder, task):
    table = vectors_of(encoder, [*task.test.texts, *task.test.pairs])
    u, v = (np.stack([table[text] for text in column]) for column in (task.test.texts, task.test.pairs))
    return predictors.sts_scores(u, v, task.test.labels)


def our_reranking(encoder, task):
    table = vectors_of(encoder, task.texts.values())
    cosines = [
        embeddings.cosine(table[task.texts[q.id]], np.stack([table[task.texts[c]] for c in q.candidates]))
        for q in task.queries
    ]
    per_query = rerank_per_query(cosines, [q.relevant for q in task.queries])
    return {name: 100 * values.mean() for name, values in per_query.items()}


def samples_of(task):
    """As `RerankingEvaluator` wants them."""
    found = []
    for q in task.queries:
        texts = np.array([task.texts[c] for c in q.candidates])
        parts = {"positive": texts[q.relevant].tolist(), "negative": texts[~q.relevant].tolist()}
        found.append({"query": task.texts[q.id], **parts})
    return found


def compare_similarity(encoder, task):
    evaluator = evaluation.EmbeddingSimilarityEvaluator(task.test.texts, task.test.pairs, task.test.labels)
    found = evaluator(st.SentenceTransformer(encoder, device="cpu"))
    ours = our_similarity(encoder, task)
    assert found["spearman_cosine"] == pytest.approx(ours["raw_spearmanr"] / 100, abs=1e-4)
    assert found["pearson_cosine"] == pytest.approx(ours["raw_pearson"] / 100, abs=1e-4)


def compare_reranking(encoder, task):
    """MRR of all candidates: by default theirs looks at ten. Both skip a query without a positive."""
    count = max(len(q.candidates) for q in task.queries)
    found = evaluation.RerankingEvaluator(samples_of(task), at_k=count)(st.SentenceTransformer(encoder, device="cpu"))
    ours = our_reranking(encoder, task)
    assert found["map"] == pytest.approx(ours["map"] / 100, abs=1e-4)
    assert found[f"mrr@{count}"] == pytest.approx(ours["mrr"] / 100, abs=1e-4)


def compare_mteb(encoder, similarity, reranking):
    example = runpy.run_path(str(EXAMPLE))
    found = example["evaluate"](encoder, [example["sts_task"](similarity), example["reranking_task"](reranking)])
    sts, ours = found[similarity.name], our_similarity(encoder, similarity)
    assert sts["main_score"] == sts["cosine_spearman"] == pytest.approx(ours["raw_spearmanr"] / 100, abs=1e-4)
    assert sts["cosine_pearson"] == pytest.approx(ours["raw_pearson"] / 100, abs=1e-4)
    reranked, ours = found[reranking.name], our_reranking(encoder, reranking)
    assert reranked["main_score"] == reranked["map_at_1000"]
    for theirs, name in (
        ("map_at_1000", "map"),
        ("mrr_at_1000", "mrr"),
        ("precision_at_1", "p@1"),
        ("precision_at_5", "p@5"),
    ):
        assert reranked[theirs] == pytest.approx(ours[name] / 100, abs=1e-4), name


# ---- sentence-transformers ------------------------------------------------------------------------------------------


def test_its_vectors_are_ours(encoder):
    texts = made_similarity().test.texts
    found = st.SentenceTransformer(encoder, device="cpu").encode(texts)
    expected = vectors_of(encoder, texts)
    assert np.abs(found - np.stack([expected[text] for text in texts])).max() < 1e-5


def test_its_similarity_evaluator_gives_our_raw_correlations(encoder):
    compare_similarity(encoder, made_similarity())


def test_its_reranking_evaluator_gives_our_map_and_mrr(encoder):
    compare_reranking(encoder, made_reranking())


def test_its_average_precision_of_pairs_is_that_of_one_long_ranking(encoder):
    split = made_similarity().test
    labels = (split.labels > 3).astype(int)
    evaluator = evaluation.BinaryClassificationEvaluator(split.texts, split.pairs, labels.tolist())
    found = evaluator(st.SentenceTransformer(encoder, device="cpu"))
    table = vectors_of(encoder, [*split.texts, *split.pairs])
    cosines = embeddings.cosine(*(np.stack([table[text] for text in column]) for column in (split.texts, split.pairs)))
    assert found["cosine_ap"] == pytest.approx(rerank_per_query([cosines], [labels])["map"][0], abs=1e-4)


def test_where_the_rules_differ_ours_are_the_stricter_ones(encoder):
    """Equal candidates: theirs shares the rank, ours puts the positive last. Only positives: theirs skips it."""
    same = "the bridge"
    queries = [Query("q", ["a", "b"], np.array([True, False]), None), Query("r", ["a"], np.array([True]), None)]
    texts = {"q": "harbour", "r": "river", "a": same, "b": same}
    task = RerankingTask("ties", "test", queries, texts)
    model = st.SentenceTransformer(encoder, device="cpu")
    tie, only_positives = (RerankingTask("one", "test", [query], texts) for query in queries)
    assert our_reranking(encoder, tie)["map"] == 50
    assert evaluation.RerankingEvaluator(samples_of(tie))(model)["map"] >= 0.5
    assert our_reranking(encoder, only_positives)["map"] == 100
    assert len(evaluation.RerankingEvaluator(samples_of(task)).samples) == 1


# ---- mteb, and real data --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_mteb_gives_our_figures_on_local_tasks(encoder):
    pytest.importorskip("mteb")
    compare_mteb(encoder, made_similarity(), made_reranking())


@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason="TEXT_JEPA_DATA names no data folder")
def test_all_three_agree_on_real_data(tmp_path):
    """STS-B and the questions of QQP, with a vocabulary under which no two questions are the same to the encoder."""
    tokenizer = BertTokenizerFast(f"{DATA}/tokenizers/bert_base_uncased/vocab.txt")
    assert len(tokenizer) > 30_000
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(tokenizer), initializer_range=0.2, **shape)
    BertModel(config).save_pretrained(tmp_path / "start")
    export_encoder(TextJepaForPreTraining.from_encoder(tmp_path / "start"), tokenizer, tmp_path / "exported", 64)
    encoder, sts, questions = str(tmp_path / "exported"), load_glue("stsb", f"{DATA}/glue"), f"{DATA}/qqp_rerank"
    compare_similarity(encoder, sts)
    compare_reranking(encoder, load_reranking(questions))
    pytest.importorskip("mteb")
    compare_mteb(encoder, sts, load_reranking(questions))


def test_the_example_without_a_task_is_one_line(monkeypatch, capsys):
    pytest.importorskip("mteb", reason="needs the extra mteb")
    monkeypatch.setattr("sys.argv", ["evaluate_with_mteb.py", "encoder"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(EXAMPLE))["main"]()
    assert stop.value.code == 2
    assert "name --glue or --rerank" in capsys.readouterr().err
