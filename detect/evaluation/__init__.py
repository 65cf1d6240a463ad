"""Figures of detectors on test images."""
