"""Encoders of any kind: opening them, the head that their folder has, and texts to vectors."""
