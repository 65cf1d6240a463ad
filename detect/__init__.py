"""Detectors trained on normal images and synthetic anomalies: RealNet and its neighbours."""
