"""`synth publish`."""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from synth.base.command import progress_bar, say, warn
from synth.base.options import OptionalFolder

if TYPE_CHECKING:
    from synth.publishing.licence import Licence
    from synth.publishing.publication import Parcel

Folders = Annotated[
    tuple[Path, ...],
    tyro.conf.Positional,
    tyro.conf.arg(metavar="FOLDER [FOLDER ...]", help_behavior_hint=""),
]
RepoName = Annotated[str, tyro.conf.arg(metavar="ORG/NAME")]
LicenceName = Annotated[
    str | None,
    tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: the source data's)"),
]
StagingFolder = Annotated[
    Path | None,
    tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: FOLDER.publish, beside it)"),
]


def publish(
    folders: Folders,
    *,
    repo: RepoName,
    public: bool = False,
    dry_run: bool = False,
    licence: LicenceName = None,
    i_have_the_rights: bool = False,
    figures: OptionalFolder = None,
    staging: StagingFolder = None,
) -> None:
    """Publish SIA folders as a dataset of the Hugging Face Hub, with a card; private by default.

    The token comes from `hf auth login` or HF_TOKEN. Run again to go on after an interruption.

    Args:
        folders: What `synth generate` or `synth blend` made: SIA folders of one dataset and kind,
            or folders above them. Each category becomes a configuration of its own.
        repo: Where to publish; made if it is not there.
        public: Let everybody see it; without this, only its members.
        dry_run: Make all files and the folders' README.md, say what would be sent, send nothing;
            needs no token.
        licence: Of the images, in the Hub's words, such as cc-by-4.0.
        i_have_the_rights: Publish under a licence that drops conditions of the source data's.
        figures: What `synth inspect` wrote, or a model: its figures go into the card.
        staging: Where the Parquet files and the card are made; may be deleted afterwards.

    """
    quiet_client()
    from synth.base.locks import sole_user
    from synth.publishing.hub import Backoff, Repository, connect, require_repo_name
    from synth.publishing.hub import publish as send
    from synth.publishing.publication import (
        choose_for,
        find_folders,
        make_subsets,
        prepare,
        require_sound,
        write_folder_cards,
    )
    from synth.publishing.tables import figures_section

    require_repo_name(repo)
    api = None if dry_run else connect()
    sias = find_folders(folders)
    subsets = make_subsets(sias)
    sources, terms = choose_for(sias, licence, i_have_the_rights)
    text = "" if figures is None else figures_section(figures, [sia.category for sia in sias])
    staging = staging_folder(folders[0], staging, [sia.path for sia in sias])
    require_sound(sias, progress_bar)
    with sole_user(staging):
        parcel = prepare(subsets, sources, terms, repo, staging, text, progress_bar)
        for path in write_folder_cards(subsets, sources, terms, text):
            warn(f"{path} was not written by synth publish and stays as it is")
        if api is None:
            say(preview(parcel, terms, repo, public))
            say(f"nothing was sent; the card and all files: {staging}")
            return
        repository = Repository(api, repo, Backoff(), warn)
        sent = send(repository, parcel, staging, progress_bar, public=public)
    if sent.card_was_edited:
        warn(f"the card had been edited in {repo}; the edited one stays in its history")
    say(
        f"published: {sent.url} ({visibility(public)}; {sent.num_files} files, "
        f"{size(sent.num_bytes)} sent; {staging} may be deleted)"
    )


def quiet_client() -> None:
    """Keep the client's bars off log files, and addresses with passes in them off the screen."""
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    for handler in logging.getLogger("huggingface_hub").handlers:
        handler.addFilter(without_addresses)


def without_addresses(record: logging.LogRecord) -> bool:
    """Shorten addresses in a log line to the host; an upload's carries a pass."""
    from synth.publishing.hub import without_paths

    record.msg = without_paths(record.getMessage())
    record.args = None
    return True


def staging_folder(first: Path, asked: Path | None, sias: list[Path]) -> Path:
    """Where to make the files. Raises UserError inside an SIA folder, or where nothing can go."""
    from synth.base.errors import UserError

    whole = first.resolve()
    staging = whole.with_name(f"{whole.name}.publish") if asked is None else asked
    for sia in sias:
        if staging.resolve().is_relative_to(sia.resolve()):
            raise UserError(f"--staging: got {staging}, which is in {sia}; give a folder elsewhere")
    try:
        staging.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--staging: {staging} cannot be made ({error.strerror}); give another folder"
        ) from error
    return staging


def preview(parcel: "Parcel", licence: "Licence", repo: str, public: bool) -> str:
    """What would be published, as a few lines."""
    files = [f"  {path:40} {size(file.stat().st_size):>10}" for path, file in parcel.files.items()]
    return "\n".join(
        [
            f"repository: {repo} ({visibility(public)})",
            f"licence: {licence.name} ({licence.id})",
            f"{parcel.kind} images of {parcel.dataset}: {', '.join(parcel.categories)}",
            f"files: {len(files)}, {size(parcel.num_bytes)}",
            *files,
        ]
    )


def visibility(public: bool) -> str:
    """In one word."""
    return "public" if public else "private"


def size(num_bytes: int) -> str:
    """Bytes as a person reads them."""
    value = float(num_bytes)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"
