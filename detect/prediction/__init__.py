"""A trained detector in use: images in, verdicts and pictures out."""
