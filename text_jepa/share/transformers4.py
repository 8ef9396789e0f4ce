"""Makes exports readable by transformers 4.57: fields that were renamed in version 5 are written under both names.

Version 4.57 silently uses defaults for missing fields, so a test loads an export of each architecture there and
compares the states.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TokenizersBackend
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name


# Class of a tokenizer that consists only of its tokenizer.json: in version 5, and the name for both versions.
_CLASS_OF_5 = TokenizersBackend.__name__
_CLASS_OF_BOTH = "PreTrainedTokenizerFast"

# Fields of 4.57 for the base of rotary positions, if it depends on the kind of layer.
_BASES_BY_LAYER = {
    "modernbert": {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"},
    "gemma3_text": {"full_attention": "rope_theta", "sliding_attention": "rope_local_base_freq"},
}

Content = dict[str, Any]


def make_readable_in_4(folder: Path) -> None:
    """Adds the fields of transformers 4.57 to the configuration and the tokenizer of an exported encoder.

    Nothing changes for version 5. An encoder that 4.57 does not support is an error there.
    """
    _rewrite(folder / "config.json", _add_old_fields)
    _rewrite(folder / "tokenizer_config.json", _name_tokenizer)


def _rewrite(path: Path, change: Callable[[Content], None]) -> None:
    if not path.is_file():
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    content = copy.deepcopy(before)
    change(content)
    if content != before:
        text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8")


# ---- configuration --------------------------------------------------------------------------------------------------


def _add_old_fields(config: Content) -> None:
    rope = config.get("rope_parameters")
    if not rope:  # no rotary positions, or a file of 4.x
        return
    model_type = config.get("model_type")
    _add_rope_fields(config, rope, _BASES_BY_LAYER.get(model_type))
    if model_type == "modernbert":
        config["global_attn_every_n_layers"] = _full_attention_every(config)


def _add_rope_fields(config: Content, rope: Content, bases: dict[str, str] | None) -> None:
    """Adds `rope_theta` and `rope_scaling` of 4.57 for the `rope_parameters` of version 5."""
    if bases is not None:
        for layer_type, name in bases.items():
            config[name] = rope[layer_type]["rope_theta"]
        rope = rope["full_attention"]
    elif "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
    scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
    if scaling.get("rope_type", "default") != "default":
        config["rope_scaling"] = scaling


def _full_attention_every(config: Content) -> int | None:
    """Distance between layers with full attention; `None`, which is an error in 4.57, if it does not support them.

    It does not support another order of layers, nor scaled positions for only one kind of layer.
    """
    rope = config["rope_parameters"]
    kinds = {parameters["rope_type"] for parameters in rope.values()}
    layer_types = config["layer_types"]
    is_full = [kind == "full_attention" for kind in layer_types]
    for period in range(1, len(layer_types) + 1):
        expected = [layer % period == 0 for layer in range(len(layer_types))]
        if is_full == expected and kinds == {"default"}:
            return period
    return None


# ---- tokenizer ------------------------------------------------------------------------------------------------------


def _name_tokenizer(config: Content) -> None:
    name = config.get("tokenizer_class")
    tokenizer_class = tokenizer_class_from_name(name) if name else None
    if tokenizer_class is not None:
        # Otherwise, 4.57 also returns token types, which not every encoder accepts.
        config.setdefault("model_input_names", tokenizer_class.model_input_names)
    if name == _CLASS_OF_5:
        config["tokenizer_class"] = _CLASS_OF_BOTH
    if isinstance(config.get("extra_special_tokens"), list):  # in 4.57, a dict with another meaning
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
