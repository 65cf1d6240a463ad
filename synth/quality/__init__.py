"""How far images are from normal ones: the check of a model, `synth inspect`."""
