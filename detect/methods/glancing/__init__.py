"""Glancing at the Patch: what a patch shows against what its surroundings lead one to expect.

Source: Wang, Wu, Cui, Shen, "Glancing at the Patch: Anomaly Localization with Global and Local
Feature Comparison", CVPR 2021. No code was published and the text leaves sizes open; what we chose
is a field of `GlancingConfig` with its reason.
"""
