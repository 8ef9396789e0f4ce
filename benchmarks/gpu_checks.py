"""Checks on a GPU: losses and gradients as on a CPU, skipped steps, resuming, compiling, waits of the host, NCCL.

`benchmarks/gpu.py` runs all checks on `--device cuda` or `cpu`, and `pytest -m gpu` on the GPU if there is one. A
check is a function of the device that returns figures. It raises `AssertionError` if something is wrong, and `NotHere`
if it is not meaningful on the device. Models have a few layers of width 64, unless memory is measured.
"""

import copy
import os
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import torch
import torch.distributed as dist
from step import MASKED, Batch, Step, on, texts_of
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback
from transformers.utils import is_flash_attn_2_available

from configuration_text_jepa import OBJECTIVES
from text_jepa import TextJepaConfig, TextJepaForPreTraining, TextJepaTrainer, TextJepaTrainingArguments
from text_jepa.data.batching import DocumentWindows
from text_jepa.data.collator import DataCollatorForTextJepa
from text_jepa.data.strategies import MaskStrategy, ViewStrategy


# cuBLAS is deterministic only with a fixed workspace, which it reads from the environment when it starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

VOCABULARY = 500
LENGTH = 64
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 2,
    "pad_token_id": 0,
    "max_position_embeddings": LENGTH,
}
DROPOUT = {"embedding_dropout": 0.1, "mlp_dropout": 0.1}

# Largest relative differences of loss and gradient from those of float32 on a CPU.
TOLERANCES = {
    torch.float32: (1e-5, 1e-4),
    torch.bfloat16: (5e-3, 3e-2),
    torch.float16: (1e-3, 5e-3),
}
# Keeps gradients in the range of float16.
LOSS_SCALE = 2.0**10

# Where transformers looks for padding to leave the mask out; the host waits for the answer.
KNOWN_LOOKS = ("transformers/masking_utils.py",)

# Operators that copy a value to the host, or whose shape depends on values.
_LOOKS = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten._unique2")


# What sdpa says where the only kernel that it may use does not take its inputs.
REFUSALS = ("No available kernel", "No viable backend")


class NotHere(Exception):
    """The check is not meaningful on this device."""


# ---- models and batches ---------------------------------------------------------------------------------------------


def model_of(objective: str, shape: Mapping[str, Any] | None = None, **fields) -> TextJepaForPreTraining:
    """A small model of an objective, in training mode, with the weights of seed 0 and all candidates."""
    torch.manual_seed(0)
    own = {"initializer_range": 0.1, "token_loss_candidates": None, "mask_token_id": MASKED}
    fields = {**own, **OBJECTIVES[objective], **fields}
    shape = {**SHAPE, **(shape or {})}
    return TextJepaForPreTraining(TextJepaConfig.preset("tiny", shape, **fields)).train()


def examples_of(objective: str, texts: int = 16, length: int = LENGTH) -> Any:
    """Texts of random words, between half of `length` and `length` long, or windows of such documents."""
    rows, tokenizer = texts_of(SimpleNamespace(vocab_size=VOCABULARY, texts=texts, length=length))
    ids = []
    for number, row in enumerate(rows):
        end = length - 1 - number % (length // 2)
        words = row["input_ids"][1:end].tolist()
        ids.append([tokenizer.cls_token_id, *words, tokenizer.sep_token_id])
    if objective == "documents":
        ids = [words[1:-1] for words in ids]
    dataset = datasets.Dataset.from_dict({"input_ids": ids, "length": [len(words) for words in ids]})
    if objective == "documents":
        return DocumentWindows(dataset, length // 2, special_tokens=0)  # the tokenizer adds none
    return dataset


def collator_of(objective: str, length: int = LENGTH, **settings) -> DataCollatorForTextJepa:
    """The collator of an objective."""
    _, tokenizer = texts_of(SimpleNamespace(vocab_size=VOCABULARY, texts=1, length=length))
    if objective == "documents":
        view = ViewStrategy("rest", window_length=length // 2)
        return DataCollatorForTextJepa(tokenizer, MaskStrategy(ratio=0.0), view=view, **settings)
    return DataCollatorForTextJepa(tokenizer, MaskStrategy(ratio=0.5), **settings)


def batch_of(objective: str, texts: int = 16, length: int = LENGTH, **settings) -> Batch:
    """One batch on the CPU."""
    examples = examples_of(objective, texts, length)
    return collator_of(objective, length, **settings)([examples[number] for number in range(len(examples))])


def loss_and_gradients(
    model: torch.nn.Module,
    batch: Batch,
    device: str,
    dtype: torch.dtype = torch.float32,
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of a copy of the model, by name in float64 on the CPU; autocast unless in float32."""
    model = copy.deepcopy(model).to(device)
    scale = LOSS_SCALE if dtype == torch.float16 else 1.0
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        loss = model(**on(device, batch)).loss
    (scale * loss).backward()
    return loss.item(), gradients_of(model, scale)


def gradients_of(model: torch.nn.Module, scale: float = 1.0) -> dict[str, torch.Tensor]:
    """Gradients by name, divided by `scale`, in float64 on the CPU."""
    found = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        if gradient is None:
            continue
        if hasattr(gradient, "full_tensor"):  # a shard of FSDP2
            gradient = gradient.full_tensor()
        found[name.removeprefix("module.")] = gradient.detach().cpu().double() / scale
    return found


def differences(
    found: tuple[float, Mapping[str, torch.Tensor]],
    expected: tuple[float, Mapping[str, torch.Tensor]],
) -> dict[str, float]:
    """Relative differences of two losses and of two sets of gradients, ‖found - expected‖ / ‖expected‖."""
    assert found[1].keys() == expected[1].keys(), found[1].keys() ^ expected[1].keys()
    ours = torch.cat([found[1][name].flatten() for name in expected[1]])
    theirs = torch.cat([gradient.flatten() for gradient in expected[1].values()])
    assert theirs.norm() > 0
    return {
        "loss": abs(found[0] - expected[0]) / abs(expected[0]),
        "gradient": ((ours - theirs).norm() / theirs.norm()).item(),
    }


def assert_close(found: Mapping[str, float], dtype: torch.dtype, what: str) -> None:
    """Raises `AssertionError` unless the differences are within the tolerances of the data type."""
    loss, gradient = TOLERANCES[dtype]
    is_close = found["loss"] <= loss and found["gradient"] <= gradient  # False for NaN
    assert is_close, f"{what}: {found}, at most {loss} and {gradient}"


# ---- numbers --------------------------------------------------------------------------------------------------------


def precision(device: str, dtype: torch.dtype) -> dict[str, Any]:
    """Loss and gradients of a step in `dtype` equal those in float32 on a CPU."""
    if device == "cpu" and dtype == torch.float32:
        raise NotHere("the other precisions are compared with this one")
    found = {}
    for objective in ("jepa", "documents", "mlm"):
        model = model_of(objective)
        batch = batch_of(objective)
        expected = loss_and_gradients(model, batch, "cpu")
        found[objective] = differences(loss_and_gradients(model, batch, device, dtype), expected)
    for objective, difference in found.items():
        assert_close(difference, dtype, objective)
    return found


def attention(device: str) -> dict[str, Any]:
    """Every kind of attention that runs agrees with eager attention, with padding and without."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    kinds = ["sdpa"]
    backends = [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION]
    if device == "cuda":
        backends += [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
        if is_flash_attn_2_available():
            kinds.append("flash_attention_2")
    found = {}
    for kind in kinds:
        # A batch with padding, and one without, both with dropped tokens.
        for name, batch in {"padded": batch_of("jepa"), "full": full_batch()}.items():
            expected = loss_and_gradients(attending("jepa", "eager"), batch, "cpu")
            ours = loss_and_gradients(attending("jepa", kind), batch, device, dtype)
            found[f"{kind}, {name}"] = differences(ours, expected)
    for backend in backends:
        # Without the predictor, whose mask of pairs flash attention does not take.
        for name, batch in {"padded": batch_of("mlm"), "full": full_batch()}.items():
            expected = loss_and_gradients(attending("mlm", "eager"), batch, "cpu")
            try:
                with sdpa_kernel(backend):
                    ours = loss_and_gradients(attending("mlm", "sdpa"), batch, device, dtype)
            except RuntimeError as error:
                if not is_refusal(error, backend):
                    raise
                found[f"{backend.name}, {name}"] = {"does not run": str(error).split("\n")[0]}
            else:
                found[f"{backend.name}, {name}"] = differences(ours, expected)
    for name, difference in found.items():
        if "loss" in difference:
            assert_close(difference, dtype, name)
    return found


def is_refusal(error: RuntimeError, backend: SDPBackend) -> bool:
    """Whether sdpa says that a kernel does not take these inputs; the math kernel takes all."""
    is_said = any(refusal in str(error) for refusal in REFUSALS)
    return is_said and backend != SDPBackend.MATH


def attending(objective: str, kind: str) -> TextJepaForPreTraining:
    """The small model with one kind of attention in both encoders."""
    model = model_of(objective, attn_implementation=kind)
    assert model.model.encoder.config._attn_implementation == kind
    return model


def full_batch() -> Batch:
    """A batch without padding in which all masks hide the same number of tokens."""
    rows, tokenizer = texts_of(SimpleNamespace(vocab_size=VOCABULARY, texts=8, length=LENGTH))
    collator = DataCollatorForTextJepa(tokenizer, MaskStrategy(ratio=0.5), equal_counts=True)
    return collator(rows)


# ---- runs -----------------------------------------------------------------------------------------------------------


def trainer_of(device: str, folder: str, objective: str = "jepa", shape=None, **arguments) -> TextJepaTrainer:
    """A trainer for six steps of the small model on four texts each."""
    arguments = {
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": device == "cpu",
        **arguments,
    }
    args = TextJepaTrainingArguments(folder, **arguments)
    examples = examples_of(objective, texts=32)
    return TextJepaTrainer(model_of(objective, shape), args, collator_of(objective), examples)


def training(device: str) -> dict[str, Any]:
    """In a few steps of the Trainer in bfloat16, losses are finite and both encoders change."""
    found = {}
    for objective in ("jepa", "documents"):
        with tempfile.TemporaryDirectory() as folder:
            trainer = trainer_of(device, folder, objective, bf16=True)
            before = copy.deepcopy(state_of(trainer.model))
            trainer.train()
        after = state_of(trainer.model)
        losses = losses_of(trainer)
        assert len(losses) == 6
        assert all(torch.isfinite(torch.tensor(losses))), losses
        moved = {name.split(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
        expected = {"model", "target_encoder"} if trainer.model.target_encoder is not None else {"model"}
        assert moved >= expected, moved
        found[objective] = losses
    return found


def losses_of(trainer: TextJepaTrainer) -> list[float]:
    """The loss of each step."""
    return [record["loss"] for record in trainer.state.log_history if "loss" in record]


def state_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All weights and buffers, on the CPU."""
    return {name: value.detach().cpu() for name, value in model.state_dict().items()}


class _Overflow(TrainerCallback):
    """Makes the first step overflow, and keeps the states before it, after it and after the second step."""

    def __init__(self, trainer: TextJepaTrainer):
        self.trainer = trainer
        self.states = []

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            self.states.append(copy.deepcopy(state_of(self.trainer.model)))
            self.trainer.accelerator.scaler._init_scale = 2.0**40

    def on_step_end(self, args, state, control, **kwargs):
        if len(self.states) < 3:
            self.states.append(copy.deepcopy(state_of(self.trainer.model)))
            self.trainer.accelerator.scaler.update(LOSS_SCALE)


def scaler(device: str) -> dict[str, Any]:
    """A float16 step that overflows changes neither weights nor averages; the next one changes both."""
    if device == "cpu":
        raise NotHere("float16 in the Trainer needs a GPU")
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(device, folder, fp16=True)
        overflow = _Overflow(trainer)
        trainer.add_callback(overflow)
        trainer.train()
    before, skipped, after = overflow.states
    # Statistics of batches change with each forward pass; weights and averages of weights do not.
    weights = [name for name in before if not name.startswith("running.")]
    moved = [name for name in weights if not torch.equal(before[name], skipped[name])]
    assert not moved, f"moved by a skipped step: {moved}"
    moved = {name.split(".")[0] for name in weights if not torch.equal(skipped[name], after[name])}
    assert moved >= {"model", "target_encoder"}, moved
    return {"losses": losses_of(trainer), "loss scale": trainer.accelerator.scaler.get_scale()}


def resuming(device: str) -> dict[str, Any]:
    """A run resumed from a checkpoint ends with the same bits as one without a stop, dropout included."""
    with tempfile.TemporaryDirectory() as folder, deterministic():
        whole = trainer_of(device, f"{folder}/run", shape=DROPOUT, save_strategy="steps", save_steps=3)
        whole.train()
        resumed = trainer_of(device, f"{folder}/run", shape=DROPOUT, save_strategy="steps", save_steps=3)
        resumed.train(resume_from_checkpoint=f"{folder}/run/checkpoint-3")
    expected = state_of(whole.model)
    found = state_of(resumed.model)
    apart = {}
    for name, value in expected.items():
        if not torch.equal(found[name], value):
            apart[name] = (found[name].double() - value.double()).abs().max().item()
    assert not apart, f"{len(apart)} of {len(expected)} tensors differ: {dict(list(apart.items())[:3])}"
    return {"tensors": len(expected), "differ": 0}


@contextmanager
def deterministic():
    """Uses deterministic kernels where there are any."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


# ---- speed ----------------------------------------------------------------------------------------------------------


def compiling(device: str) -> dict[str, Any]:
    """The step compiles without graph breaks, into few graphs for all lengths of a bucketed run, with equal losses."""
    backend, objectives, lengths = "inductor", ("jepa", "documents"), (32, 40, 48, 56, 64)
    if device == "cpu":
        # Only traced, with the same graphs and breaks and without a compiler.
        backend, objectives, lengths = "eager", ("jepa",), (32, 48, 64)
    found = {}
    for objective in objectives:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        model = model_of(objective).to(device)
        compiled = torch.compile(lambda batch, model=model: model(**batch).loss, fullgraph=True, backend=backend)
        apart = 0.0
        for length in lengths:
            batch = on(device, batch_of(objective, length=length, pad_to_multiple_of=8))
            state = copy.deepcopy(model.state_dict())  # running statistics change with each pass
            expected = model(**batch).loss
            model.load_state_dict(state)
            loss = compiled(batch)
            loss.backward()
            apart = max(apart, abs(loss.item() - expected.item()) / abs(expected.item()))
        counters = torch._dynamo.utils.counters
        breaks = sum(counters["graph_break"].values())
        graphs = counters["stats"]["unique_graphs"]
        found[objective] = {"graphs": graphs, "graph breaks": breaks, "loss apart": apart}
        assert breaks == 0, dict(counters["graph_break"])
        assert graphs < len(lengths), f"{graphs} graphs for {len(lengths)} lengths"
        assert apart < 1e-4, apart
    return found


def host_looks(device: str) -> dict[str, Any]:
    """In a step, the host waits for the device only where transformers looks for padding."""
    found = {}
    for objective in ("jepa", "documents", "mlm"):
        batch = on(device, batch_of(objective))
        model = model_of(objective)
        args = SimpleNamespace(device=device, dtype="bfloat16")
        step = Step(model, lambda model=model, batch=batch: model(**batch).loss, args)

        def whole_step(step=step, model=model):
            step()
            if model.config.target_encoder_type == "ema" and model.target_encoder is not None:
                model.update_target_encoder(0.99)

        whole_step()  # the first one creates the states of the optimizer
        found[objective] = looks_of(whole_step, device)
    for objective, looks in found.items():
        unknown = [place for place in looks if not any(known in place for known in KNOWN_LOOKS)]
        assert not unknown, f"{objective}: the host waits at {unknown}"
    return found


def looks_of(function: Callable[[], Any], device: str) -> dict[str, int]:
    """Counts the waits of the host for the device while the function runs, by `file:line`.

    On a GPU, CUDA reports them. On a CPU, operators that would wait on a GPU are counted.
    """
    if device == "cpu":
        with _Looks() as mode:
            function()
        return dict(mode.places)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            function()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = Counter()
    for warning in caught:
        if "called a synchronizing" in str(warning.message):  # torch also warns that the mode is a prototype
            places[f"{_short(warning.filename)}:{warning.lineno}"] += 1
    return dict(places)


class _Looks(TorchDispatchMode):
    """Counts operators that copy a value to the host, by the line that calls them."""

    def __init__(self):
        super().__init__()
        self.places = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = f"{func.namespace}.{func.overloadpacket.__name__}"
        if name in _LOOKS or _indexes_by_truth(name, args):
            frames = [frame for frame in traceback.extract_stack()[:-1] if "/torch/" not in frame.filename]
            self.places[f"{_short(frames[-1].filename)}:{frames[-1].lineno}"] += 1
        return func(*args, **(kwargs or {}))


def _indexes_by_truth(name: str, args: Sequence[Any]) -> bool:
    """Whether a tensor is indexed by a boolean tensor, whose true values the host has to count."""
    if name not in ("aten.index", "aten.index_put", "aten.index_put_"):
        return False
    return any(index is not None and index.dtype == torch.bool for index in args[1])


def _short(path: str) -> str:
    """The last two parts of a path."""
    return "/".join(Path(path).parts[-2:])


def memory(device: str) -> dict[str, Any]:
    """Peak memory of a base encoder on texts of 512 tokens in bfloat16, beside the computed one of the recipes."""
    if device == "cpu":
        raise NotHere("the computed memory is that of a GPU")
    shape = {"vocab_size": 30_528, "max_position_embeddings": 512}
    torch.manual_seed(0)
    fields = {**OBJECTIVES["jepa"], "sentence_loss_weight": 0.0}
    model = TextJepaForPreTraining(TextJepaConfig.preset("base", shape, **fields)).train()
    rows, tokenizer = texts_of(SimpleNamespace(vocab_size=30_528, texts=16, length=512))
    collate = DataCollatorForTextJepa(tokenizer)
    peaks = {}
    batch: Batch = {}
    step = Step(model, lambda: model(**batch).loss, SimpleNamespace(device=device, dtype="bfloat16"))
    for texts in (4, 16):
        batch.update(on(device, collate(rows[:texts])))
        step()
        torch.cuda.reset_peak_memory_stats()
        step()
        peaks[texts] = torch.cuda.max_memory_allocated()
    per_text = (peaks[16] - peaks[4]) / 12
    computed = computed_memory(texts=1)
    return {
        "MB per text": per_text / 1e6,
        "MB per text, computed": computed["per_text"] / 1e6,
        "GB beside texts": (peaks[4] - 4 * per_text) / 1e9,
        "GB beside texts, computed": computed["states"] / 1e9,
    }


def computed_memory(
    texts: int,
    layers: int = 12,
    width: int = 768,
    length: int = 512,
    words: int = 30_528,
    shards: int = 1,
) -> dict[str, float]:
    """Bytes of a step by the arithmetic of docs/performance.md: one mask over half of the tokens, bfloat16.

    Args:
        texts: Texts of a batch on one GPU.
        layers: L; the feed-forward is gated, 8/3 of the width.
        width: D; the predictor has two layers of half of it.
        length: S.
        words: Size of the vocabulary.
        shards: GPUs over which FSDP2 divides weights and states.

    Returns:
        `states` of weights, gradients, AdamW and target encoder; `per_text` and `texts`, which are kept for the
        backward pass; `sum`, with 1 GB for CUDA itself.
    """
    encoder = words * width + layers * (4 * width**2 + 8 * width**2)
    narrow = width // 2
    predictor = 2 * 12 * narrow**2 + 3 * narrow * width
    states = (20 * encoder + 16 * predictor) / shards
    kept = 0.5 * 55 * width * layers  # of the context encoder, for half of the tokens
    target = 8 * width * (layers + 1)
    per_token = kept + target + 50 * 2 * narrow + 0.5 * 12 * 1024
    per_text = length * per_token
    return {
        "states": states,
        "per_text": per_text,
        "texts": texts * per_text,
        "sum": states + texts * per_text + 1e9,
    }


# ---- processes ------------------------------------------------------------------------------------------------------


def parallel(device: str) -> dict[str, Any]:
    """DDP and FSDP2 on one device give the gradients of the bare model, by NCCL on a GPU and gloo on a CPU."""
    model = model_of("jepa").to(device)
    batch = on(device, batch_of("jepa"))
    expected = loss_and_gradients(model, batch, device)
    backend = "nccl" if device == "cuda" else "gloo"
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(backend, store=dist.FileStore(f"{folder}/store", 1), rank=0, world_size=1)
        try:
            for name, wrap in (("DDP", DistributedDataParallel), ("FSDP2", partial(sharded, device=device))):
                twin = copy.deepcopy(model)
                wrapped = wrap(twin)
                loss = wrapped(**batch).loss
                loss.backward()
                found[name] = differences((loss.item(), gradients_of(twin)), expected)
                twin.update_target_encoder(0.5)
        finally:
            dist.destroy_process_group()
    for name, difference in found.items():
        assert_close(difference, torch.float32, name)
    return {"backend": backend, **found}


def sharded(model: TextJepaForPreTraining, device: str) -> torch.nn.Module:
    """The model in FSDP2, with each layer and the embeddings wrapped separately, as accelerate does."""
    mesh = init_device_mesh(device, (1,))
    names = {*model._no_split_modules, *model.model.encoder._no_split_modules}
    for module in list(model.modules()):
        if type(module).__name__ in names:
            fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


CHECKS: dict[str, Callable[[str], dict[str, Any]]] = {
    "float32": partial(precision, dtype=torch.float32),
    "bfloat16": partial(precision, dtype=torch.bfloat16),
    "float16": partial(precision, dtype=torch.float16),
    "training": training,
    "scaler": scaler,
    "resuming": resuming,
    "host_looks": host_looks,
    "attention": attention,
    "memory": memory,
    "parallel": parallel,
    "compiling": compiling,
}
