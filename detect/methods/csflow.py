"""CS-Flow: a normalizing flow over features of an image at three scales, coupled across scales.

Source: Rudolph, Wehrbein, Rosenhahn, Wandt, "Fully Convolutional Cross-Scale-Flows for Image-based
Defect Detection", WACV 2022. Shapes: as in `detect.methods.flow`.
"""

from collections.abc import Sequence
from functools import partial

from detect.methods.flow import Coupling, CrossScale, Flow, Permutation


def csflow(
    channels: int,
    *,
    hidden: int = 1024,
    kernels: Sequence[int] = (3, 3, 3, 5),
    num_scales: int = 3,
    seed: int = 0,
) -> Flow:
    """Build one block for each kernel size: a permutation and a coupling across scales."""
    steps = []
    for k, kernel in enumerate(kernels):
        network = partial(CrossScale, channels, hidden, kernel, num_scales)
        steps += [Permutation(num_scales, channels, k, seed), Coupling(network, num_scales)]
    return Flow(steps)
