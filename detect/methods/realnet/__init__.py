"""RealNet (Zhang, Xu, Zhou, CVPR 2024): AFS, reconstruction, RRS, segmentation head."""

from detect.methods.realnet.afs import AFSResult, select_channels
from detect.methods.realnet.config import PAPER, PRESETS, SMALL, TINY, RealNetConfig
from detect.methods.realnet.model import RealNet

__all__ = [
    "PAPER",
    "PRESETS",
    "SMALL",
    "TINY",
    "AFSResult",
    "RealNet",
    "RealNetConfig",
    "select_channels",
]
