"""An encoder as an ONNX graph: export, check against PyTorch, quantization and use."""

import contextlib
import importlib.util
import logging
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from text_jepa.cli import UsageError


# Largest difference between ONNX and PyTorch, in a hidden state, that is rounding.
ONNX_TOLERANCE = 1e-4

# Texts and tokens that an ONNX file is checked with, none of them those it was traced with.
_TRACED, _CHECKED = (2, 11), ((1, 4), (3, 7), (5, 16))


def require(*modules, extra):
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise UsageError(f"{module} is not installed: pip install 'text-jepa[{extra}]'")


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
    require("onnx", "onnxscript", "onnxruntime", extra="onnx")
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
