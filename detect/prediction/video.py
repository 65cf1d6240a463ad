"""Frames of a video file, one in memory at a time."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "8")  # its errors are told in our own words
import cv2
import numpy as np

from detect.heatmap import Image
from synth.base.errors import DataWarning, UserError

VIDEO_SUFFIXES = (".mp4", ".m4v", ".avi", ".mov", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")


def is_video(path: Path) -> bool:
    """Whether the file is a video, by its suffix."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def count_frames(path: Path) -> int:
    """How many frames the file says it has; 0 where it does not say."""
    with opened(path) as video:
        return max(0, int(video.get(cv2.CAP_PROP_FRAME_COUNT)))


def read_frames(path: Path, every: int = 1, first: int = 0) -> Iterator[tuple[int, float, Image]]:
    """Frames 0, every, 2 every, ... from frame `first` on: number, seconds, uint8 [H, W, 3] RGB.

    The frames between are decoded but not converted. Raises UserError for a file without a frame;
    gives a DataWarning where it ends before the number of frames that it names.
    """
    number = 0
    with opened(path) as video:
        while video.grab():
            if number >= first and number % every == 0:
                seconds = video.get(cv2.CAP_PROP_POS_MSEC) / 1000
                whole, frame = video.retrieve()
                if not whole:
                    break
                yield number, seconds, np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8)
            number += 1
        named = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    if number == 0:
        raise UserError(f"{path}: no frame can be read; copy the video again or convert it")
    if number < named:
        warnings.warn(
            f"{path}: it names {named} frames, {number} can be read; it may be cut short",
            DataWarning,
            stacklevel=2,
        )


@contextmanager
def opened(path: Path) -> Iterator[cv2.VideoCapture]:
    """An opened video. Raises UserError for what is none."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "8")  # its errors are told in our own words
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    video = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        if not video.isOpened():
            reason = "not a video that can be decoded" if path.exists() else "no such file"
            raise UserError(f"{path}: {reason}; copy it again or convert it to MP4")
        yield video
    finally:
        video.release()
        cv2.utils.logging.setLogLevel(level)
