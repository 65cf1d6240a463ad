"""Under which licence derived images may be published: the source data's, unless one has rights.

The source data's terms stand in data_cards/<dataset>.md, once.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from synth.base.errors import UserError

SYNTH = Path(__file__).parents[1]
INSTALLED, CHECKOUT = SYNTH / "data_cards", SYNTH.parent / "data_cards"
DATA_CARDS = INSTALLED if INSTALLED.is_dir() else CHECKOUT
"""An installed package has the cards inside; in a checkout they lie at the top."""

OPEN_LICENCES = {
    "cc0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "pddl": "https://opendatacommons.org/licenses/pddl/",
    "odc-by": "https://opendatacommons.org/licenses/by/",
    "odbl": "https://opendatacommons.org/licenses/odbl/",
    "cdla-permissive-1.0": "https://cdla.dev/permissive-1-0/",
    "cdla-permissive-2.0": "https://cdla.dev/permissive-2-0/",
    "cdla-sharing-1.0": "https://cdla.dev/sharing-1-0/",
    "c-uda": "https://github.com/microsoft/Computational-Use-of-Data-Agreement",
    "mit": "https://opensource.org/license/mit",
    "apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "bsd-3-clause": "https://opensource.org/license/bsd-3-clause",
}
CC_KINDS = ("by", "by-sa", "by-nd", "by-nc", "by-nc-sa", "by-nc-nd")
CC_VERSIONS = ("2.0", "2.5", "3.0", "4.0")
LICENCES = OPEN_LICENCES | {
    f"cc-{kind}-{version}": f"https://creativecommons.org/licenses/{kind}/{version}/"
    for kind in CC_KINDS
    for version in CC_VERSIONS
}
"""The Hub's names of licences for data, and their texts."""
OTHER = "other"
CLAUSES = {
    "by": "attribution",
    "nc": "non-commercial use only",
    "sa": "share alike",
    "nd": "no derivatives",
}


class SourceCard(NamedTuple):
    """What data_cards/<dataset>.md says of the data that images are derived from."""

    dataset: str
    title: str
    licence: str | None
    licence_name: str | None
    licence_url: str | None
    non_commercial: bool
    homepage: str | None
    citation: str | None

    @property
    def is_own(self) -> bool:
        """Whether these are the user's own images, which have no card."""
        return self.dataset == "folder"

    @property
    def clauses(self) -> frozenset[str]:
        """The conditions of the licence, as letters of CLAUSES."""
        known = clauses(self.licence) if self.licence else frozenset()
        return known | {"nc"} if self.non_commercial else known


class Licence(NamedTuple):
    """The licence of a publication: the Hub's name, a readable name, and its text where known."""

    id: str
    name: str
    url: str | None
    chosen: bool
    """Chosen by the publisher, against or without the source data's own."""


def load_source_card(dataset: str, folder: Path = DATA_CARDS) -> SourceCard:
    """Read a dataset's card; without one (the user's own images) all is unknown."""
    path = folder / f"{dataset}.md"
    if not re.fullmatch(r"[\w-]+", dataset) or not path.is_file():
        return SourceCard(dataset, dataset, None, None, None, False, None, None)
    from huggingface_hub import metadata_load

    about = metadata_load(path) or {}
    licence = about.get("licence")
    return SourceCard(
        dataset,
        str(about.get("title", dataset)),
        None if licence in (None, "unknown") else str(licence),
        about.get("licence_name"),
        about.get("licence_url"),
        about.get("non_commercial") is True,
        about.get("homepage"),
        about.get("citation"),
    )


def clauses(licence: str) -> frozenset[str]:
    """`cc-by-nc-4.0` -> by, nc; none for a licence that is not of Creative Commons' kind."""
    found = re.match(r"cc-((?:by|nc|sa|nd|-)+)-\d", licence)
    return frozenset(found[1].split("-")) if found else frozenset()


def choose_licence(
    sources: Sequence[SourceCard], asked: str | None, has_rights: bool = False
) -> Licence:
    """The licence to publish under: `asked`, or the one that all source data have.

    Raises UserError where the source data's licence is unknown and none is asked for, and where
    `asked` lacks a condition of theirs, unless the user has the rights.
    """
    if asked is not None:
        return asked_licence(sources, asked, has_rights)
    unknown = [source.dataset for source in sources if source.licence is None]
    if unknown:
        raise UserError(
            f"--licence: the licence of the images of dataset {unknown[0]!r} is not known here; "
            "say under which one you may publish what is derived from them, for instance "
            "--licence cc-by-4.0, or other"
        )
    if len({(source.licence, source.licence_name) for source in sources}) > 1:
        several = ", ".join(f"{source.dataset}: {source.licence}" for source in sources)
        raise UserError(
            f"--licence: the images come from data of several licences ({several}); say under "
            "which one you may publish them"
        )
    return own_licence(sources[0])


def own_licence(source: SourceCard) -> Licence:
    """The source data's own licence, which must be known."""
    licence = source.licence or OTHER
    name = source.licence_name or readable(licence)
    return Licence(licence, name, source.licence_url or LICENCES.get(licence), False)


def asked_licence(sources: Sequence[SourceCard], asked: str, has_rights: bool) -> Licence:
    """The licence a user asks for, checked against the source data's (see `choose_licence`)."""
    licence = asked.lower()
    if licence not in LICENCES and licence != OTHER:
        allowed = ", ".join((*OPEN_LICENCES, *(f"cc-{kind}-4.0" for kind in CC_KINDS), OTHER))
        raise UserError(f"--licence: got {asked!r}, allowed are {allowed}")
    for source in sources:
        refuse_dropping(source, licence, has_rights)
    for source in sources:
        if licence == source.licence:
            return own_licence(source)
    return Licence(licence, readable(licence), LICENCES.get(licence), True)


def refuse_dropping(source: SourceCard, licence: str, has_rights: bool) -> None:
    """Raise UserError where `licence` lacks a condition of the source data's own."""
    dropped = source.clauses - clauses(licence)
    if dropped and not has_rights and licence != source.licence:
        own = readable(source.licence or OTHER)
        terms = ", ".join(term for letters, term in CLAUSES.items() if letters in dropped)
        raise UserError(
            f"--licence: {licence} drops what {source.title} asks for ({own}: {terms}); leave the "
            "option out, or add --i-have-the-rights if its owner allows you this"
        )


def readable(licence: str) -> str:
    """`cc-by-nc-sa-4.0` -> `CC BY-NC-SA 4.0`."""
    if licence == OTHER:
        return "a licence of its own"
    kind, _, version = licence.rpartition("-")
    if licence.startswith("cc-"):
        return f"CC {kind.removeprefix('cc-').upper()} {version}"
    return "CC0 1.0" if licence == "cc0-1.0" else licence
