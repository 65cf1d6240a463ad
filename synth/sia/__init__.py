"""The SIA folder: its format, what writes it, reads it, checks it and lays it out for others."""
