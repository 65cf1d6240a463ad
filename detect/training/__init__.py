"""What detectors are trained on, and how."""
