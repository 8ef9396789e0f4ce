"""A loss of one's own, in log, curves and card: `python own_loss.py ENCODER FOLDER < TEXTS`, a text in each line."""

from sys import argv, stdin

from transformers import AutoTokenizer

from text_jepa import DataCollatorForTextJepa, TextJepaForPreTraining, TextJepaTrainer, TextJepaTrainingArguments


class WithNorms(TextJepaForPreTraining):
    def compute_losses(self, context, *inputs):
        losses = super().compute_losses(context, *inputs)
        losses["norm"] = 0.01 * context.pooled.norm(dim=-1).log().square().mean()  # vectors of length 1
        return losses


tokenizer = AutoTokenizer.from_pretrained(argv[1], trust_remote_code=False)
model = WithNorms.from_encoder(argv[1])
texts = [tokenizer(line, truncation=True, max_length=64) for line in stdin]
args = TextJepaTrainingArguments(argv[2], max_steps=40, logging_steps=10, eval_strategy="epoch")
collator = DataCollatorForTextJepa(tokenizer)
trainer = TextJepaTrainer(model, args, collator, texts[20:], texts[:20], processing_class=tokenizer)
trainer.train()
trainer.export(argv[2])
