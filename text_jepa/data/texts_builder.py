"""Passes the documents of files to the datasets library, which caches or streams them.

This is a separate module because the library replaces `open` and other functions in the module of a streamed builder.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import datasets
import pyarrow
from datasets import Dataset, IterableDataset
from datasets.builder import Key

from text_jepa.data.compressed import FileError
from text_jepa.data.files import Form, read_tables


def read_texts(
    paths: Sequence[str],
    form: Form,
    streaming: bool,
    cache_dir: str | None = None,
) -> Dataset | IterableDataset:
    """Reads the documents of files, one per row.

    Args:
        paths: Files of any known kind.
        form: The columns to read, and how files are read.
        streaming: Whether to read files lazily; each file is a shard.
        cache_dir: Cache of the datasets library. Files whose size or modification time changes are read again.

    Raises:
        DatasetGenerationError: `read_tables` raised an error, which is its cause. A stream raises the error itself.
        FileError: There is no row.
    """
    stamps = [_stamp(path) for path in paths]
    builder = Texts(cache_dir=cache_dir, stamps=stamps, form=form)
    if streaming:
        return builder.as_streaming_dataset("train")
    builder.download_and_prepare()
    if not builder.info.splits["train"].num_examples:
        raise FileError(f"{paths[0]}: holds no document")
    return builder.as_dataset("train")


def _stamp(path: str) -> tuple[str, int, int]:
    status = os.stat(path)
    return path, status.st_size, status.st_mtime_ns


@dataclass
class TextsConfig(datasets.BuilderConfig):
    """The identity of the files, which the cache depends on, and how they are read."""

    stamps: Sequence[tuple[str, int, int]] = ()
    form: Form | None = None


class Texts(datasets.ArrowBasedBuilder):
    """Documents of files; see `read_texts`."""

    BUILDER_CONFIG_CLASS = TextsConfig
    VERSION = datasets.Version("3.2.0")  # change it whenever the readers give other texts

    def _info(self) -> datasets.DatasetInfo:
        names = list(self.config.form.sources)
        if self.config.form.with_file:
            names.append("file")
        features = datasets.Features({name: datasets.Value("string") for name in names})
        return datasets.DatasetInfo(features=features)

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        paths = [path for path, _, _ in self.config.stamps]
        return [datasets.SplitGenerator(name="train", gen_kwargs={"paths": paths})]

    def _generate_tables(self, paths: list[str]) -> Iterator[tuple[Key, pyarrow.Table]]:
        shard = 0
        for path in paths:
            has_texts = False
            for number, table in enumerate(read_tables(path, self.config.form)):
                yield Key(shard, number), table
                has_texts = True
            # A file without texts gets no number, because older versions of the library allow no gaps.
            if has_texts:
                shard += 1
