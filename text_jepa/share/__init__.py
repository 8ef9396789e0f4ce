"""Trained encoders for others: exports, model cards, the Hub."""
