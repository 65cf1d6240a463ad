"""The detectors, each beside its paper."""
