"""One module per command of `synth`; what they need of torch is imported when they run."""
