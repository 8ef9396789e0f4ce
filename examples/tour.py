# %% [markdown]
# # A tour of Text-JEPA
#
# From texts to an encoder in under a minute on a CPU: what the objective hides, how a run looks, what comes out.
# It needs nothing but the package; the texts are the documentation that every Python installation has. The encoder is
# far too small and sees far too little to be good for anything: what you see here is how things are done.

# %%
import tempfile
from pathlib import Path

import datasets
import PIL.Image
import torch
import transformers
from transformers import AutoModel, AutoTokenizer

from modeling_text_jepa import mean_pool
from text_jepa import (
    DataCollatorForTextJepa,
    MaskStrategy,
    TextJepaConfig,
    TextJepaForPreTraining,
    TextJepaTrainer,
    TextJepaTrainingArguments,
    load_builtin_corpus,
)
from text_jepa.data.tokenization import tokenize_texts, train_tokenizer
from text_jepa.encoders.embeddings import embed_texts, nearest_texts, open_encoder
from text_jepa.show import mask_gallery
from text_jepa.train.build import tokenizer_fields


datasets.disable_progress_bars()
transformers.utils.logging.disable_progress_bar()
transformers.set_seed(0)
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## Texts
#
# A few hundred documents, a tokenizer trained on them, and pieces of at most 48 tokens. Your own texts would come from
# `load_corpus(CorpusArguments(train_file=["notes/*.txt"])).splits` of `text_jepa.data.corpus`.

# %%
corpus = load_builtin_corpus().select_columns("text")
corpus["train"], corpus["validation"] = corpus["train"].shuffle(0).take(600), corpus["validation"].take(100)
tokenizer = train_tokenizer(corpus["train"]["text"], vocab_size=2_000, max_length=48)
examples = tokenize_texts(corpus, tokenizer, max_length=48)
print(len(examples["train"]), "pieces to train on,", len(examples["validation"]), "held out")
print(corpus["train"][0]["text"][:300])

# %% [markdown]
# ## What is hidden
#
# The collator draws two masks for each text: spans of whole words, here 40 % of them. The encoder reads what is left.
# The small numbers are those of the spans.

# %%
collator = DataCollatorForTextJepa(tokenizer, MaskStrategy(ratio=0.4, mean_span_length=3), num_masks=2)
config = TextJepaConfig.preset("tiny", {**tokenizer_fields(tokenizer), "max_position_embeddings": 48})
texts = mask_gallery.read_batch(collator([examples["train"][row] for row in (0, 1)]), tokenizer, [""], limit=2)
facts = [mask_gallery.describe_question(config, has_view=False), f"Masks: {collator.describe_masks()}"]
print(mask_gallery.to_terminal(texts, "What the run asks", facts, colour=True))

# %% [markdown]
# ## Training
#
# `TextJepaTrainer` is the Trainer of transformers; its lines are the health of the run. *relative* is the error of the
# predictions over the variance of the targets: 1 is predicting the mean, *copying* is repeating the nearest visible
# token. *rank* is the number of directions that the token states use.

# %%
model = TextJepaForPreTraining(config)
arguments = TextJepaTrainingArguments(
    str(folder / "run"),
    max_steps=150,
    per_device_train_batch_size=16,
    learning_rate=2e-3,
    logging_steps=15,
    eval_strategy="steps",
    eval_steps=75,
    save_strategy="no",
    use_cpu=True,
)
held_out = examples["validation"].take(100)
trainer = TextJepaTrainer(model, arguments, collator, examples["train"], held_out, processing_class=tokenizer)
_ = trainer.train()

# %% [markdown]
# ## What comes out
#
# `export` writes the moving average of the encoder as an ordinary checkpoint, with its tokenizer, files of
# sentence-transformers, a model card and the curves of the run: thin lines are measured while training, circles on
# held-out texts.

# %%
trainer.export(folder / "encoder")
print(*sorted(path.name for path in (folder / "encoder").iterdir()), sep="\n")

# %%
PIL.Image.open(folder / "encoder" / "curves.png")

# %% [markdown]
# ## Using it
#
# Any program that opens encoders opens this one; no code of ours is needed any more.

# %%
encoder, tokenizer = AutoModel.from_pretrained(folder / "encoder"), AutoTokenizer.from_pretrained(folder / "encoder")
batch = tokenizer(["a tensor of ones", "an array of zeros"], padding=True, return_tensors="pt")
with torch.no_grad():
    states = encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
print(type(encoder).__name__, states.shape, mean_pool(states, batch["attention_mask"]).shape)

# %% [markdown]
# Nearest neighbours of held-out texts. All vectors of such an encoder share a large part, which says nothing:
# `nearest_texts` compares them after their mean has been taken away.

# %%
texts = corpus["validation"]["text"]
queries = [0, 30, 60]
found, cosines = nearest_texts(embed_texts(open_encoder(str(folder / "encoder")), texts), queries)
for query, nearest, cosine in zip(queries, found, cosines, strict=True):
    print(f"      {texts[query][:100]!r}\n{cosine:.2f}  {texts[nearest][:100]!r}\n")

# %% [markdown]
# ## And then
#
# `python run_probe.py FOLDER` says whether an encoder is better than random weights (this one is not), `configs/` has
# a recipe for each published idea, and `run_pretraining.py` does all of the above from one file of flags.
#
# The notebook is made from `examples/tour.py` by `python examples/make_tour.py`; change it there.
