"""A trained encoder as an ordinary checkpoint: no remote code, no flag, no package of ours. And as ONNX."""

import contextlib
import copy
import importlib.util
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Literal

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from modeling_text_jepa import TextJepaForPreTraining
from text_jepa.arguments import UsageError, first_line
from text_jepa.masking import vocabulary
from text_jepa.word_weights import WORD_WEIGHTS_FOLDER, save_word_weights


Which = Literal["target", "context"]

# The modules of sentence-transformers, each a subfolder and a type; by these names every version of it reads them.
TRANSFORMER_MODULE = ("", "sentence_transformers.models.Transformer")
WORD_WEIGHTS_MODULE = (WORD_WEIGHTS_FOLDER, "sentence_transformers.models.WordWeights")
_POOLING = "sentence_transformers.models.Pooling"

# Largest difference between ONNX and PyTorch, in a hidden state, that is rounding.
ONNX_TOLERANCE = 1e-4

# Texts and tokens that an ONNX file is checked with, none of them those it was traced with.
_TRACED, _CHECKED = (2, 11), ((1, 4), (3, 7), (5, 16))


# ---- checkpoints ----------------------------------------------------------------------------------------------------


def trained_encoder(model: TextJepaForPreTraining, which: Which = "target") -> PreTrainedModel:
    """The stock encoder inside: the moving average (`"target"`), if there is one, or the one that was optimised.

    A frozen target encoder is what the run began with, never what it made.
    """
    if which == "target" and model.config.target_encoder_type == "ema":
        return model.teacher
    return model.model.encoder


def sentence_pooling(config) -> Literal["mean", "cls"]:
    """How an exported encoder makes a vector of a text: as in training, if a file can say so, or by the mean."""
    pools_in_training = config.document_loss_weight > 0 or config.sentence_loss_weight > 0
    return "cls" if pools_in_training and config.pooling == "cls" else "mean"


def trained_word_weights(model: TextJepaForPreTraining, tokenizer: PreTrainedTokenizerBase) -> np.ndarray | None:
    """The weights of words that a model pools with, of the tokenizer's tokens: (V,) float32.

    `None` if it was trained with another pooling. The model may have more embeddings than there are tokens.
    """
    if model.word_weights is None:
        return None
    return model.word_weights[: len(vocabulary(tokenizer))].float().cpu().numpy()


def export_encoder(
    model: TextJepaForPreTraining,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: str | Path,
    max_length: int,
    which: Which = "target",
):
    """Writes an encoder, its tokenizer and the files of sentence-transformers.

    `AutoModel`, `AutoTokenizer`, `pipeline("feature-extraction")`, the `AutoModelFor…` classes and
    `SentenceTransformer` open the folder as it is. The predictor and the other encoder stay behind. Where the model
    pools by `"idf"`, the weights of words lie in `1_WordWeights/`.

    Args:
        model: The pretraining model.
        tokenizer: The tokenizer that it was trained with.
        output_dir: Folder to write to; made if it is not there.
        max_length: Longest text in tokens, for sentence-transformers and the tokenizer.
        which: See `trained_encoder`.
    """
    encoder = trained_encoder(model, which)
    output_dir = Path(output_dir)
    encoder.save_pretrained(output_dir)
    tokenizer = copy.copy(tokenizer)  # which is the caller's
    tokenizer.model_max_length = max_length
    tokenizer.save_pretrained(output_dir)
    _write_json(output_dir / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    weights = trained_word_weights(model, tokenizer)
    modules = [TRANSFORMER_MODULE]
    if weights is not None:
        save_word_weights(output_dir, weights, tokenizer)
        modules.append(WORD_WEIGHTS_MODULE)
    pooling_folder = f"{len(modules)}_Pooling"
    modules.append(
        write_pooling(output_dir, pooling_folder, encoder.config.hidden_size, sentence_pooling(model.config))
    )
    write_modules(output_dir, modules)


def write_modules(folder: Path, modules: Sequence[tuple[str, str]]) -> None:
    """Writes `modules.json`: the modules of sentence-transformers, each a subfolder and a type, in their order."""
    listed = []
    for index, (path, kind) in enumerate(modules):
        listed.append({"idx": index, "name": str(index), "path": path, "type": kind})
    _write_json(folder / "modules.json", listed)


def read_modules(folder: Path) -> list[tuple[str, str]]:
    """What `write_modules`, or sentence-transformers, has written; an empty list if there is nothing."""
    path = folder / "modules.json"
    if not path.is_file():
        return []
    return [(module["path"], module["type"]) for module in json.loads(path.read_text(encoding="utf-8"))]


def write_pooling(folder: Path, subfolder: str, hidden_size: int, pooling: Literal["mean", "cls"]) -> tuple[str, str]:
    """Writes the module that makes one vector of the states of a text, and gives it back for `write_modules`."""
    config: dict[str, int | bool] = {"word_embedding_dimension": hidden_size}
    config["pooling_mode_mean_tokens"] = pooling == "mean"
    config["pooling_mode_cls_token"] = pooling == "cls"
    _write_json(folder / subfolder / "config.json", config)
    return subfolder, _POOLING


def save_for_continuing(model: TextJepaForPreTraining, tokenizer: PreTrainedTokenizerBase, output_dir: str | Path):
    """Writes the complete pretraining model with its code and tokenizer: both encoders, predictor and heads."""
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)


def _write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def parameter_counts(model: torch.nn.Module) -> tuple[int, int]:
    """Trainable and all parameters."""
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trainable in counts if trainable), sum(n for n, _ in counts)


def load_trained(source: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A finished model with its tokenizer: a [`TextJepaForPreTraining`] or an encoder of any architecture.

    Args:
        source: Folder or name on the Hub: an exported encoder, `pretraining/` or `checkpoint-N` of a run.

    Raises:
        UsageError: There is none, it cannot be read, or it needs code of its own.
    """
    try:
        is_ours = AutoConfig.from_pretrained(source, trust_remote_code=False).model_type == "text_jepa"
        model = (TextJepaForPreTraining if is_ours else AutoModel).from_pretrained(source, trust_remote_code=False)
        return model.eval(), AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError, UnpicklingError) as error:
        raise UsageError(f"{source}: no model can be read there ({first_line(error)})") from error


# ---- folders of encoders --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def staged(output_dir: str | Path) -> Iterator[Path]:
    """A new folder, which becomes `output_dir` at the end of the block; if the block fails, nothing is left of it."""
    output_dir = Path(output_dir)
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_dir.parent, prefix="_") as folder:
        staging = Path(folder, output_dir.name)
        staging.mkdir()
        yield staging
        staging.replace(output_dir)


def copy_encoder_files(source: Path, output_dir: Path, with_model: bool = True) -> None:
    """Copies the files of an encoder's folder: its own, those of its modules, and ONNX.

    What a run keeps in further folders stays behind: checkpoints and the complete model.

    Args:
        source: Folder to copy from.
        output_dir: Folder to copy to.
        with_model: Also the weights of the encoder, in whichever form.
    """
    folders = {"", *(path for path, _ in read_modules(source))}
    if with_model:
        folders.add("onnx")
    for folder in sorted(folders):
        if not (source / folder).is_dir():
            continue
        (output_dir / folder).mkdir(parents=True, exist_ok=True)
        for file in (source / folder).iterdir():
            is_model = folder == "" and file.name.startswith(("model", "pytorch_model"))
            if file.is_file() and (with_model or not is_model):
                shutil.copy(file, output_dir / folder / file.name)


# ---- sentence-transformers ------------------------------------------------------------------------------------------


def export_sentence_transformer(
    encoder_dir: str | Path,
    output_dir: str | Path,
    max_length: int | None = None,
    prompts: Mapping[str, str] | None = None,
):
    """Writes the folder of an exported encoder as sentence-transformers itself does, with prompts.

    Args:
        encoder_dir: What `export_encoder` has written, or an encoder of any architecture, which is pooled by the mean.
        output_dir: Folder to write to.
        max_length: Longest text in tokens. Default: as it is.
        prompts: Text to be put before a text, by the name of its kind, such as `{"query": "query: "}`.

    Raises:
        UsageError: The library is not installed.
    """
    _need("sentence_transformers", extra="st")
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(encoder_dir), device="cpu", prompts=dict(prompts or {}))
    if max_length is not None:
        model.max_seq_length = max_length
    model.save_pretrained(str(output_dir), create_model_card=False)  # a stub; the run's own card says more


def _need(*modules, extra):
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise UsageError(f"{module} is not installed: pip install 'text-jepa[{extra}]'")


# ---- ONNX -----------------------------------------------------------------------------------------------------------


class _Encoder(torch.nn.Module):
    """An encoder with the two inputs and the one output that an ONNX file has."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids, attention_mask):
        return self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def export_onnx(encoder: PreTrainedModel, path: str | Path) -> float:
    """Writes an encoder as ONNX, checked against PyTorch on other shapes than it was traced with.

    Inputs `input_ids` and `attention_mask` (B, S), int64; output `last_hidden_state` (B, S, D), float32. B and S are
    free.

    Args:
        encoder: Any encoder with `last_hidden_state`.
        path: File to write; it is not left behind if the check fails.

    Returns:
        The largest difference found between the hidden states, at most `ONNX_TOLERANCE`.

    Raises:
        UsageError: The extra `onnx` is not installed, PyTorch cannot export the architecture, or the result differs.
    """
    _need("onnx", "onnxscript", "onnxruntime", extra="onnx")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    encoder = encoder.float().cpu().eval()
    shape = {0: "batch", 1: "length"}
    try:
        with _silence():
            program = torch.onnx.export(
                _Encoder(encoder),
                kwargs=_inputs(encoder.config, *_TRACED),
                dynamo=True,
                dynamic_shapes={"input_ids": shape, "attention_mask": shape},
                input_names=["input_ids", "attention_mask"],
                output_names=["last_hidden_state"],
                verbose=False,
            )
    except Exception as error:  # of many kinds: tracing runs the architecture's own code
        reason = str(error.__cause__ or error).strip().splitlines()
        raise UsageError(
            f"{type(encoder).__name__} cannot be exported to ONNX: PyTorch's exporter says "
            f"'{reason[0] if reason else type(error).__name__}'"
        ) from error
    # Beside its place until it is checked; protocol buffers end at 2 GB, weights beyond that are a file of their own.
    is_large = sum(p.numel() * p.element_size() for p in encoder.parameters()) > 1.9e9
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="_") as staging:
        unchecked = Path(staging, path.name)
        program.save(str(unchecked), external_data=is_large)
        difference = onnx_difference(encoder, unchecked)
        if not difference <= ONNX_TOLERANCE:
            raise UsageError(
                f"{type(encoder).__name__}: the ONNX file differs from PyTorch by {difference:.1e} (at most "
                f"{ONNX_TOLERANCE:.0e} is rounding); it was not kept"
            )
        for file in Path(staging).iterdir():
            file.replace(path.parent / file.name)
    return difference


def onnx_difference(encoder: PreTrainedModel, path: str | Path) -> float:
    """Largest difference of a hidden state between PyTorch and an ONNX file, on padded batches of several shapes."""
    session, worst = _session(path), 0.0
    for shape in _CHECKED:
        batch = _inputs(encoder.config, *shape)
        with torch.no_grad():
            expected = encoder(**batch).last_hidden_state
        (found,) = session.run(None, {name: value.numpy() for name, value in batch.items()})
        difference = np.abs(found - expected.numpy())[batch["attention_mask"].bool().numpy()].max()
        worst = max(worst, float(difference)) if np.isfinite(difference) else float("nan")
    return worst


def quantize_onnx(path: str | Path, output_path: str | Path):
    """Writes an ONNX file with matrices of 8-bit integers; activations are quantised when it runs."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder, _silence():
        prepared = Path(folder, "prepared.onnx")
        # The symbolic shapes of the exporter stay as they are: inferring them anew fails on some architectures.
        quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
        quantize_dynamic(str(prepared), str(output_path), weight_type=QuantType.QInt8, per_channel=True)


class OnnxEncoder(torch.nn.Module):
    """An ONNX file in the place of the encoder that it was made of, on the CPU.

    Args:
        path: What `export_onnx` or `quantize_onnx` has written.
    """

    def __init__(self, path: str | Path):
        super().__init__()
        self.session = _session(path)
        self.device = torch.device("cpu")

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, output_hidden_states: bool = False
    ) -> BaseModelOutput:
        """Texts (B, S) to `last_hidden_state` (B, S, D); the file has no other states."""
        inputs = {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()}
        (states,) = self.session.run(None, inputs)
        return BaseModelOutput(last_hidden_state=torch.from_numpy(states))


def _session(path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _inputs(config, texts, tokens):
    """Random ids (B, S) of any words but the first and the padding, and a mask that pads all texts but the first."""
    generator = torch.Generator().manual_seed(texts * tokens)
    ids = torch.randint(0, config.vocab_size, (texts, tokens), generator=generator)
    mask = (torch.arange(tokens) < torch.arange(tokens, 0, -1)[:texts, None].clamp(min=1)).long()
    padding = config.pad_token_id if config.pad_token_id is not None else 0
    ids[ids == padding] = (padding + 1) % config.vocab_size
    return {"input_ids": ids.masked_fill(mask == 0, padding), "attention_mask": mask}


@contextlib.contextmanager
def _silence():
    """Without the exporters' remarks about themselves."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
