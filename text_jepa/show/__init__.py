"""Draws masks, curves and maps."""
