"""A contact sheet to judge a category's foreground rule by: where anomalies may lie."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from synth.data.foreground import RULES, ForegroundRule
from synth.data.normals import Normals, spread
from synth.pictures import Images, SheetRow, contact_sheet
from synth.quality.check import percent

CELL_PX = 160
IN_A_ROW = 8
OUTLINE, EDGE = (255, 0, 200), (255, 255, 255)
OUTSIDE_LIGHT = 0.55
"""How much of its light an image keeps where anomalies may not lie."""


class ForegroundSheet(NamedTuple):
    """The sheet, uint8 [H, W, 3] RGB, the rule in words, and the share of each image [N]."""

    sheet: NDArray[np.uint8]
    rule: str
    shares: NDArray[np.float64]


def foreground_sheet(normals: Normals) -> ForegroundSheet:
    """Show images spread over the training set, then those with least and most foreground."""
    rule, images = normals.foreground_rule(), normals.fit
    shares = np.array([rule.apply(image).mean() for image in images])
    order = [int(n) for n in shares.argsort(kind="stable")]
    chosen = spread(len(images))
    rows = [
        outlined_row(f"{len(images)} training images, spread evenly", images, chosen[::2], rule),
        outlined_row("further ones", images, chosen[1::2], rule),
    ]
    if rule.method != "everything":
        rows += [
            outlined_row("least foreground", images, order[:IN_A_ROW], rule),
            outlined_row("most foreground", images, order[: -IN_A_ROW - 1 : -1], rule),
        ]
    category = normals.category
    made = (
        "from RealNet's table"
        if (category.dataset, category.name) in RULES
        else f"fitted to {len(chosen)} of the training images"
    )
    sheet = contact_sheet([row for row in rows if row.images], CELL_PX)
    return ForegroundSheet(sheet, f"{rule_in_words(rule)}; {made}", shares)


def outlined_row(
    label: str, images: Images, chosen: Sequence[int], rule: ForegroundRule
) -> SheetRow:
    """These images with their foreground outlined, and how much of the image it is."""
    masks = [rule.apply(images[n]) for n in chosen]
    outlined = [outline(images[n], mask) for n, mask in zip(chosen, masks, strict=True)]
    return SheetRow(label, outlined, [percent(float(mask.mean())) for mask in masks])


def outline(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """An image, uint8 [H, W, 3], with its mask, bool [H, W], outlined and the rest darkened."""
    large = (round(image.shape[1] * CELL_PX / image.shape[0]), CELL_PX)
    picture = cv2.resize(image, large, interpolation=cv2.INTER_AREA).astype(np.float32)
    inside = cv2.resize(mask.astype(np.uint8), large, interpolation=cv2.INTER_NEAREST)
    picture[inside == 0] *= OUTSIDE_LIGHT
    drawn = np.ascontiguousarray(np.rint(picture).astype(np.uint8))
    contours, _ = cv2.findContours(inside, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    for colour, thickness in ((EDGE, 3), (OUTLINE, 1)):
        cv2.drawContours(drawn, contours, -1, colour, thickness)
    return drawn


def rule_in_words(rule: ForegroundRule) -> str:
    """What a rule takes for the product."""
    if rule.method == "everything":
        return "the whole image"
    found = (
        f"what is farther than {rule.distance:g} Lab units from the colour of the image's border"
        if rule.method == "background"
        else f"the {rule.polarity} side of the {rule.channel} channel's {rule.method} threshold"
    )
    squares = [
        text
        for text, size_px in (
            (f"gaps closed by {rule.close_px} px", rule.close_px),
            (f"specks below {rule.open_px} px removed", rule.open_px),
        )
        if size_px
    ]
    if squares:
        squares[-1] += " (at image size 256)"
    return ", ".join([found, *squares, *(["holes filled"] if rule.fill_holes else [])])
