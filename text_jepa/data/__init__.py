"""Prepares batches from files: corpora, tokenizers, masks and windows."""
