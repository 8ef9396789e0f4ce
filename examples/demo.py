"""A page to try an encoder on: search in texts, and what the training hides of a text.

    python examples/demo.py runs/tiny_cpu

Needs `pip install -c constraints.txt -e '.[demo]'`. The page is for this machine alone, and asks and tells nobody else
anything.
GRADIO_SERVER_PORT names another port than the first free one from 7860 on.
"""

import argparse
import html
import textwrap
from functools import lru_cache, partial
from pathlib import Path

import datasets
import gradio as gr
import numpy as np
from transformers.utils.logging import disable_progress_bar

from text_jepa import DataCollatorForTextJepa, MaskStrategy, TextJepaConfig, load_builtin_corpus
from text_jepa.cli import run_command
from text_jepa.commands.search import embeddings_of
from text_jepa.encoders.embeddings import Encoder, centre, cosine, open_encoder
from text_jepa.show import mask_gallery


TEXT = (
    "The lighthouse keeper lit the lamp and climbed down to the harbour before the storm came in. The boats were in "
    "already, all but one, and he knew whose it was."
)
STYLE = """
.found li { margin: .6rem 0; }
.found b { margin-right: .6rem; }
iframe { width: 100%; height: 44rem; }
footer { display: none !important; }
"""


def masks_of(encoder: Encoder, text: str, ratio: float, span: float, masks: int, seed: int) -> str:
    """The mask gallery of one text, in a frame, which keeps its style apart from that of the page."""
    strategy = MaskStrategy(ratio=ratio, mean_span_length=span, max_span_length=int(3 * span))
    collator = DataCollatorForTextJepa(encoder.tokenizer, strategy, num_masks=int(masks), seed=int(seed))
    encoded = encoder.tokenizer(text, truncation=True, max_length=128)
    batch = collator([{"input_ids": encoded["input_ids"]}])
    texts = mask_gallery.read_batch(batch, encoder.tokenizer, collator.strategy_names, limit=1)
    question = mask_gallery.describe_question(TextJepaConfig, has_view=False)
    notes = [f"Masks: {collator.describe_masks()}"]
    page = mask_gallery.to_html(texts, "What the training asks", question, notes)
    return f'<iframe title="Masks" srcdoc="{html.escape(page)}"></iframe>'


def make_page(encoder: Encoder) -> gr.Blocks:
    """The page for an encoder."""
    embeddings = embeddings_of(encoder)

    @lru_cache(maxsize=4)
    def vectors_of(texts):
        return embeddings.passage(texts)

    @lru_cache(maxsize=1)
    def builtin():
        return tuple(load_builtin_corpus()["validation"]["text"])

    def search(query, pasted, files):
        """The ten nearest texts as a list, nearest first."""
        if not query.strip():
            return "Ask something."
        lines = pasted.splitlines()
        for file in files or ():
            lines += Path(file).read_text("utf-8", "replace").splitlines()
        texts = tuple(line.strip() for line in lines if line.strip())
        if not texts:
            texts = builtin()
        vectors = vectors_of(texts)
        scores = cosine(centre(embeddings.query([query]), by=vectors), centre(vectors))
        items = []
        for row in np.argsort(-scores)[:10]:
            text = html.escape(textwrap.shorten(texts[row], 400))
            items.append(f"<li><b>{scores[row]:.2f}</b>{text}</li>")
        return f"<ol class='found'>{''.join(items)}</ol>"

    show_masks = partial(masks_of, encoder)
    with gr.Blocks(title="Text-JEPA", analytics_enabled=False) as page:
        gr.Markdown(f"# Text-JEPA\nAn encoder of {encoder.model.num_parameters() / 1e6:.1f} million parameters.")
        with gr.Tab("Search"):
            query = gr.Textbox("", label="Query", placeholder="What are you looking for?")
            with gr.Accordion("Texts: the documentation of installed packages, or your own", open=False):
                pasted = gr.Textbox("", label="Texts, one per line", lines=6)
                files = gr.File(label="Files of texts, one per line", file_count="multiple", file_types=["text"])
            button = gr.Button("Search", variant="primary")
            found = gr.HTML()
            gr.on([query.submit, button.click], search, [query, pasted, files], found)
        with gr.Tab("Masks"):
            text = gr.Textbox(TEXT, label="Text", lines=3)
            with gr.Row():
                ratio = gr.Slider(0.05, 0.9, 0.5, step=0.05, label="Hidden share")
                span = gr.Slider(1, 10, 3, step=0.5, label="Span length")
                masks = gr.Slider(1, 4, 2, step=1, label="Masks")
                seed = gr.Slider(0, 100, 0, step=1, label="Seed")
            shown = gr.HTML()
            settings = [text, ratio, span, masks, seed]
            moved = [page.load, *(setting.change for setting in settings)]
            gr.on(moved, show_masks, settings, shown, show_progress="hidden", trigger_mode="always_last")
    return page


def main():
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("encoder", help="Folder or Hub name.")
    args = parser.parse_args()
    disable_progress_bar()
    datasets.disable_progress_bars()
    page = make_page(open_encoder(args.encoder))
    # The usual theme sets bold words in two fonts at once.
    page.launch(share=False, theme=gr.themes.Default(font=["system-ui", "sans-serif"]), css=STYLE)


if __name__ == "__main__":
    run_command(main)
