"""LoRA: small matrices beside the weights of an encoder train in their place (Hu et al., 2021, arXiv 2106.09685)."""

from torch import nn

from modeling_text_jepa import TextJepaForPreTraining, has_adapters, plain_weights, without_adapters
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


def below_adapters(model: nn.Module) -> TextJepaForPreTraining:
    """The model that `get_peft_model` has put adapters into, in place: training needs nothing of the one around it.

    What stands around the encoder is new, and trains as a whole.

    Raises:
        UsageError: The adapters are of a kind that cannot be merged into the weights.
    """
    if hasattr(model, "active_peft_config"):
        _refuse_prompts(model)
        model = model.get_base_model()
        for name, parameter in model.named_parameters():
            is_of_encoder = name.startswith(("model.", "target_encoder."))
            if not is_of_encoder and ".original_module." not in name:
                parameter.requires_grad_(True)
    encoder = model.model.encoder
    if has_adapters(encoder):
        if hasattr(encoder, "active_peft_config"):
            _refuse_prompts(encoder)
        try:
            plain_weights(encoder)
        except ValueError as error:
            raise UsageError(f"{error}; train with LoraConfig(), without use_dora and lora_bias") from error
    return model


def _refuse_prompts(model: nn.Module) -> None:
    config = model.active_peft_config
    if config.is_prompt_learning:
        raise UsageError(f"{type(config).__name__} of PEFT learns no weights of the encoder to export; use LoraConfig")
