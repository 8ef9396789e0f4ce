"""From files to batches: corpora, tokenizers, masks and windows."""
