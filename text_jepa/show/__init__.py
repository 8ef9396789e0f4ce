"""Pictures: masks, curves, maps."""
