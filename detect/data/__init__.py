"""What detectors are trained on: normal images, anomaly sources, and samples blended of both."""
