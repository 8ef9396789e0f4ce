"""Adds words to a tokenizer as single tokens, and initializes their embeddings."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

from text_jepa.cli import UsageError
from text_jepa.data.scripts import is_unspaced
from text_jepa.names import local_path


# Suffixes of files whose lines are not words.
_WITH_COLUMNS = (".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml")
# Suffixes of files, as opposed to words with a dot, such as Node.js.
_SUFFIXES = (".txt", ".md", ".lst", ".list", ".dic", ".words", *_WITH_COLUMNS)


def read_words(values: Sequence[str]) -> list[str]:
    """Reads the words of `--add_words` without duplicates. A value is a word, or a file with one word on each line.

    Raises:
        UsageError: A file is missing, has columns or is not UTF-8, or there is no word.
    """
    words = []
    for value in values:
        path = Path(value)
        if path.is_file():
            words += _read_file(path)
        elif _is_like_a_path(path):
            raise UsageError(f"--add_words {path}: no such file; name a file with one word on each line, or the words")
        else:
            words.append(value)
    words = list(dict.fromkeys(word.strip() for word in words if word.strip()))
    if not words:
        raise UsageError(f"--add_words {' '.join(values)}: no word there; name a file with one on each line")
    return words


def _is_like_a_path(path: Path) -> bool:
    """Whether a value names a missing file, as opposed to a word such as `Node.js` or `and/or`."""
    is_in_a_folder = len(path.parts) > 1 and local_path(str(path.parent)).is_dir()
    return path.is_absolute() or path.is_dir() or is_in_a_folder or path.suffix.lower() in _SUFFIXES


def _read_file(path: Path) -> list[str]:
    if path.suffix.lower() in _WITH_COLUMNS:
        raise UsageError(f"--add_words {path}: a {path.suffix} file; name a .txt file with one word on each line")
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--add_words {path}: is not text in UTF-8 ({error}); convert it") from error


def add_words(
    tokenizer: PreTrainedTokenizerBase,
    words: Sequence[str],
) -> dict[int, list[int]]:
    """Adds words to a tokenizer in place, except words that are a single token already.

    Args:
        tokenizer: Any tokenizer.
        words: The words.

    Returns:
        Id of each new token -> ids of the tokens that the word consisted of before.
    """
    known = tokenizer.get_vocab()
    added = {}
    for word in words:
        pieces = _pieces_of(tokenizer, word)
        is_one_token = len(pieces) == 1 and pieces[0] != tokenizer.unk_token_id
        if word not in known and not is_one_token:
            added[word] = [piece for piece in pieces if piece != tokenizer.unk_token_id]
    tokenizer.add_tokens([_added_token(tokenizer, word) for word in added])
    return {tokenizer.convert_tokens_to_ids(word): pieces for word, pieces in added.items()}


def _pieces_of(
    tokenizer: PreTrainedTokenizerBase,
    word: str,
) -> list[int]:
    return tokenizer(word, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]


def _added_token(
    tokenizer: PreTrainedTokenizerBase,
    word: str,
) -> AddedToken:
    # The word is not found inside of other words, except in scripts without spaces, and if the tokenizer puts a space
    # before each text: that space then belongs to the word and marks its beginning.
    begins_with_blank = False
    if tokenizer.is_fast and tokenizer.backend_tokenizer.normalizer is not None:
        normalized = tokenizer.backend_tokenizer.normalizer.normalize_str(word)
        begins_with_blank = normalized[:1] in (" ", "▁")
    is_apart = not begins_with_blank and not any(map(is_unspaced, word))
    return AddedToken(word, single_word=is_apart, normalized=True)


def add_rows(
    model: PreTrainedModel,
    encoders: Sequence[PreTrainedModel],
    added: dict[int, list[int]],
) -> None:
    """Adds rows for added words to the embeddings, initialized with the mean embedding of their pieces.

    Args:
        model: The model, which resizes the embeddings of all its encoders.
        encoders: The encoders.
        added: Result of `add_words`.
    """
    if not added:
        return
    rows = max(added) + 1
    if rows > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(rows, mean_resizing=False)
    first = min(added)
    with torch.no_grad():
        for encoder in encoders:
            weight = encoder.get_input_embeddings().weight
            for index, pieces in added.items():
                # A word without known pieces is initialized with the mean of all words.
                known = weight[pieces] if pieces else weight[:first]
                weight[index] = known.mean(dim=0)
