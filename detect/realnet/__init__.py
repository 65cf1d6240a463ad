"""RealNet (Zhang, Xu, Zhou, CVPR 2024): AFS, reconstruction, RRS, segmentation head."""
