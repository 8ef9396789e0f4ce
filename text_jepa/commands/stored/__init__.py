"""Help that is stored as text, so that it is shown before torch is imported: see `text_jepa/commands/main.py`."""
