"""Exports encoders to ONNX, checks them against PyTorch, quantizes and runs them.

Shapes: B texts, S tokens, D features.
"""

import contextlib
import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from text_jepa.cli import UsageError


# Largest difference of a hidden state between ONNX and PyTorch that counts as rounding.
ONNX_TOLERANCE = 1e-4

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


class _Encoder(torch.nn.Module):
    """An encoder with the two inputs and the one output of an ONNX file."""

    def __init__(self, encoder: PreTrainedModel):
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        output = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        return output.last_hidden_state


def export_onnx(encoder: PreTrainedModel, path: str | Path) -> float:
    """Writes an encoder as ONNX and checks it against PyTorch on other shapes than it was traced with.

    Its inputs are `input_ids` and `attention_mask` (B, S), int64, its output `last_hidden_state` (B, S, D), float32,
    with any B and S.

    Args:
        encoder: Any encoder with `last_hidden_state`.
        path: File to write; not written if the check fails.

    Returns:
        The largest difference between the hidden states, at most `ONNX_TOLERANCE`.

    Raises:
        UsageError: The extra `onnx` is not installed, PyTorch cannot export the architecture, or the result differs.
    """
    require("onnx", "onnxscript", "onnxruntime", extra="onnx")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    encoder = encoder.float().cpu().eval()
    architecture = type(encoder).__name__
    program = _trace(encoder)
    size = sum(parameter.numel() * parameter.element_size() for parameter in encoder.parameters())
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


def _trace(encoder: PreTrainedModel) -> torch.onnx.ONNXProgram:
    dynamic_shape = {0: "batch", 1: "length"}
    try:
        with _silence():
            return torch.onnx.export(
                _Encoder(encoder),
                kwargs=_inputs(encoder.config, *_TRACED),
                dynamo=True,
                dynamic_shapes={"input_ids": dynamic_shape, "attention_mask": dynamic_shape},
                input_names=["input_ids", "attention_mask"],
                output_names=["last_hidden_state"],
                verbose=False,
            )
    except Exception as error:  # of many types: tracing runs the architecture's own code
        message = str(error.__cause__ or error).strip()
        reason = message.splitlines()[0] if message else type(error).__name__
        architecture = type(encoder).__name__
        raise UsageError(f"{architecture} cannot be exported to ONNX: PyTorch's exporter says '{reason}'") from error


def onnx_difference(encoder: PreTrainedModel, path: str | Path) -> float:
    """Largest difference of a hidden state between PyTorch and an ONNX file, on padded batches of several shapes.

    Returns:
        The difference; NaN if a hidden state is not finite.
    """
    session = _session(path)
    largest = 0.0
    for texts, tokens in _CHECKED:
        batch = _inputs(encoder.config, texts, tokens)
        with torch.no_grad():
            expected = encoder(**batch).last_hidden_state
        (found,) = session.run(None, {name: value.numpy() for name, value in batch.items()})
        is_token = batch["attention_mask"].bool().numpy()
        differences = np.abs(found - expected.numpy())[is_token]
        if not np.isfinite(differences).all():
            return float("nan")
        largest = max(largest, float(differences.max()))
    return largest


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
        (states,) = self.session.run(None, inputs)
        return BaseModelOutput(last_hidden_state=torch.from_numpy(states))


def _session(path: str | Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _inputs(config: PreTrainedConfig, texts: int, tokens: int) -> dict[str, torch.Tensor]:
    """Random ids (B, S) without the padding token, and a mask that pads each text by one token more than the last."""
    generator = torch.Generator().manual_seed(texts * tokens)
    ids = torch.randint(0, config.vocab_size, (texts, tokens), generator=generator)
    padding = config.pad_token_id if config.pad_token_id is not None else 0
    ids[ids == padding] = (padding + 1) % config.vocab_size
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
