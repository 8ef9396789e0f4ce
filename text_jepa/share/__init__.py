"""Shares trained encoders: exports, model cards and the Hub."""
