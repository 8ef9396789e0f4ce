"""Searches a folder: passages with their lines, an index on disk, vectors and words together."""
