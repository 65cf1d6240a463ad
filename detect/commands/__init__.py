"""One module per command of `detect`; what they need of torch is imported when they run."""
