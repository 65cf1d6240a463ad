"""How detectors are trained: the run, its loop over stages, early stopping."""
