"""Evaluates an encoder with mteb on local data: STS-B in GLUE's layout, or a reranking set in AskUbuntu's.

    python examples/evaluate_with_mteb.py runs/tiny_cpu --glue ../shared/data/glue --rerank ../shared/data/qqp_rerank

Needs `pip install -c constraints.txt -e '.[mteb]'`. For the tasks that mteb downloads: `mteb run -m ENCODER -t
STSBenchmark`.
"""

import argparse

import mteb
from datasets import Dataset, DatasetDict
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.sts import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from sentence_transformers import SentenceTransformer

from text_jepa.probe.glue import load_glue
from text_jepa.probe.reranking import RerankingTask, load_reranking
from text_jepa.probe.tasks import Task


def sts_task(task: Task) -> AbsTaskSTS:
    """A similarity of ours as a task of mteb; its main score is Spearman's correlation of raw cosines."""

    class LocalSTS(AbsTaskSTS):
        metadata = _metadata(task.name, "STS", "cosine_spearman")
        max_score = max(task.test.labels)

    local = LocalSTS()
    rows = {"sentence1": task.test.texts, "sentence2": task.test.pairs, "score": task.test.labels}
    local.dataset, local.data_loaded = DatasetDict(test=Dataset.from_dict(rows)), True
    return local


def reranking_task(task: RerankingTask) -> AbsTaskRetrieval:
    """A reranking set of ours as a task of mteb; its main score is MAP.

    A positive that is not among the candidates would count as missed there; as in the protocol of AskUbuntu it is
    left out.
    """

    class LocalReranking(AbsTaskRetrieval):
        metadata = _metadata(task.name, "Reranking", "map_at_1000")

    candidates = sorted({candidate for query in task.queries for candidate in query.candidates})
    local = LocalReranking()
    local.dataset = {
        "default": {
            "test": {
                "queries": Dataset.from_list([{"id": q.id, "text": task.texts[q.id]} for q in task.queries]),
                "corpus": Dataset.from_list([{"id": c, "title": "", "text": task.texts[c]} for c in candidates]),
                "relevant_docs": {
                    query.id: {c: 1 for c, positive in zip(query.candidates, query.relevant, strict=True) if positive}
                    for query in task.queries
                },
                "top_ranked": {query.id: query.candidates for query in task.queries},
            }
        }
    }
    local.data_loaded = True
    return local


def _metadata(name, kind, main_score):
    return TaskMetadata(
        name=name,
        description=f"{name}, from local files",
        dataset={"path": f"local/{name}", "revision": "local"},
        type=kind,
        category="t2t",
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score=main_score,
    )


def evaluate(encoder: str, tasks: list) -> dict[str, dict]:
    """All scores of mteb, by the name of the task."""
    model = SentenceTransformer(encoder, trust_remote_code=False)
    results = mteb.evaluate(
        model,
        tasks,
        cache=None,
        co2_tracker=False,
        show_progress_bar=False,
    )
    return {result.task_name: result.scores["test"][0] for result in results.task_results}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("encoder", help="Folder or Hub name.")
    parser.add_argument("--glue", help="Folder with stsb/.")
    parser.add_argument("--rerank", help="Folder with test.txt and text_tokenized.txt.gz.")
    args = parser.parse_args()
    if not args.glue and not args.rerank:
        parser.error("name --glue or --rerank")
    tasks = [sts_task(load_glue("stsb", args.glue))] if args.glue else []
    tasks += [reranking_task(load_reranking(args.rerank))] if args.rerank else []
    for name, scores in evaluate(args.encoder, tasks).items():
        print(f"{name:<16} {100 * scores['main_score']:.2f}")


if __name__ == "__main__":
    main()
