"""The distance to the nearest patch of normal images: a baseline."""
