"""The SIA folder: its format, what writes it, reads it and checks it."""
