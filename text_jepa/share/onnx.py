"""Exports encoders to ONNX, compares the files with PyTorch, quantizes them and runs them.

Shapes: B texts, S tokens, D features.
"""

import contextlib
import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from text_jepa.cli import UsageError
from text_jepa.encoders.embeddings import Encoder, pool_states


# Largest difference between the outputs of ONNX and PyTorch that is attributed to rounding.
ONNX_TOLERANCE = 1e-4

# Names of the outputs.
STATES = "last_hidden_state"
VECTORS = "sentence_embedding"

# Shape (B, S) with which an encoder is traced, and the other shapes with which the file is checked.
_TRACED = (2, 11)
_CHECKED = ((1, 4), (3, 7), (5, 16))

# Protocol buffers are limited to 2 GB. Larger weights are stored in a separate file.
_LARGEST_FILE = 1.9e9  # bytes


def require(*modules: str, extra: str) -> None:
    """Checks that optional dependencies are installed.

    Args:
        modules: Names of modules.
        extra: The extra of this package that installs them.

    Raises:
        UsageError: A module is missing.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise UsageError(f"{module} is not installed: pip install 'text-jepa[{extra}]'")


class _Graph(torch.nn.Module):
    """The computation of an ONNX file: token states and, for an [`Encoder`] with known pooling, vectors of texts."""

    def __init__(self, encoder: PreTrainedModel | Encoder):
        super().__init__()
        self.model = _model_of(encoder)
        self.pooled = encoder if isinstance(encoder, Encoder) else None
        layers = () if self.pooled is None else self.pooled.layers_after
        self.layers_after = torch.nn.ModuleList(layers)  # registers their weights under this name

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        states = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.pooled is None:
            return (states,)
        batch = {"input_ids": input_ids, "attention_mask": attention_mask}
        return states, pool_states(self.pooled, states, batch)


def _model_of(encoder: PreTrainedModel | Encoder) -> PreTrainedModel:
    return encoder.model if isinstance(encoder, Encoder) else encoder


def export_onnx(encoder: PreTrainedModel | Encoder, path: str | Path) -> float:
    """Exports an encoder to ONNX and compares the file with PyTorch on other shapes than it was traced with.

    The inputs are `input_ids` and `attention_mask` (B, S), int64, the output is `last_hidden_state` (B, S, D),
    float32, for any B and S. An [`Encoder`] has a second output, `sentence_embedding` (B, D): the vectors after its
    pooling and the layers after that. Tokenization settings are stored in the file's metadata: `max_length`, the
    longest text in tokens, and `prompt`, the prefix of every text.

    Args:
        encoder: Any model with `last_hidden_state`, or a result of `open_encoder`. It is converted in place to float32
            on the CPU, in evaluation mode.
        path: File to write. It is not written if the comparison fails.

    Returns:
        The largest difference between the outputs, at most `ONNX_TOLERANCE`.

    Raises:
        UsageError: The extra `onnx` is not installed, PyTorch cannot export the architecture, or the result differs.
    """
    require("onnx", "onnxscript", "onnxruntime", extra="onnx")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    model = _model_of(encoder)
    _convert_in_place(encoder)
    architecture = type(model).__name__
    program = _trace(encoder)
    if isinstance(encoder, Encoder):
        program.model.metadata_props.update(max_length=str(encoder.max_length), prompt=encoder.prompt)
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="_") as staging:
        unchecked = Path(staging, path.name)
        program.save(str(unchecked), external_data=size > _LARGEST_FILE)
        difference = onnx_difference(encoder, unchecked)
        if not difference <= ONNX_TOLERANCE:  # also true for NaN
            raise UsageError(
                f"{architecture}: the ONNX file differs from PyTorch by {difference:.1e} (at most "
                f"{ONNX_TOLERANCE:.0e} is rounding); it was not kept"
            )
        _move_beside(Path(staging, path.name), path)
    return difference


def _convert_in_place(encoder: PreTrainedModel | Encoder) -> None:
    """Converts an encoder to float32 on the CPU in evaluation mode, in which it is traced and compared."""
    graph = _Graph(encoder)
    graph.float()
    graph.cpu()
    graph.eval()


def _trace(encoder: PreTrainedModel | Encoder) -> torch.onnx.ONNXProgram:
    """Traces an encoder; failures of any kind are a UsageError."""
    model = _model_of(encoder)
    dynamic_shape = {0: "batch", 1: "length"}
    outputs = [STATES, VECTORS] if isinstance(encoder, Encoder) else [STATES]
    try:
        with _silence():
            return torch.onnx.export(
                _Graph(encoder).eval(),
                kwargs=_inputs(encoder, *_TRACED),
                dynamo=True,
                dynamic_shapes={"input_ids": dynamic_shape, "attention_mask": dynamic_shape},
                input_names=["input_ids", "attention_mask"],
                output_names=outputs,
                verbose=False,
            )
    except Exception as error:  # of any type, because tracing runs the code of the architecture
        message = str(error.__cause__ or error).strip()
        reason = message.splitlines()[0] if message else type(error).__name__
        architecture = type(model).__name__
        raise UsageError(f"{architecture} cannot be exported to ONNX: PyTorch's exporter says '{reason}'") from error


def onnx_difference(encoder: PreTrainedModel | Encoder, path: str | Path) -> float:
    """Computes the largest difference between the outputs of PyTorch and an ONNX file, on batches of several shapes.

    Returns:
        The difference; NaN if an output is not finite.
    """
    session = _session(path)
    graph = _Graph(encoder).eval()
    largest = 0.0
    for texts, tokens in _CHECKED:
        batch = _inputs(encoder, texts, tokens)
        with torch.no_grad():
            expected = graph(**batch)
        outputs = [STATES, VECTORS][: len(expected)]
        inputs = {name: value.numpy() for name, value in batch.items()}
        found = session.run(outputs, inputs)
        differences = []
        for values, expected_values in zip(found, expected, strict=True):
            differences.append(np.abs(values - expected_values.numpy()))
        is_token = batch["attention_mask"].bool().numpy()
        differences[0] = differences[0][is_token]
        for values in differences:
            if not np.isfinite(values).all():
                return float("nan")
            largest = max(largest, float(values.max()))
    return largest


def halve_onnx(path: str | Path, output_path: str | Path) -> None:
    """Converts the weights and operations of an ONNX file to float16; the outputs stay float32.

    Args:
        path: A file of `export_onnx`.
        output_path: File to write; weights are in a separate file if those of `path` are.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with _silence():
        model = convert_float_to_float16(str(path), keep_io_types=True)  # by its path, it may be above 2 GB
    with _beside(output_path) as unfinished:
        onnx.save(
            model,
            str(unfinished),
            save_as_external_data=weights_file(path).exists(),
            location=weights_file(unfinished).name,
        )


def random_batches(encoder: PreTrainedModel | Encoder) -> list[dict[str, torch.Tensor]]:
    """Makes batches of random tokens, to compare files without texts."""
    return [_inputs(encoder, texts, tokens) for texts, tokens in ((8, 12), (8, 24), (8, 48))]


def batches_of(encoder: Encoder, texts: Sequence[str], batch_size: int = 32) -> Iterator[dict[str, torch.Tensor]]:
    """Tokenizes texts in batches: ids and masks (B, S), with the prompt and the longest length of the encoder."""
    for start in range(0, len(texts), batch_size):
        prompted = [encoder.prompt + text for text in texts[start : start + batch_size]]
        batch = encoder.tokenizer(
            prompted,
            padding=True,
            truncation=True,
            max_length=encoder.max_length,
            return_tensors="pt",
        )
        yield {name: batch[name] for name in ("input_ids", "attention_mask")}


def run_onnx(path: str | Path, batches: Iterable[Mapping[str, torch.Tensor]]) -> np.ndarray:
    """Computes the vectors (N, D) of all batches with a file of `export_onnx` that has `sentence_embedding`."""
    session = _session(path)
    vectors = []
    for batch in batches:
        inputs = {name: value.numpy() for name, value in batch.items()}
        (found,) = session.run([VECTORS], inputs)
        vectors.append(found)
    return np.concatenate(vectors)


def quantize_onnx(path: str | Path, output_path: str | Path) -> None:
    """Quantizes the matrices of an ONNX file to 8-bit integers; activations are quantized at run time.

    Args:
        path: A file of `export_onnx`.
        output_path: File to write; weights are in a separate file if those of `path` are.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    is_separate = weights_file(path).exists()
    folder_of_output = Path(output_path).parent
    with _beside(output_path) as unfinished, tempfile.TemporaryDirectory(dir=folder_of_output, prefix="_") as folder:
        prepared = Path(folder, "prepared.onnx")
        with _silence():
            # Symbolic shape inference fails for some architectures, and the exporter has done it already.
            quant_pre_process(
                str(path),
                str(prepared),
                skip_symbolic_shape=True,
                save_as_external_data=is_separate,
                all_tensors_to_one_file=True,
                external_data_location=weights_file(prepared).name,
            )
            quantize_dynamic(
                str(prepared),
                str(unfinished),
                weight_type=QuantType.QInt8,
                per_channel=True,
                use_external_data_format=is_separate,
            )


def weights_file(path: str | Path) -> Path:
    """The file beside an ONNX file that has its weights, if they are too large for one file."""
    return Path(f"{path}.data")


def _move_beside(unfinished: Path, path: Path) -> None:
    """Moves an ONNX file to its place after the files beside it, so that it is complete when it appears."""
    for file in unfinished.parent.iterdir():
        if file != unfinished:
            file.replace(path.parent / file.name)
    unfinished.replace(path)


@contextlib.contextmanager
def _beside(path: str | Path) -> Iterator[Path]:
    """A file in a temporary folder beside `path`; at the end it becomes `path`, or is deleted after an error.

    Its separate weights, if there are any, move with it.
    """
    path = Path(path)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="_") as folder:
        unfinished = Path(folder, path.name)
        yield unfinished
        _move_beside(unfinished, path)


class OnnxEncoder(torch.nn.Module):
    """Runs an ONNX file on the CPU, with the interface of the encoder that was exported.

    Args:
        path: A file of `export_onnx` or `quantize_onnx`.
    """

    def __init__(self, path: str | Path):
        super().__init__()
        self.session = _session(path)
        self.device = torch.device("cpu")

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        output_hidden_states: bool = False,
    ) -> BaseModelOutput:
        """Computes `last_hidden_state` (B, S, D) of texts (B, S); other hidden states are not in the file."""
        inputs = {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()}
        (states,) = self.session.run([STATES], inputs)
        return BaseModelOutput(last_hidden_state=torch.from_numpy(states))


def _session(path: str | Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _inputs(encoder: PreTrainedModel | Encoder, texts: int, tokens: int) -> dict[str, torch.Tensor]:
    """Makes a batch of random ids (B, S); each text is one token shorter than the one before, and padded."""
    config = _model_of(encoder).config
    vocab_size = config.vocab_size
    if isinstance(encoder, Encoder) and encoder.word_weights is not None:
        vocab_size = len(encoder.word_weights)  # there may be more embeddings than tokens
    padding = 0 if config.pad_token_id is None else config.pad_token_id
    generator = torch.Generator().manual_seed(texts * tokens)
    ids = torch.randint(0, vocab_size, (texts, tokens), generator=generator)
    is_padding_id = ids == padding
    ids[is_padding_id] = (padding + 1) % vocab_size

    lengths = torch.arange(tokens, 0, -1)[:texts]
    present = torch.arange(tokens) < lengths[:, None]
    return {
        "input_ids": ids.masked_fill(~present, padding),
        "attention_mask": present.long(),
    }


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Mutes the log messages and warnings of the exporters."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
