"""Measures how tokenizers and masks handle the scripts of the world.

    python benchmarks/scripts.py

There are twelve kinds of text, all made of randomly drawn words, and four kinds of tokenizers that are trained on
them: our WordPiece and byte-level BPE, unigrams as in SentencePiece, and a BPE that marks the last token of a word
(that of PhoBERT marks the others). For each pair the table shows the share of unknown tokens, the mean length of
hidden spans (3 tokens are asked for) as drawn and after words are kept whole, the share of masks without a target, and
the share of texts that are restored from their tokens, except for case, spaces and the accents of Latin, Greek and
Cyrillic.
"""

import argparse
import random
import unicodedata

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from text_jepa.data.collator import DataCollatorForTextJepa
from text_jepa.data.coverage import measure_coverage
from text_jepa.data.strategies import MaskStrategy
from text_jepa.data.tokenization import train_tokenizer


# Words of each script, the separator between them, and the end of a sentence.
SCRIPTS = {
    "Chinese": (
        "我们 学习 河流 学校 今天 天气 城市 漂亮 图书馆 老师 喜欢 读书 火车 晚上 回家 苹果 朋友 电影 音乐 工作",
        "",
        "。",
    ),
    "Japanese": (
        "私は 学校 に 行き ます ガラス の データ を 読んで カタカナ と ひらがな 東京 で 電車 が 来た 本 です",
        "",
        "。",
    ),
    "Korean": (
        "나는 학교에 갑니다 오늘 날씨가 좋다 친구와 영화를 보고 음악을 듣는다 도시의 강은 길다 책을 읽고",
        " ",
        ".",
    ),
    "Thai": ("ว่าย นักเรียน แม่ เด็ก ขึ้น ปลา เย็น ฉัน ก่อน หนังสือ กลับ ใหญ่ สถานี รถไฟ ผลไม้ ตลาด อากาศ ที่ เมื่อวานนี้", "", " "),
    "Hindi": ("हिन्दी में किताब पढ़ना नदी के किनारे लड़का और लड़की विद्यालय जाते हैं मौसम अच्छा है क्षेत्र ज्ञान", " ", "।"),
    "Arabic": (
        "الكتاب على الطاولة ذهب الولد إلى المدرسة النهر طويل والمدينة جميلة قرأت القصة اليوم مع صديقي",
        " ",
        "؟",
    ),
    "Vietnamese": (
        "tôi đọc sách ở trường học hôm nay trời đẹp con sông dài thành phố lớn và những người bạn tốt mả má mà",
        " ",
        ".",
    ),
    "Greek": (
        "το βιβλίο είναι πάνω στο τραπέζι η πόλη έχει ένα ποτάμι και ο δάσκαλος διαβάζει στους μαθητές",
        " ",
        ".",
    ),
    "Russian": (
        "мой ёжик читает книгу у реки в большом городе где живёт старый учитель и его маленькая сестра",
        " ",
        ".",
    ),
    "emoji": ("great 😀 👍🏽 love ❤️ 👨‍👩‍👧 trip ✈️ food 🍕 party 🎉 sun ☀️ 🇫🇷 wow 🫠 cat 🐈‍⬛ run 🏃 done ✅", " ", "!"),
    "code": (
        "def return self.value == 0x1F if x_max[i] != None: import numpy as np print(f'{a}') for in range(10) # TODO",
        " ",
        "\n",
    ),
    "DNA": ("A C G T AC GT TTA CAG GATTACA CCG TATA AAC", "", ""),
}
TEXTS = 400
WORDS = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    print("| script | tokenizer | unknown | span asked | span made | no target | round trip |")
    print("|---|---|---|---|---|---|---|")
    for script in SCRIPTS:
        texts = make_texts(script)
        for name, train in TOKENIZERS.items():
            print(f"| {script} | {name} | {' | '.join(measure(texts, train(texts)))} |", flush=True)


def make_texts(script: str) -> list[str]:
    """Texts of randomly drawn words."""
    words, blank, end = SCRIPTS[script]
    draw = random.Random(script)
    words = words.split()
    texts = []
    for _ in range(TEXTS):
        sentences = [blank.join(draw.choices(words, k=draw.randint(3, WORDS))) + end for _ in range(2)]
        texts.append(blank.join(sentences))
    return texts


def measure(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The cells of a row of the table."""
    encoded = tokenizer(texts, truncation=True, max_length=128, verbose=False)["input_ids"]
    examples = [{"input_ids": ids} for ids in encoded]
    asked = DataCollatorForTextJepa(tokenizer, MaskStrategy(whole_words=False))
    made = DataCollatorForTextJepa(tokenizer)
    tokens = measure_coverage(examples, tokenizer, asked)
    words = measure_coverage(examples, tokenizer, made)
    whole = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    same = [bare(tokenizer.decode(ids)) == bare(text) for ids, text in zip(whole, texts, strict=True)]
    return [
        f"{words.unknown_share:.2%}",
        f"{tokens.mean_span_length:.1f}",
        f"{words.mean_span_length:.1f}",
        f"{words.share_without_target:.1%}",
        f"{sum(same) / len(same):.0%}",
    ]


def bare(text: str) -> str:
    """A text without case, spaces and the accents of Latin, Greek and Cyrillic."""
    letters = []
    for character in unicodedata.normalize("NFC", text.lower()):
        name = unicodedata.name(character, "")
        if name.startswith(("LATIN", "GREEK", "CYRILLIC")):
            character = unicodedata.normalize("NFD", character)[0]
        if not character.isspace():
            letters.append(character)
    return "".join(letters)


def wordpiece(texts: list[str]) -> PreTrainedTokenizerBase:
    return train_tokenizer(texts, 2_000)


def byte_level(texts: list[str]) -> PreTrainedTokenizerBase:
    return train_tokenizer(texts, 1_000, kind="bpe")


def unigrams(texts: list[str]) -> PreTrainedTokenizerBase:
    """A tokenizer like those of SentencePiece for T5 and XLM-R."""
    special = ["<s>", "</s>", "<pad>", "<unk>"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=1_000, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")


def continued(texts: list[str]) -> PreTrainedTokenizerBase:
    """A tokenizer like those of subword-nmt, which mark the last token of a word; that of PhoBERT marks the others."""
    end = "</w>"
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix=end, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder(end)
    trainer = trainers.BpeTrainer(
        vocab_size=1_000, special_tokens=["<pad>", "<unk>"], end_of_word_suffix=end, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")


TOKENIZERS = {"WordPiece": wordpiece, "byte-level BPE": byte_level, "unigrams": unigrams, "BPE, `</w>`": continued}


if __name__ == "__main__":
    main()
