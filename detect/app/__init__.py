"""A page to look through: `detect app`."""
