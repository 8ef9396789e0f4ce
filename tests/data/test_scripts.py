"""Tests texts in all scripts: tokenizers, words without spaces, ends of sentences, and the messages of a run.

Run: python -m pytest -q tests/data/test_scripts.py
"""

import random
from functools import partial

import numpy as np
import pytest
import torch
from conftest import MODERNBERT
from datasets import IterableDataset
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from configuration_text_jepa import OBJECTIVES
from run_pretraining import main
from text_jepa.cli import UsageError
from text_jepa.data import tokenization
from text_jepa.data.added_words import add_rows, add_words, read_words
from text_jepa.data.collator import DataCollatorForTextJepa
from text_jepa.data.coverage import drops_characters, measure_coverage
from text_jepa.data.reading import Source
from text_jepa.data.scripts import first_character, is_unspaced, last_character
from text_jepa.data.tokenization import (
    _alphabet_of,
    _WholeTokens,
    find_sentence_ends,
    special_tokens_around,
    token_bytes,
    train_tokenizer,
)
from text_jepa.train import build


# Words, and the separator between them.
WORDS = {
    "chinese": ("我们 学习 河流 学校 今天 天气 城市 漂亮", ""),
    "japanese": ("私は 学校 に ガラス の データ を 読んで カタカナ", ""),
    "thai": ("ว่าย นักเรียน แม่ เด็ก ขึ้น หนังสือ สถานี", ""),
    "hindi": ("हिन्दी में किताब पढ़ना नदी क्षेत्र", " "),
    "korean": ("나는 학교에 갑니다 오늘 날씨가 좋다", " "),
    "emoji": ("great 😀 👍🏽 love ❤️ 👨‍👩‍👧 trip", " "),
    "dna": ("A C G T AC GT GATTACA", ""),
}


def texts_of(script, count=60, most_words=40):
    words, blank = WORDS[script]
    draw = random.Random(0)
    return [blank.join(draw.choices(words.split(), k=draw.randint(3, most_words))) for _ in range(count)]


def unigrams(texts):
    """Makes a vocabulary like SentencePiece."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<s>", "</s>", "<pad>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")


TOKENIZERS = {
    "wordpiece": lambda texts: train_tokenizer(texts, 300),
    "bpe": lambda texts: train_tokenizer(texts, 350, kind="bpe"),
    "bytes": lambda texts: train_tokenizer(["abc"], 270, kind="bpe"),  # has no character as one token
    "unigrams": unigrams,
}


def coverage_of(tokenizer, texts):
    ids = tokenizer(texts, truncation=True, max_length=64)["input_ids"]
    return measure_coverage([{"input_ids": row} for row in ids], tokenizer, DataCollatorForTextJepa(tokenizer))


# ---- tokenizers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigrams"])
@pytest.mark.parametrize("script", WORDS)
def test_of_every_script_no_token_is_unknown_spans_are_short_and_masks_have_targets(script, kind):
    texts = texts_of(script)
    coverage = coverage_of(TOKENIZERS[kind](texts), texts)
    assert coverage.unknown == 0
    assert coverage.without_target <= 1  # a short text may be a single token
    has_blanks = WORDS[script][1] == " "
    assert coverage.mean_span_length < (7 if has_blanks else 4)


@pytest.mark.parametrize("script", ["chinese", "japanese", "thai"])
def test_a_character_of_several_tokens_is_hidden_as_a_whole_and_a_clause_is_not(script):
    texts = texts_of(script)
    tokenizer = TOKENIZERS["bytes"](texts)
    collator = DataCollatorForTextJepa(tokenizer)
    ids = np.array(tokenizer(texts[:1], add_special_tokens=False)["input_ids"])
    _, starts = collator.find_words(ids, np.ones_like(ids, bool))
    characters = [word for word in np.split(ids[0], np.flatnonzero(starts[0])) if len(word)]
    decoded = "".join(tokenizer.decode(word) for word in characters)
    assert "\ufffd" not in decoded
    assert len(characters) > 0.4 * len(texts[0])


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("ガラス が ﾊﾟ", "ガラス が ﾊﾟ"),
        ("เชื่อมต่อ", "เชื่อมต่อ"),
        ("क्षेत्र हिन्दी", "क्षेत्र हिन्दी"),
        ("مُحَمَّد", "مُحَمَّد"),
        ("Мой а́нна Ёж", "мой анна еж"),
        ("ΕΛΛΆΔΑ ἄνθρωπος", "ελλαδα ανθρωπος"),
        ("CAFÉ naïve İstanbul", "cafe naive istanbul"),
        ("a\u00adb\u200bc\x00", "abc"),
        ("می\u200cروم", "می\u200cروم"),
    ],
)
def test_accents_are_folded_where_they_are_accents(text, kept):
    normalizer = train_tokenizer([text], 300).backend_tokenizer.normalizer
    assert normalizer.normalize_str(text) == kept


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("one\x0btwo\fthree\x85four\x1cfive\x1fsix", "one two three four five six"),
        ("ว่าย\u200bแม่ ភាសា\u200bខ្មែរ", "ว่าย แม่ ភាសា ខ្មែរ"),
    ],
)
def test_characters_without_width_that_separate_words_become_blanks(text, kept):
    normalizer = train_tokenizer([text], 300).backend_tokenizer.normalizer
    assert normalizer.normalize_str(text) == kept


def test_tones_stay_in_texts_that_have_them():
    words = "mả má mà mạ tôi đọc sách ở trường học"
    assert train_tokenizer([words], 300).backend_tokenizer.normalizer.normalize_str("mả Mạ") == "mả mạ"


@pytest.mark.parametrize("word", ["ACGT" * 200, "นักเรียน" * 40, "かな" * 200, "x" * 1_000])
def test_a_word_of_more_than_a_hundred_characters_is_split_and_not_lost(word, tmp_path):
    train_tokenizer([word, "and some other words"], 300).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids).replace(" ", "") == word.lower()


@pytest.mark.parametrize("word", ["ACGT" * 200, "นักเรียน" * 40, "1" * 1_000, "=" * 1_000, "q\u0301" * 300])
def test_a_run_of_more_than_a_hundred_characters_is_divided_before_bpe_and_not_lost(word):
    tokenizer = train_tokenizer([word, "and some other words", f"two{' ' * 1_000}words"], 300, kind="bpe")
    for text in (word, f"two{' ' * 1_000}words"):
        parts = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
        assert max(end - start for _, (start, end) in parts) <= 121
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids).strip() == text.lower()


def test_a_rare_emoji_does_not_take_a_word_with_it():
    tokenizer = train_tokenizer(["a great day"] * 3, 100)
    assert tokenizer.tokenize("great🫠") == ["great", "[UNK]"]


def test_the_alphabet_is_cut_only_where_characters_are_rare():
    many = [chr(0x4E00 + number) for number in range(4_000)]
    assert len(train_tokenizer(["".join(many)], 100)) > 4_000
    english = "the river carried the boat " * 300_000
    letters = [chr(0x0400 + number) for number in range(1_100)]
    alphabet = _alphabet_of([english, "".join(letters) * 50, "".join(many[:3_000])])
    assert set(letters) | set("theriv") <= set(alphabet)
    assert not set(many) & set(alphabet)


# ---- characters -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("character", "日かカไລမកཀ𠀀")
def test_scripts_without_blanks(character):
    assert is_unspaced(character)


@pytest.mark.parametrize("character", "aя한हعα9.😀 ")
def test_scripts_with_blanks(character):
    assert not is_unspaced(character)


def test_bytes_of_a_token_begin_and_end_with_characters_or_parts_of_them():
    word = "日é".encode()
    assert (first_character(word), last_character(word)) == ("日", "é")
    assert first_character(word[1:]) is None
    assert last_character(word[:-1]) is None
    assert is_unspaced(first_character(word[:1]))
    assert first_character("สวัส".encode()[:2]) in map(chr, range(0x0E00, 0x0E80))
    assert first_character(b"") is last_character(b"") is None


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "bytes"])
@pytest.mark.parametrize("mark", "。！？।؟۔.…።។")
def test_sentences_end_at_the_marks_of_all_scripts(kind, mark):
    text = f"ab {mark} cd {mark}"
    tokenizer = TOKENIZERS[kind]([text] * 3)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    ends = find_sentence_ends(ids, token_bytes(tokenizer))
    assert len(ends) == 2
    assert tokenizer.decode(ids[: ends[0]]).strip().endswith(mark)
    assert ends[1] == len(ids)


# ---- what a run says ------------------------------------------------------------------------------------------------


def run(tmp_path, texts, *flags):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return run_on(path, tmp_path, *flags)


def run_on(path, tmp_path, *flags):
    fixed = "--preset tiny --max_length 32 --max_steps 1 --per_device_train_batch_size 4 --use_cpu --prepare_only"
    argv = ["--train_file", str(path), "--output_dir", str(tmp_path / "out"), *fixed.split(), *flags]
    return main(argv)


def test_a_run_says_in_one_line_how_well_the_tokenizer_knows_the_texts(tmp_path, capsys):
    run(tmp_path, texts_of("thai"), "--objective", "jepa")
    lines = [line for line in capsys.readouterr().out.splitlines() if "tokens per word" in line]
    assert len(lines) == 1
    assert lines[0].startswith("0.00% unknown tokens")
    assert lines[0].endswith("0.0% of the masks without a target")


@pytest.mark.parametrize("script", ["thai", "korean", "dna"])
def test_a_tokenizer_that_does_not_know_the_texts_is_refused(tmp_path, script):
    train_tokenizer(["a river of words"] * 3, 100).save_pretrained(tmp_path / "tokenizer")
    texts = [" ".join(texts_of(script))] * 5
    with pytest.raises(UsageError, match="the tokenizer does not know 100% of the tokens of the texts"):
        run(tmp_path, texts, "--tokenizer_name", str(tmp_path / "tokenizer"))
    assert not (tmp_path / "out").exists()


def test_a_run_is_warned_of_unknown_tokens_with_the_remedy(tmp_path, caplog):
    texts = ["the river came to the mill 😀"] * 40
    train_tokenizer(["the river came to the mill"] * 3, 100).save_pretrained(tmp_path / "tokenizer")
    run(tmp_path, texts, "--tokenizer_name", str(tmp_path / "tokenizer"))
    assert "% of the tokens are unknown to the tokenizer" in caplog.text
    assert "use --tokenizer_type bpe" in caplog.text


def dropping():
    """Makes a BPE of the letters of English that deletes other characters."""
    tokens = ["[PAD]", *"abcdefghijklmnopqrstuvwxyz"]
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, []))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]")


def test_characters_that_a_tokenizer_deletes_are_unknown():
    tokenizer = dropping()
    assert drops_characters(tokenizer)
    collator = DataCollatorForTextJepa(tokenizer)
    examples = [{"input_ids": tokenizer("the river")["input_ids"]}]
    coverage = measure_coverage(examples, tokenizer, collator, ["ab река", "ab e\u0301 b 😀", ""])
    assert (coverage.dropped, coverage.characters, coverage.unknown) == (6, 11, 0)
    assert coverage.unknown_share == 6 / 11
    assert measure_coverage(examples, tokenizer, collator, ["the river"]).unknown_share == 0


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_tokenizer_with_an_unknown_token_or_bytes_deletes_nothing(kind):
    assert not drops_characters(TOKENIZERS[kind](texts_of("thai")))


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
def test_a_tokenizer_that_deletes_most_of_the_texts_is_refused(tmp_path, streaming):
    dropping().save_pretrained(tmp_path / "tokenizer")
    flags = ["--tokenizer_name", str(tmp_path / "tokenizer")]
    if streaming:
        flags += ["--streaming", "--validation_file", str(tmp_path / "texts.txt")]
    with pytest.raises(UsageError, match=r"the tokenizer does not know \d\d% of the tokens of the texts"):
        run(tmp_path, ["the river река берег мост"] * 40, *flags)


# ---- sorted streams -------------------------------------------------------------------------------------------------


@pytest.fixture
def run_on_stream(tmp_path):
    """Prepares a run on a folder with two files of English and, between them, one of Russian."""
    folder = tmp_path / "set"
    folder.mkdir()
    for name, line in (("a", "the river came to the mill"), ("b", "река пришла на мельницу"), ("c", "the river")):
        (folder / f"{name}.txt").write_text(f"{line}\n" * 1_500)
    (tmp_path / "held_out.txt").write_text("the mill and the river\n")
    held_out = ["--validation_file", str(tmp_path / "held_out.txt")]
    return partial(run_on, folder, tmp_path, "--streaming", "--objective", "jepa", *held_out)


def test_a_new_tokenizer_knows_all_files_of_a_sorted_stream(tmp_path, run_on_stream, monkeypatch):
    monkeypatch.setattr(tokenization, "_TOKENIZER_TRAINING_CHARACTERS", 10_000)
    run_on_stream()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "tokenizer")
    assert tokenizer.tokenize("river река") == ["river", "река"]


def test_a_run_is_warned_of_a_later_file_of_a_sorted_stream(tmp_path, run_on_stream, caplog):
    train_tokenizer(["the river came to the mill and"] * 3, 100).save_pretrained(tmp_path / "tokenizer")
    run_on_stream("--tokenizer_name", str(tmp_path / "tokenizer"))
    assert "% of the tokens are unknown to the tokenizer" in caplog.text


def test_words_of_all_files_of_a_sorted_stream_are_weighed(tokenizer, make_model, monkeypatch):
    def read(words):
        for word in words:
            yield from [{"input_ids": [2, word, 3]}] * 30

    monkeypatch.setattr(build, "STREAM_TEXTS_TO_WEIGH", 20)
    first, second, other = tokenizer.convert_tokens_to_ids(["a", "b", "w"])
    stream = IterableDataset.from_generator(read, gen_kwargs={"words": [first, second]})
    model = make_model(MODERNBERT | {"vocab_size": len(tokenizer)}, **OBJECTIVES["documents"])
    build.weigh_words(model, stream, tokenizer, Source("--train_file a.txt"))
    weights = model.word_weights
    assert weights[first] == weights[second] < weights[other]


@pytest.mark.parametrize("flags", [["--mask_ratio", "0.000001"], ["--mask_ratio", "0.0", "0.000001"]])
def test_a_run_in_which_nothing_is_hidden_is_refused(tmp_path, flags):
    with pytest.raises(UsageError, match=r"none of the [0-9]+ masks hides anything; raise --mask_ratio"):
        run(tmp_path, texts_of("hindi"), "--objective", "jepa", *flags)
    assert not (tmp_path / "out").exists()


# ---- the user's tokenizer -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigrams"])
@pytest.mark.parametrize("token", ["<user>", "<|turn|>", "[URL]"])
def test_added_special_tokens_are_one_token_in_training_as_in_use(kind, token):
    tokenizer = TOKENIZERS[kind](["hello user of a turn"] * 3)
    tokenizer.add_special_tokens({"additional_special_tokens": [token]})
    text = f"hello {token} hello {token}"
    assert _WholeTokens(tokenizer).tokenize([text])[0] == tokenizer(text, add_special_tokens=False)["input_ids"]
    if kind != "unigrams":  # where it is an ordinary token
        assert tokenizer.pad_token_id not in _WholeTokens(tokenizer).tokenize([f"hello {tokenizer.pad_token}"])[0]


@pytest.mark.parametrize("letters", ["ACGT", "日本語", "αβγ"])
def test_special_tokens_are_found_without_the_letter_a(letters):
    tokens = {token: index for index, token in enumerate(["<s>", "</s>", "<pad>", *letters])}
    backend = Tokenizer(models.BPE(tokens, []))
    backend.normalizer = normalizers.NFC()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    assert special_tokens_around(tokenizer) == ([0], [1])


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigrams"])
def test_added_words_are_one_token_and_begin_as_the_mean_of_their_pieces(kind, tmp_path, make_model):
    texts = ["the patient took glucose with water and hba of one see"] * 3
    tokenizer = TOKENIZERS[kind](texts)
    rows = len(tokenizer)
    shape = {"vocab_size": rows, "model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1}
    model = make_model(shape | {"num_attention_heads": 2, "intermediate_size": 32})
    before = model.get_input_embeddings().weight.detach().clone()
    added = add_words(tokenizer, ["waterglucose", "onesee", tokenizer.convert_ids_to_tokens(6)])
    assert set(added) == {rows, rows + 1}
    add_rows(model, [model.model.encoder, model.target_encoder], added)
    for encoder in (model.model.encoder, model.target_encoder):
        weight = encoder.get_input_embeddings().weight
        assert torch.equal(weight[:rows], before)
        for index, pieces in added.items():
            assert len(pieces) > 1
            torch.testing.assert_close(weight[index], before[pieces].mean(dim=0))
    assert model.config.text_config.vocab_size == rows + 2
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert rows in again("take waterglucose daily")["input_ids"]
    assert add_words(again, ["waterglucose"]) == {}


def test_added_words_of_a_script_without_blanks_are_found_within_a_clause():
    tokenizer = train_tokenizer(texts_of("chinese"), 300)
    added = add_words(tokenizer, ["图书馆"])
    assert set(added) & set(tokenizer("我们学校图书馆漂亮")["input_ids"])


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), ("\n \n", "no word there"), (b"\xff\xfe\xfa", "not text in UTF-8")],
)
def test_a_list_of_words_that_is_none_is_named(tmp_path, content, message):
    path = tmp_path / "words.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=rf"--add_words .*words\.txt: .*{message}"):
        read_words([str(path)])
    assert read_words(["one", "two", "one"]) == ["one", "two"]


def test_each_value_is_a_file_of_words_or_a_word(tmp_path):
    for name, content in (("a.txt", "one\ntwo\n"), ("b.txt", "two\nthree\n"), ("c.csv", "word,n\nfour,1\n")):
        (tmp_path / name).write_text(content)
    values = [str(tmp_path / name) for name in ("a.txt", "b.txt")]
    assert read_words([*values, "Node.js"]) == ["one", "two", "three", "Node.js"]
    with pytest.raises(UsageError, match=r"--add_words .*d\.txt: no such file"):
        read_words([*values, str(tmp_path / "d.txt")])
    with pytest.raises(UsageError, match=r"--add_words .*c\.csv: a \.csv file; name a \.txt file with one word on"):
        read_words([str(tmp_path / "c.csv")])


@pytest.mark.parametrize("word", ["Node.js", "ASP.NET", "and/or", "U.S."])
def test_a_word_with_a_dot_or_a_stroke_is_no_file(word):
    assert read_words([word]) == [word]
