"""Exports encoders to ONNX, checks them against PyTorch, quantizes and runs them.

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


# Largest difference of a hidden state between ONNX and PyTorch that counts as rounding.
ONNX_TOLERANCE = 1e-4

# Names of the outputs.
STATES = "last_hidden_state"
VECTORS = "sentence_embedding"

# Texts and tokens (B, S) that an ONNX file is traced with, and the other shapes that it is checked with.
_TRACED = (2, 11)
_CHECKED = ((1, 4), (3, 7), (5, 16))

# Protocol buffers end at 2 GB. Larger weights go to a file of their own.
_LARGEST_FILE = 1.9e9  # bytes


def require(*modules: str, extra: str) -> None:
    """Checks that optional dependencies are installed.

    Args:
        modules: Names of modules.
        extra: The extra of this package that installs them.

    Raises:
        UsageError: One is missing.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise UsageError(f"{module} is not installed: pip install 'text-jepa[{extra}]'")


class _Graph(torch.nn.Module):
    """What an ONNX file computes: the states of the tokens and, if it is known how the encoder pools, the vectors."""

    def __init__(self, encoder: PreTrainedModel | Encoder):
        super().__init__()
        self.model = _model_of(encoder)
        self.pooled = encoder if isinstance(encoder, Encoder) else None
        layers = () if self.pooled is None else self.pooled.layers_after
        self.layers_after = torch.nn.ModuleList(layers)  # so that the file has their weights under this name

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        states = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.pooled is None:
            return (states,)
        batch = {"input_ids": input_ids, "attention_mask": attention_mask}
        return states, pool_states(self.pooled, states, batch)


def _model_of(encoder: PreTrainedModel | Encoder) -> PreTrainedModel:
    return encoder.model if isinstance(encoder, Encoder) else encoder


def export_onnx(encoder: PreTrainedModel | Encoder, path: str | Path) -> float:
    """Writes an encoder as ONNX and checks it against PyTorch on other shapes than it was traced with.

    Its inputs are `input_ids` and `attention_mask` (B, S), int64, its output `last_hidden_state` (B, S, D), float32,
    with any B and S. An [`Encoder`] has `sentence_embedding` (B, D) as well: the vectors after its pooling and the
    layers behind it. What is left to whoever makes the tokens stands in the file's metadata: `max_length`, the longest
    text in tokens, and `prompt`, what comes before every text.

    Args:
        encoder: Any model with `last_hidden_state`, or one with its pooling from `open_encoder`.
        path: File to write; not written if the check fails.

    Returns:
        The largest difference between the outputs, at most `ONNX_TOLERANCE`.

    Raises:
        UsageError: The extra `onnx` is not installed, PyTorch cannot export the architecture, or the result differs.
    """
    require("onnx", "onnxscript", "onnxruntime", extra="onnx")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In place, so that the encoder can be compared with the file afterwards.
    model = _Graph(encoder).float().cpu().eval().model
    architecture = type(model).__name__
    program = _trace(encoder)
    if isinstance(encoder, Encoder):
        program.model.metadata_props.update(max_length=str(encoder.max_length), prompt=encoder.prompt)
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="_") as staging:
        unchecked = Path(staging, path.name)
        program.save(str(unchecked), external_data=size > _LARGEST_FILE)
        difference = onnx_difference(encoder, unchecked)
        if not difference <= ONNX_TOLERANCE:  # NaN is not, either
            raise UsageError(
                f"{architecture}: the ONNX file differs from PyTorch by {difference:.1e} (at most "
                f"{ONNX_TOLERANCE:.0e} is rounding); it was not kept"
            )
        for file in Path(staging).iterdir():
            file.replace(path.parent / file.name)
    return difference


def _trace(encoder: PreTrainedModel | Encoder) -> torch.onnx.ONNXProgram:
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
    except Exception as error:  # of many types: tracing runs the architecture's own code
        message = str(error.__cause__ or error).strip()
        reason = message.splitlines()[0] if message else type(error).__name__
        architecture = type(model).__name__
        raise UsageError(f"{architecture} cannot be exported to ONNX: PyTorch's exporter says '{reason}'") from error


def onnx_difference(encoder: PreTrainedModel | Encoder, path: str | Path) -> float:
    """Largest difference of an output between PyTorch and an ONNX file, on padded batches of several shapes.

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
        found = session.run(outputs, {name: value.numpy() for name, value in batch.items()})
        is_token = batch["attention_mask"].bool().numpy()
        differences = [np.abs(found[0] - expected[0].numpy())[is_token]]
        differences += [np.abs(ours - theirs.numpy()) for ours, theirs in zip(found[1:], expected[1:], strict=True)]
        for values in differences:
            if not np.isfinite(values).all():
                return float("nan")
            largest = max(largest, float(values.max()))
    return largest


def halve_onnx(path: str | Path, output_path: str | Path) -> None:
    """Writes an ONNX file whose weights and operations are in float16; its outputs stay float32.

    Args:
        path: A file from `export_onnx` below 2 GB.
        output_path: File to write.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with _silence():
        model = convert_float_to_float16(onnx.load(str(path)), keep_io_types=True)
    onnx.save(model, str(output_path))


def random_batches(encoder: PreTrainedModel | Encoder) -> list[dict[str, torch.Tensor]]:
    """Batches of random tokens, to compare files without texts."""
    return [_inputs(encoder, texts, tokens) for texts, tokens in ((8, 12), (8, 24), (8, 48))]


def batches_of(encoder: Encoder, texts: Sequence[str], batch_size: int = 32) -> Iterator[dict[str, torch.Tensor]]:
    """Token ids and masks (B, S) of texts with the encoder's prompt, each cut at its length."""
    for start in range(0, len(texts), batch_size):
        batch = encoder.tokenizer(
            [encoder.prompt + text for text in texts[start : start + batch_size]],
            padding=True,
            truncation=True,
            max_length=encoder.max_length,
            return_tensors="pt",
        )
        yield {name: batch[name] for name in ("input_ids", "attention_mask")}


def run_onnx(path: str | Path, batches: Iterable[Mapping[str, torch.Tensor]]) -> np.ndarray:
    """Vectors (N, D) of the texts of all batches by a file from `export_onnx` with `sentence_embedding`."""
    session = _session(path)
    vectors = []
    for batch in batches:
        inputs = {name: value.numpy() for name, value in batch.items()}
        (found,) = session.run([VECTORS], inputs)
        vectors.append(found)
    return np.concatenate(vectors)


def quantize_onnx(path: str | Path, output_path: str | Path) -> None:
    """Writes an ONNX file with 8-bit integer matrices; activations are quantized at run time.

    Args:
        path: A file from `export_onnx`.
        output_path: File to write.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder, _silence():
        prepared = Path(folder, "prepared.onnx")
        # Inferring the symbolic shapes again fails on some architectures; those of the exporter stay.
        quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
        quantize_dynamic(str(prepared), str(output_path), weight_type=QuantType.QInt8, per_channel=True)


class OnnxEncoder(torch.nn.Module):
    """Runs an ONNX file on the CPU in place of the encoder that it was exported from.

    Args:
        path: A file from `export_onnx` or `quantize_onnx`.
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
        """Computes `last_hidden_state` (B, S, D) of texts (B, S); the file has no other hidden states."""
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
    """Random ids (B, S) without the padding token, and a mask that pads each text by one token more than the last."""
    config = _model_of(encoder).config
    words = config.vocab_size
    if isinstance(encoder, Encoder) and encoder.word_weights is not None:
        words = len(encoder.word_weights)  # there may be more embeddings than tokens
    generator = torch.Generator().manual_seed(texts * tokens)
    ids = torch.randint(0, words, (texts, tokens), generator=generator)
    padding = config.pad_token_id if config.pad_token_id is not None else 0
    ids[ids == padding] = (padding + 1) % words
    lengths = torch.arange(tokens, 0, -1)[:texts].clamp(min=1)
    mask = (torch.arange(tokens) < lengths[:, None]).long()
    return {"input_ids": ids.masked_fill(mask == 0, padding), "attention_mask": mask}


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Mutes the exporters' warnings about themselves."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
