"""The methods that can be trained, by name: the only place that lists them.

A method is one file or folder here, and one row. Rows import nothing until their recipe is asked
for, so that `--help` comes at once.
"""

from typing import Any

from detect.method import ANOMALIES, LEARNING, Method, Recipe


def load_realnet() -> Recipe[Any]:
    """AFS, reconstruction, RRS, segmentation."""
    from detect.methods.realnet.recipe import RECIPE

    return RECIPE


def load_patch_nn() -> Recipe[Any]:
    """A bank of random patches."""
    from detect.methods.patch_nn import RANDOM

    return RANDOM


def load_patch_nn_coreset() -> Recipe[Any]:
    """A bank of patches that cover all others."""
    from detect.methods.patch_nn import CORESET

    return CORESET


def load_csflow() -> Recipe[Any]:
    """A flow across scales."""
    from detect.methods.csflow import RECIPE

    return RECIPE


def load_csflow_nn() -> Recipe[Any]:
    """A flow across scales beside a bank of patches."""
    from detect.methods.csflow_nn import RECIPE

    return RECIPE


def load_validflow() -> Recipe[Any]:
    """A flow with attention, within scales and across them."""
    from detect.methods.validflow import RECIPE

    return RECIPE


def load_glancing() -> Recipe[Any]:
    """A patch against its surroundings."""
    from detect.methods.glancing.detector import RECIPE

    return RECIPE


def load_nearest() -> Recipe[Any]:
    """AFS, nearest normal patches, RRS, segmentation."""
    from detect.methods.realnet.nearest import RECIPE

    return RECIPE


METHODS: dict[str, Method] = {
    "realnet": Method(
        title="RealNet",
        sentence="reconstructs features and segments what it cannot reconstruct",
        presets=("tiny", "compact", "small", "paper", "paper-c", "hiad"),
        options=LEARNING | ANOMALIES | {"official"},
        recipe=load_realnet,
    ),
    "realnet-nn": Method(
        title="RealNet with nearest patches",
        sentence="as realnet, with the nearest normal patch as the reconstruction",
        presets=("tiny", "compact"),
        options=LEARNING | ANOMALIES | {"official"},
        recipe=load_nearest,
    ),
    "patch-nn": Method(
        title="patch nearest neighbour",
        sentence="distance to the nearest of randomly chosen normal patches",
        presets=("tiny", "compact", "small", "paper"),
        options=frozenset(),
        recipe=load_patch_nn,
    ),
    "patch-nn-coreset": Method(
        title="patch nearest neighbour (coreset)",
        sentence="as patch-nn, with patches that cover all others",
        presets=("tiny", "compact", "small", "paper"),
        options=frozenset(),
        recipe=load_patch_nn_coreset,
    ),
    "csflow": Method(
        title="CS-Flow",
        sentence="likelihood of features by a normalizing flow across three scales",
        presets=("tiny", "compact", "paper", "paper-6"),
        options=LEARNING,
        recipe=load_csflow,
    ),
    "csflow-nn": Method(
        title="CS-Flow with nearest patches",
        sentence="ranks by csflow and patch-nn-coreset together, marks by the latter",
        presets=("tiny", "compact"),
        options=LEARNING - {"watch_test"},  # what is usual is measured at the end
        recipe=load_csflow_nn,
    ),
    "validflow": Method(
        title="ValidFlow",
        sentence="as csflow, lighter, with attention",
        presets=("tiny", "compact", "paper"),
        options=LEARNING,
        recipe=load_validflow,
    ),
    "glancing": Method(
        title="Glancing at the Patch",
        sentence="compares a patch with what its surroundings let expect",
        presets=("tiny", "compact", "paper"),
        options=LEARNING,
        recipe=load_glancing,
    ),
}
