"""The order in which texts, windows of documents and streams reach the collator."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from datasets import Dataset, IterableDataset

from text_jepa.data.corpus import legible
from text_jepa.data.masking import count_windows


class EndlessStream(torch.utils.data.IterableDataset):
    """A stream that begins again when it ends, in batches of texts of similar length that come at random.

    Texts are drawn into pools of `pool_batches` batches, sorted by length within each pool, cut into batches, and the
    batches shuffled. What is left of a pass, less than a batch, waits for the first pool of the next one, so that all
    batches stay whole. The order is a pure function of seed, pass, worker and what the stream gives.

    The Trainer does not know where a pass over a stream ends: here each example carries the number of its pass, its
    `epoch`, so that masks change from pass to pass, and a resumed run that skips what it has seen arrives at the same
    place. It carries its `step` too, which is exact with workers, whose batches take turns, as long as all of them
    have a share of the files.

    Args:
        stream: Examples; its `set_epoch` chooses the order of a pass.
        batch_size: Texts of a batch of all processes together, of which each then has its part of similar length.
        batches_per_step: Such batches of one optimizer step, that is gradient accumulation.
        source: What is read, and its files, for `legible`.
        seed: Seed of the order of the batches.
        pool_batches: Batches that are sorted together.
    """

    def __init__(
        self,
        stream: IterableDataset,
        batch_size: int,
        batches_per_step: int = 1,
        source: tuple[str, Sequence[str]] = ("the stream", ()),
        seed: int = 0,
        pool_batches: int = 50,
    ):
        self.stream = stream
        self.batch_size = batch_size
        self.batches_per_step = batches_per_step
        self.source = source
        self.seed = seed
        self.pool_batches = pool_batches

    def __iter__(self) -> Iterator[dict]:
        worker = torch.utils.data.get_worker_info()
        # Workers beyond the number of files have nothing to read and drop out.
        place, workers = (worker.id, min(worker.num_workers, self.stream.num_shards)) if worker else (0, 1)
        batches, rest = itertools.count(place, workers), []
        # All workers share the number of the pass of a stream, and are not in the same one: each makes its own.
        stream = self.stream.with_format(None)
        for epoch in itertools.count():
            stream.set_epoch(epoch)
            texts = ({**example, "epoch": epoch} for example in legible(stream, *self.source))
            first = next(texts, None)
            if first is None:  # a worker without a share of the files would search for ever
                return
            generator = np.random.default_rng([self.seed, epoch, place])
            texts = itertools.chain(rest, [first], texts)
            while pool := list(itertools.islice(texts, self.batch_size * self.pool_batches)):
                whole = len(pool) // self.batch_size * self.batch_size
                pool, rest = pool[:whole], pool[whole:]
                order = np.argsort([len(text["input_ids"]) for text in pool], kind="stable")
                for batch in generator.permutation(order.reshape(-1, self.batch_size)):
                    step = next(batches) // self.batches_per_step
                    for row in batch:
                        yield {**pool[row], "step": step}


class DocumentWindows(torch.utils.data.Dataset):
    """The windows of tokenized documents: for each an example with the whole document and the number of the window.

    The tokens of a document lie where the data set has them in memory or on the disk; they are not copied for each of
    its windows.

    Args:
        documents: Examples of whole documents with `input_ids` and `length`, see `tokenize_corpus`.
        window_length: Longest window in tokens, special tokens included.
        special_tokens: How many of them there are around a text.
        max_windows: Keep so many; all by default.
    """

    def __init__(self, documents: Dataset, window_length: int, special_tokens: int, max_windows: int | None = None):
        self.documents = documents
        lengths = np.asarray(documents["length"][:])
        counts = count_windows(lengths, window_length - special_tokens)
        ends = counts.cumsum()
        self._document = np.repeat(np.arange(len(counts)), counts)[:max_windows]
        self._window = (np.arange(ends[-1]) - np.repeat(ends - counts, counts))[:max_windows]
        self._length = lengths[self._document]
        self._tokens = _TokenLists(documents)

    def __len__(self) -> int:
        return len(self._document)

    @property
    def num_documents(self) -> int:
        """Of how many documents there are windows."""
        return int(self._document[-1]) + 1 if len(self) else 0

    def __iter__(self) -> Iterator[dict]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, key: int | str):
        """An example by its number; `"length"` gives the tokens of the document of each, (N,)."""
        if key == "length":
            return self._length
        return {"input_ids": self._tokens[self._document[key]], "window": int(self._window[key])}


class _TokenLists:
    """The column `input_ids` of a data set as arrays, without the cost of a whole example for each."""

    def __init__(self, dataset: Dataset):
        column = dataset.with_format("arrow")["input_ids"][:]
        chunks = column.chunks if hasattr(column, "chunks") else [column]
        self._values = [chunk.values.to_numpy(zero_copy_only=False) for chunk in chunks]
        self._offsets = [chunk.offsets.to_numpy() for chunk in chunks]
        self._ends = np.cumsum([len(chunk) for chunk in chunks])

    def __getitem__(self, row: int) -> np.ndarray:
        chunk = int(np.searchsorted(self._ends, row, side="right"))
        place = row - (self._ends[chunk - 1] if chunk else 0)
        start, end = self._offsets[chunk][place : place + 2]
        return self._values[chunk][start:end]


class TextsWithSteps(torch.utils.data.Dataset):
    """A dataset with keys (step, row) beside its own: the example of such a key carries its `step`.

    Args:
        dataset: Map-style.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[dict]:
        return iter(self.dataset)

    def __getitem__(self, key):
        if not isinstance(key, tuple):
            return self.dataset[key]
        step, row = key
        return {**self.dataset[row], "step": step}


class LengthGroupedSampler(torch.utils.data.Sampler):
    """Order of one pass in which the texts of a batch are about equally long and batches come at random.

    Texts are shuffled, cut into pools of `pool_batches` batches, sorted by length within each pool, cut into batches,
    and the batches shuffled. The order is a pure function of (seed, epoch): unlike the sampler of transformers of the
    same name it draws from no running generator, so that a resumed run sees the same order.

    Args:
        lengths: Tokens of each text.
        batch_size: Texts of a batch of one process.
        seed: Seed of the order.
        pool_batches: Batches that are sorted together: more pad less and are less random.
        texts_per_step: If given, the sampler yields (step, row) for [`TextsWithSteps`] instead of rows: texts of one
            optimizer step of all processes and accumulated batches together. The step follows from epoch and place, so
            that workers, ranks and a resume see the same. Of the texts that accelerate repeats to fill the last
            batches of several ranks it is that of their first appearance; `dataloader_drop_last` may drop a step of a
            pass that is counted here.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int = 0,
        pool_batches: int = 50,
        texts_per_step: int | None = None,
    ):
        self.lengths = np.asarray(lengths[:])  # a column of the datasets library would be asked row by row
        self.batch_size = batch_size
        self.seed = seed
        self.pool_batches = pool_batches
        self.texts_per_step = texts_per_step
        self.epoch = 0

    def set_epoch(self, epoch: int):
        """Chooses the pass; called by the data loader."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int] | Iterator[tuple[int, int]]:
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(len(self.lengths))
        pool = np.arange(len(order)) // (self.batch_size * self.pool_batches)
        order = order[np.lexsort((self.lengths[order], pool))]
        whole = len(order) // self.batch_size
        batches = order[: whole * self.batch_size].reshape(whole, self.batch_size)
        rows = [*batches[generator.permutation(whole)].flatten().tolist(), *order[whole * self.batch_size :].tolist()]
        if self.texts_per_step is None:
            return iter(rows)
        first = self.epoch * -(-len(rows) // self.texts_per_step)
        return ((first + place // self.texts_per_step, row) for place, row in enumerate(rows))
