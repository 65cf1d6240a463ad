"""The methods that can be trained, by name: the only place that lists them.

A method is one file or folder here, one case of `recipe_of` and one row. Rows import nothing until
their recipe is asked for, so that `--help` comes at once.
"""

from functools import partial
from typing import Any

from detect.method import ANOMALIES, LEARNING, Method, Recipe


def recipe_of(name: str) -> Recipe[Any]:
    """Import a method, and torch with it. name: a key of METHODS."""
    match name:
        case "realnet":
            from detect.methods.realnet.recipe import RECIPE as recipe
        case "realnet-nn":
            from detect.methods.realnet.nearest import RECIPE as recipe
        case "patch-nn":
            from detect.methods.patch_nn import RANDOM as recipe
        case "patch-nn-coreset":
            from detect.methods.patch_nn import CORESET as recipe
        case "csflow":
            from detect.methods.csflow import RECIPE as recipe
        case "csflow-nn":
            from detect.methods.csflow_nn import RECIPE as recipe
        case "validflow":
            from detect.methods.validflow import RECIPE as recipe
        case "glancing":
            from detect.methods.glancing.detector import RECIPE as recipe
        case _:
            raise LookupError(name)
    return recipe


METHODS: dict[str, Method] = {
    "realnet": Method(
        title="RealNet",
        sentence="reconstructs features and segments what it cannot reconstruct",
        presets=("tiny", "compact", "small", "paper", "paper-c", "hiad"),
        options=LEARNING | ANOMALIES | {"official"},
        recipe=partial(recipe_of, "realnet"),
    ),
    "realnet-nn": Method(
        title="RealNet with nearest patches",
        sentence="as realnet, with the nearest normal patch as the reconstruction",
        presets=("tiny", "compact"),
        options=LEARNING | ANOMALIES | {"official"},
        recipe=partial(recipe_of, "realnet-nn"),
    ),
    "patch-nn": Method(
        title="patch nearest neighbour",
        sentence="distance to the nearest of randomly chosen normal patches",
        presets=("tiny", "compact", "small", "paper"),
        options=frozenset(),
        recipe=partial(recipe_of, "patch-nn"),
    ),
    "patch-nn-coreset": Method(
        title="patch nearest neighbour (coreset)",
        sentence="as patch-nn, with patches that cover all others",
        presets=("tiny", "compact", "small", "paper"),
        options=frozenset(),
        recipe=partial(recipe_of, "patch-nn-coreset"),
    ),
    "csflow": Method(
        title="CS-Flow",
        sentence="likelihood of features by a normalizing flow across three scales",
        presets=("tiny", "compact", "paper", "paper-6"),
        options=LEARNING,
        recipe=partial(recipe_of, "csflow"),
    ),
    "csflow-nn": Method(
        title="CS-Flow with nearest patches",
        sentence="ranks by csflow and patch-nn-coreset together, marks by the latter",
        presets=("tiny", "compact"),
        options=LEARNING - {"watch_test"},  # what is usual is measured at the end
        recipe=partial(recipe_of, "csflow-nn"),
    ),
    "validflow": Method(
        title="ValidFlow",
        sentence="as csflow, lighter, with attention",
        presets=("tiny", "compact", "paper"),
        options=LEARNING,
        recipe=partial(recipe_of, "validflow"),
    ),
    "glancing": Method(
        title="Glancing at the Patch",
        sentence="compares a patch with what its surroundings let expect",
        presets=("tiny", "compact", "paper"),
        options=LEARNING,
        recipe=partial(recipe_of, "glancing"),
    ),
}
