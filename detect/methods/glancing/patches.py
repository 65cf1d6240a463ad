"""Single patches: cut out of images, turned and scaled, and stained.

Shapes: N images of H x W pixels; K patches of each; p x p pixels in a patch. All that is random is
drawn per image on the CPU, for the batch of all processes, of which each takes its share: so
several processes see what one would see.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from detect.batch_norm import uniform

MOST_STAINS = 3
STAIN_SHARE = 0.01, 0.2
"""Of a patch's area that one stain covers."""
LONGEST = 8.0
"""Length over width of a stain: from a spot to a scratch."""
FAINTEST = 0.3
SCALES = 0.5, 2.0
"""Side of the square that a patch is made of, over the patch's own."""
GAIN, OFFSET = 0.3, 0.15
"""By how much contrast, 1, and brightness, 0, are changed at most."""


def random_patches(images: Tensor, count: int, side: int, generator: torch.Generator) -> Tensor:
    """Cut patches out anywhere, at any angle and scale, some mirrored, some lighter or darker.

    images: float32 [N, 3, H, W] in [0, 1]. Returns the same of [N K, 3, p, p].
    """
    N, K = len(images), count
    drawn = uniform((N, K, 7), generator).to(images.device)
    size = torch.tensor(images.shape[-2:], device=images.device)
    centres = drawn[..., :2] * (size - 1)
    low, high = SCALES
    scale = low * (high / low) ** drawn[..., 2]
    angle, mirrored = drawn[..., 3] * 2 * math.pi, (drawn[..., 4] < 0.5) * 2.0 - 1
    axes = scale.unsqueeze(-1) * torch.stack([angle.cos(), angle.sin()], dim=-1)
    across = torch.stack([-axes[..., 1], axes[..., 0]], dim=-1) * mirrored.unsqueeze(-1)
    steps = torch.arange(side, device=images.device) - (side - 1) / 2
    down, right = steps.view(-1, 1, 1), steps.view(1, -1, 1)
    places = [x[:, :, None, None] for x in (centres, axes, across)]
    pixels = places[0] + down * places[1] + right * places[2]  # [N, K, p, p, (row, column)]
    where = (2 * (pixels + 0.5) / size - 1).flip(-1).view(N, K * side, side, 2)
    cut = F.grid_sample(images, where, padding_mode="reflection", align_corners=False)
    patches = cut.view(N, 3, K, side, side).movedim(2, 1)
    gain = 1 + GAIN * (2 * drawn[..., 5] - 1)[:, :, None, None, None]
    offset = OFFSET * (2 * drawn[..., 6] - 1)[:, :, None, None, None]
    return ((patches - 0.5) * gain + 0.5 + offset).clamp(0, 1).flatten(0, 1)


def grid_patches(images: Tensor, patches: Tensor, side: int, stride: int) -> Tensor:
    """Cut patches of a grid, int64 [K, 2] (row and column): [N, 3, H, W] to [N, K, 3, p, p]."""
    views = images.unfold(2, side, stride).unfold(3, side, stride)
    rows, columns = patches.T
    return views[:, :, rows, columns].movedim(1, 2)


def stained(patches: Tensor, generator: torch.Generator) -> Tensor:
    """Put one to three small stains into each patch, float32 [N, K, 3, p, p] in [0, 1].

    A stain is an ellipse of any direction, from a spot to a scratch, with an edge of one pixel. Its
    colour is one of the patch's own image or any; in grey patches it is grey.
    """
    N, K, _, p, _ = patches.shape
    drawn = uniform((N, K, MOST_STAINS, 12), generator).to(patches.device)
    least, most = STAIN_SHARE
    area = p**2 * least * (most / least) ** drawn[..., 0]
    longer = LONGEST ** drawn[..., 1]
    a = (area * longer / math.pi).sqrt()
    b = (a / longer).clamp(min=0.7)
    angle = drawn[..., 2] * math.pi
    centre = drawn[..., 3:5] * (p - 1)
    present = torch.arange(MOST_STAINS, device=patches.device) <= MOST_STAINS * drawn[:, :, :1, 5]
    opacity = (FAINTEST + (1 - FAINTEST) * drawn[..., 6]) * present
    grey = (patches.amax(2) - patches.amin(2)).amax((1, 2, 3)) < 1 / 255  # [N], image by image
    steps = torch.arange(p, dtype=patches.dtype, device=patches.device)
    y, x = steps.view(-1, 1), steps.view(1, -1)
    out = patches
    for i in range(MOST_STAINS):
        cos, sin, length, width, alpha = (
            value[:, :, i, None, None] for value in (angle.cos(), angle.sin(), a, b, opacity)
        )
        dy, dx = y - centre[:, :, i, :1, None], x - centre[:, :, i, 1:, None]
        along, aside = dx * cos + dy * sin, dy * cos - dx * sin
        distance = ((along / length) ** 2 + (aside / width) ** 2).sqrt()
        cover = alpha * ((1 - distance) * width + 0.5).clamp(0, 1)
        colour = _colours(patches, drawn[:, :, i, 7:], grey)[..., None, None]
        out = out + cover.unsqueeze(2) * (colour - out)
    return out


def _colours(patches: Tensor, drawn: Tensor, grey: Tensor) -> Tensor:
    """Return a colour for each patch: half of them from a pixel of another patch of its image."""
    K, p = patches.shape[1], patches.shape[-1]
    any_colour = drawn[..., :3]
    any_colour = torch.where(
        grey[:, None, None], any_colour[..., :1].expand_as(any_colour), any_colour
    )
    pixel = (drawn[..., 3] * (K * p * p)).long().clamp(max=K * p * p - 1)  # [N, K]
    pixels = patches.movedim(2, -1).flatten(1, 3)  # [N, K p p, 3]
    own = pixels.gather(1, pixel.unsqueeze(-1).expand(-1, -1, 3))
    return torch.where(drawn[..., 4:] < 0.5, own, any_colour)
