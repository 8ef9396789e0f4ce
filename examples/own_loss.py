"""A loss of one's own (own_loss.py ENCODER TEXTS.txt FOLDER): its term is in log, curves and card of the folder."""

import sys
from pathlib import Path

from transformers import AutoTokenizer

from text_jepa import DataCollatorForTextJepa, TextJepaForPreTraining, TextJepaTrainer, TextJepaTrainingArguments


class WithNorms(TextJepaForPreTraining):
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        if output.loss is not None:  # vectors of length 1
            output["norm_loss"] = output.last_hidden_state.norm(dim=-1).log().square().mean()
            output["loss"] = output.loss + 0.01 * output["norm_loss"]
        return output


model = WithNorms.from_encoder(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=False)
texts = [tokenizer(line, truncation=True, max_length=64) for line in Path(sys.argv[2]).read_text().splitlines()]
args = TextJepaTrainingArguments(
    sys.argv[3], max_steps=40, logging_steps=10, eval_strategy="epoch", save_strategy="no"
)
parts = {"train_dataset": texts[20:], "eval_dataset": texts[:20], "processing_class": tokenizer}
trainer = TextJepaTrainer(model, args, DataCollatorForTextJepa(tokenizer), **parts)
trainer.train()
trainer.export(sys.argv[3])
