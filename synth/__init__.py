"""Anomaly images from normal images: class-specific diffusion, SDAS, blending, SIA folders."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's idle threads hold up torch's
