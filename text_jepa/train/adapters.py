"""LoRA: small matrices beside the weights of an encoder train in their place (Hu et al., 2021, arXiv 2106.09685)."""

from torch import nn

from modeling_text_jepa import TextJepaForPreTraining, without_adapters
from text_jepa.cli import UsageError, first_line
from text_jepa.share.onnx import require


def add_lora(model: TextJepaForPreTraining, rank: int) -> None:
    """Puts LoRA beside all linear layers of the context encoder; its own weights no longer train.

    Args:
        model: The model. Predictor and heads train as before.
        rank: Rank of the matrices; they are scaled by twice the rank over the rank.

    Raises:
        UsageError: The extra `lora` is not installed, or PEFT finds no linear layer.
    """
    require("peft", extra="lora")
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=_linear_layers(model.model.encoder))
    try:
        model.model.encoder = get_peft_model(model.model.encoder, config)
    except ValueError as error:
        raise UsageError(f"--lora {rank}: {first_line(error)}; train without it") from error


def _linear_layers(encoder: nn.Module) -> list[str]:
    return [name for name, module in encoder.named_modules() if isinstance(module, nn.Linear)]


def merge_lora(model: TextJepaForPreTraining) -> None:
    """Adds what LoRA has learned to the weights of the encoder, which becomes a stock one."""
    model.model.encoder = without_adapters(model.model.encoder)
