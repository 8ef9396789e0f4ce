"""A comparison on documents without labels: what the passages are, who is ahead of whom, and what nobody gains by.

Run: python -m pytest -q tests/probe/test_documents.py
"""

import json
import sys
import unicodedata

import numpy as np
import pytest
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer

from text_jepa.cli import UsageError
from text_jepa.data.scripts import terms_of, words_with_spaces
from text_jepa.probe.bootstrap import interval_of, score_resamples
from text_jepa.probe.controls import tfidf_cosines
from text_jepa.probe.documents import (
    LABEL,
    REST,
    TITLE,
    compare_on_documents,
    cut_passages,
    load_documents,
    ranks_of_own,
    score_on_documents,
    summarize,
)
from text_jepa.probe.word_counting import WordCounting


def numbered(words, name=""):
    """A document whose words are their places, so that a passage tells where it was cut."""
    return " ".join(f"{name}{place}" for place in range(words))


def places(passage):
    return [int(word) for word in passage.split()]


# ---- passages -------------------------------------------------------------------------------------------------------


def test_the_answer_begins_64_words_behind_the_end_of_the_query():
    passages = cut_passages([numbered(128)])
    assert places(passages.queries[0]) == list(range(32))
    assert places(passages.answers[0]) == list(range(96, 128))
    assert passages.documents.tolist() == [0]


@pytest.mark.parametrize("words", [16, 31, 127])
def test_a_shorter_document_gives_its_two_halves(words):
    passages = cut_passages([numbered(words)])
    assert places(passages.queries[0]) + places(passages.answers[0]) == list(range(words))
    assert len(places(passages.queries[0])) == words // 2


def test_a_document_of_15_words_gives_nothing():
    passages = cut_passages([numbered(15), numbered(16), ""])
    assert passages.documents.tolist() == [1]


def test_each_document_gives_a_pair_before_one_gives_two():
    documents = [
        numbered(128 * 10),
        numbered(20),
        numbered(128 * 2),
        numbered(128),
    ]
    counts = [np.bincount(cut_passages(documents, limit).documents, minlength=4).tolist() for limit in (4, 6, 100)]
    assert counts == [
        [1, 1, 1, 1],
        [2, 1, 2, 1],
        [10, 1, 2, 1],
    ]


def test_pairs_of_a_document_do_not_overlap_and_are_spread_over_it():
    passages = cut_passages([numbered(128 * 9 + 50)], limit=3)
    starts = [places(query)[0] for query in passages.queries]
    assert starts == [0, 128 * 3, 128 * 6]
    used = [place for text in (*passages.queries, *passages.answers) for place in places(text)]
    assert len(used) == len(set(used))


def test_of_too_many_documents_some_are_taken_evenly_and_always_the_same():
    documents = [numbered(16, f"d{row}w") for row in range(1000)]
    passages = cut_passages(documents, limit=100)
    assert passages.documents.tolist() == list(range(0, 1000, 10))
    assert passages.queries == cut_passages(documents, limit=100).queries


# A character and a mark or punctuation behind it.
UNSPACED = {
    "Chinese": ["雨", "桥，", "船", "信"],
    "Japanese": ["か\u3099", "ラー", "雨。", "の"],
    "Thai": ["ที่", "ม", "นี", "คุ"],
    "Khmer": ["ខ្", "ញុំ", "ទៅ", "ផ្\u200b"],
}


@pytest.mark.parametrize("script", UNSPACED)
def test_where_words_have_no_spaces_two_characters_count_as_one(script):
    characters = UNSPACED[script] * 64  # 128 words
    passages = cut_passages(["".join(characters), "".join(characters[:32]), "".join(characters[:30])])
    assert passages.documents.tolist() == [0, 1]
    assert passages.queries == ["".join(characters[:64]), "".join(characters[:16])]
    assert passages.answers == ["".join(characters[192:]), "".join(characters[16:32])]


def test_a_text_of_both_kinds_of_scripts_loses_nothing():
    text = "我们昨天用 iPhone12\n（黑色）打电话，\t很好。 OK!"
    words = ["我们", "昨天", "用 ", "iPhone12 ", "（", "黑色）", "打电", "话， 很", "好。 ", "OK!"]
    assert words_with_spaces(text) == words
    assert "".join(words_with_spaces(text)) == " ".join(text.split())


def test_a_name_in_another_script_does_not_change_the_words_of_a_text():
    text = "The river 長江 (Cháng Jiāng) is called 揚子江 by some\u00a0people.\n\nIt is long."
    assert words_with_spaces(text) == [f"{word} " for word in text.split()]


# ---- ranks ----------------------------------------------------------------------------------------------------------


def test_a_rank_counts_better_and_equal_candidates_of_other_documents():
    scores = np.array(
        [
            [0.5, 0.9, 0.5, 0.1],
            [0.9, 0.8, 0.1, 0.2],
            [0.3, 0.3, 0.3, 0.3],
            [0.0, 0.1, 0.2, 0.3],
        ]
    )
    assert ranks_of_own(scores, np.arange(4)).tolist() == [3, 2, 4, 1]
    # The first two are of one document: what the other one finds there is neither hit nor miss.
    assert ranks_of_own(scores, np.array([0, 0, 1, 2])).tolist() == [2, 1, 4, 1]


def test_rounding_errors_of_a_collapsed_encoder_are_ties():
    scores = 1 + 1e-9 * np.random.default_rng(0).normal(size=(50, 50))
    assert (ranks_of_own(scores, np.arange(50)) == 50).all()


# ---- word counting --------------------------------------------------------------------------------------------------


def test_tfidf_is_that_of_scikit_learn_fitted_on_the_first_texts(texts):
    asked = ["the river and the BOAT, the boat", "a zebra", texts[0]]
    theirs = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\b\w+\b").fit(texts)
    ours = WordCounting(texts).tfidf(asked)
    assert sparse.issparse(ours)
    np.testing.assert_allclose(
        ours.toarray(),
        theirs.transform(asked).toarray(),
        atol=1e-12,
    )


def test_terms_of_scripts_with_spaces_are_words_as_scikit_learn_counts_them():
    words_of = TfidfVectorizer(token_pattern=r"\b\w+\b").build_analyzer()
    for text in ("The river's_name is Ångström №5, x² — naïve\u00a0ÉTÉ ❤️", "Это Россия, 한국어 문장; שלום עולם"):
        assert terms_of(text) == words_of(text)


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("हिन्दी में लिखा", ["हिन्दी", "में", "लिखा"]),
        ("தமிழ் மொழி", ["தமிழ்", "மொழி"]),
        ("cafe\u0301 au lait", ["cafe\u0301", "au", "lait"]),
        ("下雨了，iPhone手机。", ["下雨", "雨了", "iphone", "手机"]),
        ("カー か", ["カー", "か"]),
        ("ที่นี่", ["ที", "ี่", "่น", "นี", "ี่"]),
    ],
)
def test_marks_are_parts_of_words_and_without_spaces_two_characters_are_a_term(text, terms):
    assert terms_of(text) == terms


def test_every_mark_is_a_part_of_the_word_before_it():
    marks = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)).startswith("M")]
    assert len(marks) > 2_000
    assert [mark for mark in marks if "".join(terms_of(f"a{mark}b")) != f"a{mark}b".lower()] == []


@pytest.mark.parametrize("first", [0x4E00, 0x30A1, 0x0E01, 0x1780])
def test_word_counting_finds_the_rest_of_documents_without_spaces(first):
    """Each document has words of its own in clauses without a space; counted as a word each, none occurs twice."""
    generator = np.random.default_rng(0)
    letters = [chr(first + number) for number in range(30)]
    documents = []
    for _ in range(40):
        words = ["".join(generator.choice(letters, 3)) for _ in range(8)]
        clauses = ["".join(generator.choice(words, 7)) for _ in range(20)]
        documents.append("，".join(clauses))
    found = compare_on_documents({"this": constant}, documents)
    for system in ("TF-IDF (scored texts)", "BM25 (scored texts)"):
        assert score_of(found, REST, "r@1", system).score > 90
    queries = [document[:80] for document in documents]
    assert tfidf_cosines(documents, queries, documents).min() > 0.1


def test_bm25_is_the_formula_with_frequencies_of_the_first_texts(texts):
    candidates = ["river river boat", "the boat", "zebra"]
    found = WordCounting(texts).bm25(["river boat boat", "zebra"], candidates)

    def inverse(word):
        frequency = sum(word in text.lower().replace(",", "").replace(".", "").split() for text in texts)
        return np.log(1 + (len(texts) - frequency + 0.5) / (frequency + 0.5))

    def share(count, length):
        # A word that no fitted text has does not count, also not for a length.
        return count * 2.5 / (count + 1.5 * (0.25 + 0.75 * length / ((3 + 2 + 0) / 3)))

    expected = [inverse("river") * share(2, 3) + 2 * inverse("boat") * share(1, 3), 2 * inverse("boat") * share(1, 2)]
    np.testing.assert_allclose(
        found,
        [[*expected, 0], [0, 0, 0]],
    )


def test_pairs_are_scored_as_among_all(texts):
    words, queries, candidates = WordCounting(texts), ["river boat boat", "zebra"], ["river river boat", "the boat"]
    cosines = (words.tfidf(queries) @ words.tfidf(candidates).T).toarray()
    np.testing.assert_allclose(words.tfidf_of_pairs(queries, candidates), cosines.diagonal())
    np.testing.assert_allclose(
        words.bm25_of_pairs(queries, candidates),
        words.bm25(queries, candidates).diagonal(),
    )


def test_texts_without_words_are_refused():
    with pytest.raises(UsageError, match="hold no word"):
        WordCounting(["...", ""])


# ---- scores ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus():
    """60 documents of 128 words: each has ten words of its own among words of all. Titles are two of its own."""
    generator = np.random.default_rng(0)
    common = [f"common{number}" for number in range(50)]
    documents, titles = [], []
    for row in range(60):
        own = [f"own{row}x{number}" for number in range(10)]
        words = generator.choice(
            [*common, *own],
            128,
            p=[0.016] * 50 + [0.02] * 10,
        )
        documents.append(" ".join(words))
        titles.append(" ".join(own[:2]))
    return documents, titles


def by_number(texts):
    """Vectors of an encoder that knows of which document a text is."""
    vectors = np.full((len(texts), 60), 1e-3)
    for row, text in enumerate(texts):
        for word in text.split():
            if word.startswith("own"):
                vectors[row, int(word[3:].split("x")[0])] += 1
    return vectors


def constant(texts):
    return np.ones((len(texts), 4)) + 1e-9 * np.random.default_rng(0).normal(size=(len(texts), 4))


def random(texts):
    return np.random.default_rng(0).normal(size=(len(texts), 60))


def score_of(found, task, metric, system):
    return next(s for s in found.scores if (s.task, s.metric, s.system) == (task, metric, system))


@pytest.fixture(scope="module")
def found(corpus):
    documents, titles = corpus
    labels = [["even", "odd"][row % 2] for row in range(60)]
    systems = {"this": by_number, "constant": constant, "random": random}
    return compare_on_documents(
        systems,
        documents,
        documents[:30],
        titles,
        labels,
        reference="random",
    )


def test_a_constant_encoder_finds_nothing(found):
    for task in (REST, TITLE):
        for metric in ("r@1", "r@10"):
            assert score_of(found, task, metric, "constant").score == 0
        assert score_of(found, task, "mrr", "constant").score == pytest.approx(100 / 60)


def test_an_encoder_that_knows_the_document_finds_it(found):
    assert score_of(found, REST, "r@10", "this").score > 95
    assert score_of(found, REST, "r@10", "random").score < 40


def test_words_that_the_fitted_texts_lack_are_not_counted(found):
    """Half of the documents have words that the training texts have not."""
    fitted_on_all, fitted_on_half = (
        score_of(found, TITLE, "r@1", f"TF-IDF ({source})").score for source in ("scored texts", "training texts")
    )
    assert fitted_on_all > 95
    assert fitted_on_half <= 50


def test_opponents_are_fitted_on_both_kinds_of_texts_or_on_the_scored_ones_alone(found, corpus):
    kinds = ("TF-IDF", "BM25")
    systems = {s.system for s in found.scores if s.task == REST}
    opponents = {f"{kind} ({source})" for kind in kinds for source in ("training texts", "scored texts")}
    assert systems == {"this", "constant", "random"} | opponents
    alone = compare_on_documents({"this": by_number}, corpus[0])
    assert {s.system for s in alone.scores} == {"this", "TF-IDF (scored texts)", "BM25 (scored texts)"}
    assert {s.task for s in alone.scores} == {REST}


def test_differences_have_the_interval_of_a_paired_bootstrap(found):
    ours = found.answers[REST, "cosine raw", "mrr", "this"][0]
    other = found.answers[REST, "cosine raw", "mrr", "TF-IDF (training texts)"][0]
    drawn = 100 * score_resamples(np.mean, np.stack([ours, other]))
    low, high = interval_of(drawn[:, 0] - drawn[:, 1])
    score = score_of(found, REST, "mrr", "TF-IDF (training texts)")
    assert score.ahead == pytest.approx(100 * (ours.mean() - other.mean()))
    assert (score.ahead_low, score.ahead_high) == pytest.approx((low, high))


def test_labels_are_told_by_documents_of_the_other_half(corpus):
    documents, _ = corpus
    labels = np.arange(60) % 3

    def labelled(texts):
        numbers = [documents.index(text) % 3 if text in documents else 0 for text in texts]
        return np.eye(3)[numbers]

    found = compare_on_documents(
        {"knows": labelled, "constant": constant},
        documents,
        None,
        labels=labels,
    )
    assert score_of(found, LABEL, "accuracy", "knows").score == 100
    assert score_of(found, LABEL, "accuracy", "constant").score < 60
    np.testing.assert_array_equal(found.gold[LABEL], labels)
    written = [str(label) if row % 2 else int(label) for row, label in enumerate(labels)]
    found = compare_on_documents({"knows": labelled}, corpus[0], labels=written)
    assert len(np.unique(found.gold[LABEL])) == 6  # a number and its digits are two classes
    assert found.answers[LABEL, "knn", "accuracy", "knows"].shape == (1, 60)


def by_itself(texts):
    """Vectors of an encoder that knows nothing but whether texts are equal."""
    return np.eye(len(texts))


def test_a_copy_of_a_document_does_not_tell_its_label():
    generator = np.random.default_rng(0)
    texts = [numbered(20, f"d{row}w") for row in range(100)]
    labels = [str(label) for label in generator.integers(0, 4, 100)]
    once = compare_on_documents({"this": by_itself}, texts, labels=labels)
    twice = compare_on_documents({"this": by_itself}, texts + [f"{text}\n" for text in texts], labels=labels * 2)
    for found in (once, twice):
        for system in ("this", "TF-IDF (scored texts)"):
            assert score_of(found, LABEL, "accuracy", system).score < 40
    assert twice.notes == [
        f"{LABEL}: 100 of 200 documents are copies of others, and no document is predicted by its copies"
    ]


def test_labels_that_no_other_text_has_are_named(corpus):
    documents, _ = corpus
    labels = ["even", "odd"] * 29 + ["alone", "apart"]
    found = compare_on_documents({"this": by_number}, documents, labels=labels)
    assert found.notes == [f"{LABEL}: 2 of 60 documents have a label that no other text has, and count as wrong"]
    for texts in (documents, documents[:30] * 2):
        labels = [texts.index(text) for text in texts]
        with pytest.raises(UsageError, match=r"no two different texts have the same label.*\(--label_column\)"):
            compare_on_documents({"this": by_number}, texts, labels=labels)


def test_what_is_no_text_is_named_with_its_place(corpus):
    documents, titles = corpus
    for name, arguments in (
        ("documents", ([*documents, None],)),
        ("training_texts", (documents, [*documents, None])),
        ("titles", (documents, None, [*titles, None])),
    ):
        with pytest.raises(TypeError, match=rf"{name}\[60\] is of type NoneType, not str; leave it out"):
            compare_on_documents({"this": by_number}, *arguments)


def test_each_system_is_asked_once_for_distinct_texts(corpus):
    calls = []

    def counting(texts):
        calls.append(texts)
        return by_number(texts)

    compare_on_documents(
        {"this": counting},
        corpus[0] * 2,
        None,
        corpus[1] * 2,
    )
    (texts,) = calls
    assert len(texts) == len(set(texts))


def test_copies_of_a_document_are_neither_right_nor_wrong(corpus):
    documents, titles = corpus
    once = compare_on_documents({"this": by_number}, documents, titles=titles)
    twice = compare_on_documents({"this": by_number}, documents * 2, titles=titles * 2)
    for task in (REST, TITLE):
        expected = score_of(once, task, "r@1", "this").score
        assert expected > 50
        assert score_of(twice, task, "r@1", "this").score == expected


def test_fewer_queries_can_be_asked_for(corpus):
    found = compare_on_documents(
        {"this": by_number},
        *corpus[:1],
        titles=corpus[1],
        max_queries=30,
    )
    assert {s.rows for s in found.scores} == {30}
    assert any("30 of 60 documents" in note for note in found.notes)


def test_vectors_that_are_not_finite_are_refused_by_name(corpus):
    with pytest.raises(UsageError, match="broken: its features are not finite"):
        compare_on_documents(
            {"broken": lambda texts: np.full((len(texts), 2), np.nan)},
            corpus[0],
        )


def test_labels_of_a_single_class_are_refused(corpus):
    with pytest.raises(UsageError, match='all "x"'):
        compare_on_documents(
            {"this": by_number},
            corpus[0],
            labels=["x"] * 60,
        )


# ---- sentence -------------------------------------------------------------------------------------------------------


def test_the_sentence_says_by_how_much_more_or_less_often(corpus):
    documents, _ = corpus
    better = summarize(
        compare_on_documents(
            {"this": by_number, "before": random},
            documents,
            documents[:5],
            reference="before",
        )
    )
    assert better.startswith("On 60 passages of 60 documents this encoder finds the rest of the document (R@10) ")
    assert " points more often than TF-IDF fitted on the training texts, and " in better
    assert better.endswith(" points more often than the encoder before.")
    worse = summarize(
        compare_on_documents({"this": constant, "random weights": by_number}, documents, reference="random weights")
    )
    assert " points less often than TF-IDF fitted on the scored texts, and " in worse
    assert worse.endswith(" points less often than random weights.")


def test_the_sentence_claims_nothing_where_the_interval_includes_0(corpus):
    same = summarize(
        compare_on_documents(
            {"this": by_number, "before": by_number},
            corpus[0],
            reference="before",
        )
    )
    assert same.endswith(
        "and not significantly more or less often than the encoder before (+0.0 [+0.0, +0.0] points)."
    )


def test_too_few_documents_are_not_compared(corpus):
    found = compare_on_documents({"this": by_number}, corpus[0][:19])
    assert found.scores == []
    assert "19 queries" in found.notes[0]
    assert summarize(found).startswith("The documents give fewer than 20 pairs of passages, or ")


@pytest.mark.parametrize(("others", "enough"), [(0, False), (18, False), (19, True)])
def test_passages_of_one_document_need_others_to_be_told_from(corpus, others, enough):
    documents = [" ".join(corpus[0]), *corpus[0][:others]]
    found = compare_on_documents({"this": by_number}, documents)
    assert bool(found.scores) == enough
    if not enough:
        needed = f"a query has only {others} candidates from other documents (19 are needed)"
        assert found.notes == [f"{REST}: left out, because {needed}"]
        assert "nearly all pairs come from one document, which is too few for a comparison" in summarize(found)
        with pytest.raises(UsageError, match=f"only {others} passages of other documents to be ranked against"):
            score_on_documents(None, documents)


# ---- files ----------------------------------------------------------------------------------------------------------


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(path)]


def test_rows_without_a_text_title_or_label_are_left_out(tmp_path):
    rows = [
        {
            "text": f"text {i}",
            "title": f"title {i}",
            "kind": i,
        }
        for i in range(5)
    ]
    rows[1]["text"], rows[2]["title"], rows[3]["kind"] = " ", None, None
    files = jsonl(tmp_path / "own.jsonl", rows)
    found = load_documents(files, "text", "title", "kind", str(tmp_path / "cache"))
    assert found.texts == ["text 0", "text 4"]
    assert found.titles == ["title 0", "title 4"]
    assert found.labels == [0, 4]


@pytest.mark.parametrize(("content", "texts"), [("one\ntwo\n", ["one", "two"]), ("one\n\ntwo\n", ["one\n\ntwo"])])
def test_text_files_are_read_as_in_training(tmp_path, content, texts):
    (tmp_path / "own.txt").write_text(content)
    found = load_documents([str(tmp_path)], cache_dir=str(tmp_path / "cache"))
    assert (found.texts, found.titles, found.labels) == (texts, None, None)


def test_na_is_a_word_of_a_csv_file(tmp_path):
    (tmp_path / "own.csv").write_text("text,kind\nNA,null\n")
    found = load_documents(
        [str(tmp_path / "own.csv")],
        label_column="kind",
        cache_dir=str(tmp_path / "cache"),
    )
    assert (found.texts, found.labels) == (["NA"], ["null"])


def test_a_blank_beside_a_label_makes_no_other_class(tmp_path):
    jsonl(tmp_path / "own.jsonl", [{"text": "one", "kind": "a"}, {"text": "two", "kind": " a "}])
    columns = ("text", None, "kind", str(tmp_path / "cache"))
    assert load_documents([str(tmp_path / "own.jsonl")], *columns).labels == ["a", "a"]


def test_documents_are_read_as_a_corpus_is(tmp_path):
    rows = [{"title": "A", "body": {"text": ["one", "two"]}, "kind": 1}]
    rows.append({"title": None, "body": {"text": ["three"]}, "kind": "1", "other": 2})
    (tmp_path / "set").mkdir()
    jsonl(tmp_path / "set" / "a.JSONL", rows[:1])
    jsonl(tmp_path / "set" / "b.jsonl", rows[1:])
    (tmp_path / "set" / "README.md").write_text("About.")
    (tmp_path / "set" / "._a.jsonl").write_text("nothing")
    columns = (["title", "body.text"], None, "kind", str(tmp_path / "cache"))
    found = load_documents([str(tmp_path / "set")], *columns)
    assert found.texts == ["A\n\none\n\ntwo", "three"]
    assert found.labels == [1, "1"]
    (tmp_path / "own.tsv").write_text('kind\ttext\na\t"one\nb\ttwo"\n')
    columns = ("text", None, "kind", str(tmp_path / "cache"))
    with pytest.raises(UsageError, match=r"^--texts .*own\.tsv, line 2: a quote that spans several lines"):
        load_documents([str(tmp_path / "own.tsv")], *columns)
    assert load_documents([str(tmp_path / "own.tsv")], *columns, quoting="none").texts == ['"one', 'two"']


@pytest.mark.parametrize(
    ("columns", "fragments"),
    [
        (("txet", None, None), ["no column 'txet'", "did you mean 'text'", "--text_column"]),
        (("text", "titel", None), ["no column 'titel'", "did you mean 'title'", "--title_column"]),
        (("text", "share", None), ["'share' holds float64", "not text", "--title_column"]),
        (("text", None, "share"), ["'share' holds float64", "not classes", "--label_column"]),
        (("none", None, None), ["no document with none"]),
    ],
)
def test_a_wrong_column_is_named_with_its_flag(tmp_path, columns, fragments):
    files = jsonl(
        tmp_path / "own.jsonl",
        [
            {
                "text": "a",
                "title": "b",
                "share": 0.5,
                "none": "",
            }
        ],
    )
    with pytest.raises(UsageError) as refusal:
        load_documents(files, *columns, str(tmp_path / "cache"))
    message = str(refusal.value)
    assert message.startswith("--texts ")
    assert [fragment for fragment in fragments if fragment not in message] == [], message
