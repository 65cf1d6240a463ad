"""Anomaly images from normal images: class-specific diffusion, SDAS, blending, SIA folders."""
