"""A row of an SIA folder: its fields, the one table of them, and what may be wrong with them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from synth.base.errors import UserError
from synth.sia.strength import Strength

Row = dict[str, Any]
Header = Mapping[str, Any]
IMAGES_PER_FOLDER = 1000


def image_path(index: int) -> str:
    """Where image `index` lies, relative to its SIA folder."""
    return f"images/{index // IMAGES_PER_FOLDER:03d}/{index:06d}.png"


def mask_path(index: int) -> str:
    """Where the mask of blended image `index` lies, relative to its SIA folder."""
    return f"masks/{index // IMAGES_PER_FOLDER:03d}/{index:06d}.png"


PATHS = {"file_name": image_path, "mask_file_name": mask_path}
"""What the fields of a row that name its files must say, by its index."""


# Fields

TYPES: dict[str, tuple[type, ...]] = {
    "a string": (str,),
    "an integer": (int,),
    "a number": (int, float),
    "a number or null": (int, float, type(None)),
}


class Field(NamedTuple):
    """A field of a row: its type, by name in TYPES, and what it means.

    needed: in every row ("both"), or in those of folders of kind "blended". header: "same" as in
    sia.json, "same config": as its config says, "in range": of what its config gives.
    """

    type: str
    meaning: str
    needed: Literal["both", "blended", ""] = ""
    header: Literal["same", "same config", "in range", ""] = ""


FIELDS = {
    "file_name": Field("a string", "the image, RGB, as the original PNG", "both"),
    "mask_file_name": Field("a string", "where the anomaly is: 255, elsewhere 0", "blended"),
    "index": Field("an integer", "number of the image in its category", "both"),
    "dataset": Field("a string", "of the normal images", "both", "same"),
    "category": Field("a string", "of the normal images", "both", "same"),
    "seed": Field(
        "an integer",
        "with the index, the seed of all that is random in the image",
        header="same config",
    ),
    "strength": Field(  # null where a blend's sources have none
        "a number or null", "s of the image, or of the anomaly pasted in", header="in range"
    ),
    "num_steps": Field("an integer", "reverse steps", header="same config"),
    "opacity": Field("a number", "δ of the blend", header="in range"),
    "normal_file": Field("a string", "the normal image that this one was made from"),
    "texture_file": Field("a string", "the file that the image was made of"),
    "source_index": Field("an integer", "the anomaly image pasted in"),
    "depth": Field("an integer", "timestep that the normal image was noised to"),
    "quality": Field(
        "a number",
        "distance to the nearest normal training image in standardised backbone features, "
        "1 is as far as a held-out normal image",
    ),
    "attempt": Field("an integer", "how many candidates of this index were rejected before"),
    "sha256": Field("a string", "of the image file", "both"),
    "mask_sha256": Field("a string", "of the mask file"),
}
"""What is known of rows; one may have other fields."""


NEEDED_BY_METHOD: dict[str, tuple[str, ...]] = {
    "sdas": ("seed", "strength", "num_steps"),
    "sdas-pair": ("seed", "strength", "num_steps", "normal_file", "mask_file_name"),
    "blend": ("seed", "opacity", "normal_file", "source_index", "mask_file_name"),
    "textures": ("texture_file",),
    "noise": ("seed",),
    "shifted": ("seed", "normal_file"),
    "cutpaste": ("seed", "normal_file", "mask_file_name"),
}
"""Besides: what the images of a method depend on. Folders of other makers need not say it."""


def is_a(value: object, name: str) -> bool:
    """Whether a JSON value is of a type of TYPES; true and false are no numbers."""
    return isinstance(value, TYPES[name]) and not isinstance(value, bool)


def needed_fields(kind: object) -> list[str]:
    """The fields of every row of a folder of this kind."""
    return [name for name, field in FIELDS.items() if field.needed in ("both", kind)]


def check_row(path: Path, row: object, kind: object, cure: str) -> None:
    """Raise UserError, naming `path`, unless `row` has what is needed and names its own files."""
    for name in needed_fields(kind):
        if not isinstance(row, dict) or not is_a(row.get(name), FIELDS[name].type):
            raise UserError(f"{path}: damaged (a row without {name}); {cure}")
    assert isinstance(row, dict)
    for name, path_of in PATHS.items():
        if name in row and row[name] != path_of(row["index"]):
            raise UserError(
                f"{path}: damaged ({name} of index {row['index']} is {row[name]!r}); {cure}"
            )


# Checks


def index_of(row: object) -> int | None:
    """The index that a row gives, None where there is no such row or it gives none."""
    index = row.get("index") if isinstance(row, dict) else None
    return index if isinstance(index, int) and not isinstance(index, bool) else None


def config_of(header: Header) -> Mapping[str, Any]:
    """What made the images, empty where the header is damaged."""
    config = header.get("config")
    return config if isinstance(config, Mapping) else {}


def row_faults(row: Row, header: Header) -> Iterator[str]:
    """Say what is wrong with a row, beside what its header says; a damaged header says less."""
    config = config_of(header)
    method = NEEDED_BY_METHOD.get(str(config.get("method")), ())
    for name in dict.fromkeys((*needed_fields(header.get("kind")), *method)):
        if name not in row:
            yield f"no {name}"
    for name, value in row.items():
        if name in FIELDS:
            yield from value_faults(name, value, row["index"], header, config)


def value_faults(
    name: str, value: object, index: int, header: Header, config: Mapping[str, Any]
) -> Iterator[str]:
    """Compare a value with the type of its field, with the header, and with the row's index."""
    field = FIELDS[name]
    if not is_a(value, field.type):
        yield f"{name} is {value!r}, must be {field.type}"
    wanted = (header if field.header == "same" else config).get(name) if field.header else None
    if wanted is not None and field.header == "in range":
        yield from range_faults(name, value, wanted)
    elif wanted is not None and value != wanted:
        yield f"{name} is {value!r}, sia.json says {wanted!r}"
    if name in PATHS and isinstance(value, str) and value != PATHS[name](index):
        yield f"{name} is {value!r}, must be {PATHS[name](index)!r}"


def range_faults(name: str, value: Any, wanted: Any) -> Iterator[str]:
    """Compare a number with the range, the list or the one number that the header gives."""
    if not is_a(value, "a number"):
        return
    try:
        values = Strength.from_json(wanted).values
    except (ValueError, TypeError, KeyError):
        yield f"{name} cannot be checked: sia.json gives its range as {wanted!r}"
        return
    if not min(values) <= value <= max(values):
        yield f"{name} is {value}, sia.json says {min(values):g} to {max(values):g}"


def with_its_files(row: Row) -> Row:
    """A row without the names of files that are not its own: a name could lead anywhere."""
    own = {name: path_of(row["index"]) for name, path_of in PATHS.items()}
    return {name: value for name, value in row.items() if own.get(name, value) == value}
