"""Bring a dataset repository of the Hugging Face Hub to hold given files: what it lacks, once.

Every step looks at what is there first, so that an interrupted publication goes on when it is run
again. The large files travel one by one; one commit makes all of them visible together.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    get_token,
)
from huggingface_hub.errors import HFValidationError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id

from synth.base.errors import UserError
from synth.base.files import read_json
from synth.base.progress import Bars
from synth.publishing.hub_retry import Backoff, OnWait, reach
from synth.publishing.parquet import file_digest
from synth.publishing.publication import CARD_FILE, MANIFEST_FILE, MANIFEST_FORMAT, Parcel, git_blob

T = TypeVar("T")
KIND = "dataset"
HUB_FILES = frozenset({".gitattributes"})
"""What the Hub itself puts into a new repository."""
MESSAGE = "Publish synthetic anomaly images"


class Sent(NamedTuple):
    """What a publication changed."""

    url: str
    num_files: int
    num_bytes: int
    num_removed: int
    card_was_edited: bool


class Remote(NamedTuple):
    """A file in the repository; by SHA-256 where it is stored as a large file."""

    sha256: str | None
    blob: str

    def holds(self, path: Path) -> bool:
        """Whether it has the content of the local file."""
        if self.sha256 is None:
            return git_blob(path.read_bytes()) == self.blob
        return file_digest(path) == self.sha256


def require_repo_name(repo: str) -> None:
    """Raise UserError unless `repo` is ORG/NAME in letters that the Hub takes."""
    try:
        validate_repo_id(repo)
        if repo.count("/") == 1:
            return
        reason = "without the user or organisation that it belongs to"
    except HFValidationError:
        reason = "not a name on the Hub"
    raise UserError(
        f"--repo: got {repo!r}, {reason}; must be ORG/NAME of letters, digits, '-', '_' and '.', "
        "for instance my-company/screws"
    )


def connect() -> HfApi:
    """The Hub's client with the user's own token. Raises UserError when there is none."""
    token = get_token()
    if token is None:
        raise UserError(
            "no Hugging Face token found; make one with write permission at "
            "https://huggingface.co/settings/tokens, then run `hf auth login` or set HF_TOKEN "
            "(or add --dry-run, which needs none)"
        )
    return HfApi(token=token)


class Repository:
    """One dataset repository; every call waits and tries again where that can help."""

    def __init__(self, api: HfApi, repo: str, backoff: Backoff, on_wait: OnWait):
        self.api, self.repo, self.backoff, self.on_wait = api, repo, backoff, on_wait

    def call(self, doing: str, work: Callable[[], T]) -> T:
        """Call the client (see `reach`)."""
        doing = f"{doing} {self.repo}"
        return reach(work, doing, self.api.endpoint, self.backoff, self.on_wait)

    @property
    def url(self) -> str:
        """Its page."""
        return f"{self.api.endpoint}/datasets/{self.repo}"

    def create(self) -> None:
        """Make it, private, unless it is there."""
        create = self.api.create_repo
        self.call("create", lambda: create(self.repo, private=True, exist_ok=True, repo_type=KIND))

    def is_private(self) -> bool:
        """Whether only its members see it."""
        info = self.call("read", lambda: self.api.repo_info(self.repo, repo_type=KIND))
        return bool(info.private)

    def make_public(self) -> None:
        """Let everybody see it."""
        change = self.api.update_repo_settings
        self.call("make public", lambda: change(self.repo, private=False, repo_type=KIND))

    def files(self) -> dict[str, Remote]:
        """What it holds now."""
        return self.call("read", self.tree)

    def tree(self) -> dict[str, Remote]:
        """One try of `files`."""
        return {
            file.path: Remote(file.lfs.sha256 if file.lfs else None, file.blob_id)
            for file in self.api.list_repo_tree(self.repo, recursive=True, repo_type=KIND)
            if isinstance(file, RepoFile)
        }

    def read_manifest(self, folder: Path) -> dict[str, Any]:
        """What the last publication wrote about itself; downloaded into `folder`."""
        download = self.api.hf_hub_download
        path = self.call(
            "read", lambda: download(self.repo, MANIFEST_FILE, repo_type=KIND, local_dir=folder)
        )
        return read_json(
            Path(path), f"delete {MANIFEST_FILE} in {self.url}, or give another --repo"
        )

    def send(self, addition: CommitOperationAdd) -> None:
        """Send one file's content; nothing is sent that the Hub has."""
        send = self.api.preupload_lfs_files
        self.call(
            "write to",
            lambda: send(self.repo, [addition], repo_type=KIND, free_memory=False),
        )

    def commit(self, additions: Mapping[str, CommitOperationAdd], removed: Sequence[str]) -> None:
        """Make sent files visible and remove others, all at once.

        When the answer to a commit is lost, the next try finds everything there and sends nothing.
        """

        def attempt() -> None:
            remote = self.tree()
            operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
                addition
                for path, addition in additions.items()
                if not (path in remote and remote[path].holds(Path(str(addition.path_or_fileobj))))
            ]
            operations += [CommitOperationDelete(path) for path in removed if path in remote]
            if operations:
                self.api.create_commit(
                    self.repo, operations, commit_message=MESSAGE, repo_type=KIND
                )

        self.call("write to", attempt)


def publish(
    repository: Repository, parcel: Parcel, staging: Path, bars: Bars, *, public: bool
) -> Sent:
    """Create the repository (private) unless it is there, and bring it to hold the parcel.

    public: make it visible to all when everything is there; otherwise a repository that is public
    already is refused. Files of an earlier publication that are no longer in the parcel are
    removed, other files stay. Raises UserError for what the Hub refuses, and for a repository that
    holds something else.
    """
    repository.create()
    private = repository.is_private()
    if not private and not public:
        raise UserError(
            f"--repo: {repository.url} is public, and --public was not given; add it, or make the "
            "repository private in its settings"
        )
    remote = repository.files()
    known = MANIFEST_FILE in remote
    previous = repository.read_manifest(staging / ".remote") if known else None
    require_own(repository, parcel, remote, previous)
    lacking = {
        path: file
        for path, file in parcel.files.items()
        if not (path in remote and remote[path].holds(file))
    }
    removed = sorted(set(previous_files(previous)) & set(remote) - set(parcel.files))
    edited = card_was_edited(previous, remote)
    if lacking or removed:
        send_files(repository, lacking, removed, bars)
    if public and private:
        repository.make_public()
    num_bytes = sum(file.stat().st_size for file in lacking.values())
    return Sent(repository.url, len(lacking), num_bytes, len(removed), edited)


def send_files(
    repository: Repository, files: Mapping[str, Path], removed: Sequence[str], bars: Bars
) -> None:
    """Send files one by one, then commit them and the removals."""
    additions = {path: CommitOperationAdd(path, str(file)) for path, file in files.items()}
    with bars("sending", "file") as update:
        for number, addition in enumerate(additions.values(), start=1):
            repository.send(addition)
            update(number, len(additions))
    repository.commit(additions, removed)


def require_own(
    repository: Repository,
    parcel: Parcel,
    remote: dict[str, Remote],
    previous: dict[str, Any] | None,
) -> None:
    """Raise UserError for a repository with other content than an earlier state of the parcel."""
    way_out = f"give another --repo, or delete {repository.url} in its settings first"
    if previous is None:
        others = sorted(
            path
            for path in remote
            if path not in HUB_FILES
            and not (path in parcel.files and remote[path].holds(parcel.files[path]))
        )
        if others:
            raise UserError(
                f"--repo: {repository.repo} holds files that `synth publish` did not put there "
                f"({', '.join(others[:3])}{', ...' if len(others) > 3 else ''}); {way_out}"
            )
        return
    if previous.get("format") != MANIFEST_FORMAT:
        raise UserError(
            f"--repo: {repository.repo} was published in format {previous.get('format')}, this "
            f"version writes {MANIFEST_FORMAT}; {way_out}"
        )
    about = (previous.get("dataset"), previous.get("kind"))
    if about != (parcel.dataset, parcel.kind):
        raise UserError(
            f"--repo: {repository.repo} holds {about[1]} images of dataset {about[0]}, these are "
            f"{parcel.kind} images of {parcel.dataset}; {way_out}"
        )
    categories = [entry.get("category") for entry in previous.get("categories", {}).values()]
    lost = [name for name in categories if name not in parcel.categories]
    if lost:
        raise UserError(
            f"--repo: {repository.repo} also holds {', '.join(map(str, lost))}; give these folders "
            f"too, so that they stay, or {way_out}"
        )


def previous_files(previous: dict[str, Any] | None) -> dict[str, str]:
    """The files of the last publication and their SHA-256."""
    return (previous or {}).get("files", {})


def card_was_edited(previous: dict[str, Any] | None, remote: dict[str, Remote]) -> bool:
    """Whether the card in the repository is not the one that the last publication sent."""
    sent = (previous or {}).get("card_blob")
    return sent is not None and CARD_FILE in remote and remote[CARD_FILE].blob != sent
