"""What `synth inspect` found, in words."""

from collections.abc import Sequence

from synth.quality.check import copy_distance, percent
from synth.quality.groups import Group
from synth.quality.inspect_data import Inspected
from synth.sia.reader import SiaFolder

FEW_IMAGES = 100
"""Below this many, KID says little."""


def strength_findings(samples: Sequence[Group], floor: Group) -> list[str]:
    """How the samples' distance answers to the strength."""
    if len(samples) < 2:
        return []
    first, last = samples[0], samples[-1]
    return [
        f"from strength {first.strength:g} to {last.strength:g} the mean distance of the samples "
        f"goes from {first.quality.value:.2f} to {last.quality.value:.2f}, held-out normal images "
        f"lie at {floor.quality.value:.2f}; their grain goes from {first.grain:.2f} to "
        f"{last.grain:.2f}"
    ]


def folder_findings(whole: Sequence[Group], floor: Group, folder: SiaFolder | None) -> list[str]:
    """Where the folder's images lie. Blended ones start as training images: no copying is told."""
    is_blended = folder is not None and folder.kind == "blended"
    near = "show hardly any defect" if is_blended else "are near-copies of a training image"
    return [
        f"the folder's {group.num_images} images lie at a mean distance of "
        f"{group.quality.value:.2f}, held-out normal images at {floor.quality.value:.2f}; "
        f"{percent(group.share_far)} look unlike the product, {percent(group.share_copies)} {near}"
        for group in whole
    ]


def notes(data: Inspected, groups: Sequence[Group]) -> list[str]:
    """What the table's words mean."""
    height, width = data.reference.image_size
    texts = [
        f"Distance: to the nearest of {len(data.normals.fit)} training images in standardised "
        f"features of {data.backbone.name} ({data.backbone.weights} weights) at {height} x {width} "
        "px (height x width); 1 is the median of the held-out normal images. Unlike the product: "
        "farther than 95 % of these. Near-copies: nearer than "
        f"{copy_distance(data.reference):.2f}, half of what their nearest 5 % reach; of blended "
        "images, those whose defect hardly shows. Strength s: of a group of several, their mean.",
        "KID: squared kernel distance (MMD) to all training images, unbiased, kernel (x.y/d + 1)^3 "
        "on features whose root mean square is 1 on training images; 0 is no difference. "
        "Diversity: mean distance between two images over that between two training images. "
        "Grain: pixel noise over that of the held-out normal images; damage has distance, noise "
        "has grain as well. After ± stands one standard error.",
        "The figures compare only with others of the same features, image size and training "
        "images; published KIDs rest on another network.",
    ]
    if any(group.num_images < FEW_IMAGES for group in groups):
        texts.append(f"KID of fewer than {FEW_IMAGES} images is rough: mind its error.")
    return texts
