"""The diffusion model: network, training, and sampling with strength."""
