"""Trained detectors as single files for other runtimes: onnxruntime, OpenVINO, torch alone."""
