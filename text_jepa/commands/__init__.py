"""The command `text-jepa`."""
