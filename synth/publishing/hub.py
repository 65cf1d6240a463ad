"""Bring a dataset repository of the Hugging Face Hub to hold given files: what it lacks, once.

Every step looks at what is there first, so that an interrupted publication goes on when it is run
again. The large files travel one by one; one commit makes all of them visible together. The client
tries a file's own transfer and downloads again by itself; here every other call is.
"""

import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import parse_ratelimit_headers, validate_repo_id
from huggingface_hub.utils.sha import git_hash

from synth.base.errors import UserError
from synth.base.files import file_digest, read_json
from synth.base.progress import Bars
from synth.publishing.publication import MANIFEST_FILE, MANIFEST_FORMAT, Parcel
from synth.sia.validate import CARD_FILE

T = TypeVar("T")
OnWait = Callable[[str], None]
"""Told in one line why and how long the next try waits."""

KIND = "dataset"
HUB_FILES = frozenset({".gitattributes"})
"""What the Hub itself puts into a new repository."""
MESSAGE = "Publish synthetic anomaly images"

HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
"""Of the client's HTTP library: httpx2 in huggingface_hub 2, httpx before."""
BUSY = frozenset({408, 429, 500, 502, 503, 504})
"""Answers after which another try can succeed."""


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
            return git_hash(path.read_bytes()) == self.blob
        return file_digest(path) == self.sha256


class Backoff(NamedTuple):
    """How to wait: first_s, doubled each time up to longest_s, times a random 0.5 to 1.

    Where the Hub names a time, that is waited, up to patience_s.
    """

    tries: int = 6
    first_s: float = 1.0
    longest_s: float = 60.0
    patience_s: float = 900.0
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = random.random

    def wait_s(self, failed: int) -> float:
        """Seconds after the `failed`-th failure (1, 2, ...)."""
        return min(self.longest_s, self.first_s * 2 ** (failed - 1)) * (0.5 + 0.5 * self.jitter())


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


class Repository(NamedTuple):
    """One dataset repository; every call waits and tries again where that can help."""

    api: HfApi
    repo: str
    backoff: Backoff
    on_wait: OnWait

    @property
    def url(self) -> str:
        """Its page."""
        return f"{self.api.endpoint}/datasets/{self.repo}"

    def call(self, doing: str, work: Callable[..., T], **options: Any) -> T:
        """The result of `work` on this repository, tried again where the Hub is busy or away.

        doing: such as "write to", for messages. Raises UserError when the Hub refuses, and when it
        stays away.
        """
        doing, endpoint = f"{doing} {self.repo}", self.api.endpoint
        for failed in range(1, self.backoff.tries + 1):
            try:
                return work(self.repo, repo_type=KIND, **options)
            except (HTTP_ERROR, OSError, RuntimeError) as error:
                reason = transient_reason(error)
                if reason is None:
                    meaning = refusal(error, doing, endpoint)
                    if meaning is None:
                        raise
                    raise UserError(meaning) from error
                answered = answer(error)
                wait = None if answered is None else asked_wait_s(answered.response.headers)
                if failed == self.backoff.tries or (wait or 0) > self.backoff.patience_s:
                    raise gave_up(reason, wait, doing, endpoint) from error
                wait = self.backoff.wait_s(failed) if wait is None else wait
                tries = f"try {failed + 1} of {self.backoff.tries} in {wait:.0f} s"
                self.on_wait(f"{endpoint}: {reason}; {tries}")
                self.backoff.sleep(wait)
        raise AssertionError("unreachable")

    def files(self) -> dict[str, Remote]:
        """What it holds now."""
        return self.call("read", partial(list_files, self.api))

    def read_manifest(self, folder: Path) -> dict[str, Any]:
        """What the last publication wrote about itself; downloaded into `folder`."""
        path = self.call("read", self.api.hf_hub_download, filename=MANIFEST_FILE, local_dir=folder)
        cure = f"delete {MANIFEST_FILE} in {self.url}, or give another --repo"
        return read_json(Path(path), cure)


def list_files(api: HfApi, repo: str, repo_type: str) -> dict[str, Remote]:
    """The files of a repository."""
    return {
        file.path: Remote(file.lfs.sha256 if file.lfs else None, file.blob_id)
        for file in api.list_repo_tree(repo, recursive=True, repo_type=repo_type)
        if isinstance(file, RepoFile)
    }


def publish(
    repository: Repository, parcel: Parcel, staging: Path, bars: Bars, *, public: bool
) -> Sent:
    """Create the repository (private) unless it is there, and bring it to hold the parcel.

    public: make it visible to all when everything is there; otherwise a repository that is public
    already is refused. Files of an earlier publication that are no longer in the parcel are
    removed, other files stay. Raises UserError for what the Hub refuses, and for a repository that
    holds something else.
    """
    api, call = repository.api, repository.call
    call("create", api.create_repo, private=True, exist_ok=True)
    private = bool(call("read", api.repo_info).private)
    if not private and not public:
        raise UserError(
            f"--repo: {repository.url} is public, and --public was not given; add it, or make the "
            "repository private in its settings"
        )
    remote = repository.files()
    known = MANIFEST_FILE in remote
    previous = repository.read_manifest(staging / ".remote") if known else None
    require_own(repository, parcel, remote, previous)
    lacking = missing_files(parcel.files, remote)
    removed = (previous or {}).get("files", {}).keys() & remote.keys() - parcel.files.keys()
    edited = card_was_edited(previous, remote)
    if lacking or removed:
        send_files(repository, lacking, removed, bars)
    if public and private:
        call("make public", api.update_repo_settings, private=False)
    num_bytes = sum(file.stat().st_size for file in lacking.values())
    return Sent(repository.url, len(lacking), num_bytes, len(removed), edited)


def missing_files(files: Mapping[str, Path], remote: Mapping[str, Remote]) -> dict[str, Path]:
    """Those of the files that are not there, or have another content there."""
    return {
        path: file
        for path, file in files.items()
        if not (path in remote and remote[path].holds(file))
    }


def send_files(
    repository: Repository, files: Mapping[str, Path], removed: set[str], bars: Bars
) -> None:
    """Send files one by one, then make them visible and remove others, all at once.

    When the answer to a commit is lost, the next try finds everything there and sends nothing.
    """
    api = repository.api
    additions = {path: CommitOperationAdd(path, str(file)) for path, file in files.items()}
    with bars("sending", "file") as update:
        for number, addition in enumerate(additions.values(), start=1):
            send = partial(api.preupload_lfs_files, additions=[addition], free_memory=False)
            repository.call("write to", send)
            update(number, len(additions))

    def commit(repo: str, repo_type: str) -> None:
        remote = list_files(api, repo, repo_type)
        operations = [
            *(additions[path] for path in missing_files(files, remote)),
            *(CommitOperationDelete(path) for path in sorted(removed & remote.keys())),
        ]
        if operations:
            api.create_commit(repo, operations, commit_message=MESSAGE, repo_type=repo_type)

    repository.call("write to", commit)


def require_own(
    repository: Repository,
    parcel: Parcel,
    remote: dict[str, Remote],
    previous: dict[str, Any] | None,
) -> None:
    """Raise UserError for a repository with other content than an earlier state of the parcel."""
    fault = None
    if previous is None:
        absent = missing_files(parcel.files, remote)
        others = sorted(remote.keys() - HUB_FILES - (parcel.files.keys() - absent.keys()))
        if others:
            shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
            fault = f"holds files that `synth publish` did not put there ({shown});"
    elif previous.get("format") != MANIFEST_FORMAT:
        fault = (
            f"was published in format {previous.get('format')}, this version writes "
            f"{MANIFEST_FORMAT};"
        )
    elif (previous.get("dataset"), previous.get("kind")) != (parcel.dataset, parcel.kind):
        fault = (
            f"holds {previous.get('kind')} images of dataset {previous.get('dataset')}, these are "
            f"{parcel.kind} images of {parcel.dataset};"
        )
    else:
        there = [entry.get("category") for entry in previous.get("categories", {}).values()]
        lost = ", ".join(str(name) for name in there if name not in parcel.categories)
        if lost:
            fault = f"also holds {lost}; give these folders too, so that they stay, or"
    if fault is not None:
        raise UserError(
            f"--repo: {repository.repo} {fault} give another --repo, or delete {repository.url} in "
            "its settings first"
        )


def card_was_edited(previous: dict[str, Any] | None, remote: dict[str, Remote]) -> bool:
    """Whether the card in the repository is not the one that the last publication sent."""
    sent = (previous or {}).get("card_blob")
    return sent is not None and CARD_FILE in remote and remote[CARD_FILE].blob != sent


# What failed


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and those behind it; the client wraps some."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def answer(error: BaseException) -> HfHubHTTPError | None:
    """The Hub's answer behind an error, None where none came."""
    return next((cause for cause in causes(error) if isinstance(cause, HfHubHTTPError)), None)


def transient_reason(error: BaseException) -> str | None:
    """Why another try may succeed, or None."""
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes(error)):
        return None
    answered = answer(error)
    if answered is not None:
        status = answered.response.status_code
        return f"answers {status}" if status in BUSY else None
    for cause in causes(error):
        if isinstance(cause, HTTP_ERROR | ConnectionError | TimeoutError):
            return f"cannot be reached ({one_line(cause)})"
    if type(error) is RuntimeError and error.__cause__ is None:
        # what hf_xet raises when it cannot send
        return f"did not take the file ({one_line(error)})"
    return None


def asked_wait_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that the Hub asks to wait for, None where it names none."""
    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    value = headers.get("Retry-After", "")
    return float(value) if value.isdigit() else None


def gave_up(reason: str, wait: float | None, doing: str, endpoint: str) -> UserError:
    """The Hub stayed away."""
    when = "later" if wait is None else f"in {wait / 60:.0f} minutes or more"
    return UserError(
        f"could not {doing}: {endpoint} {reason}; run the same command again {when}, what was sent "
        "is kept"
    )


def refusal(error: BaseException, doing: str, endpoint: str) -> str | None:
    """What the Hub's refusal means for the user, None for an error of another kind."""
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes(error)):
        return f"could not {doing}: HF_HUB_OFFLINE is set; unset it, or add --dry-run"
    answered = answer(error)
    if answered is None:
        return None
    status, said = answered.response.status_code, answered.server_message
    words = f" (the Hub says: {one_line(said)})" if said else ""
    tokens = f"{endpoint}/settings/tokens"
    if status == 403:
        cure = (
            "the token lacks the right to; it needs the role 'write', or as a fine-grained token "
            f'"Write access to contents/settings" of this owner\'s repositories: {tokens}'
        )
    elif isinstance(answered, RepositoryNotFoundError):
        cure = (
            "no such repository, or the token may not see it; check --repo, and that the token is "
            f"of a member with the right to write: {tokens}"
        )
    elif status == 401:
        cure = (
            "the Hub does not accept the token (expired, revoked or mistyped); make one at "
            f"{tokens} and run `hf auth login` or set HF_TOKEN"
        )
    else:
        cure = f"it answers {status}; put right what it names, then run the same command again"
    return f"could not {doing}: {cure}{words}"


def without_paths(text: str) -> str:
    """Addresses shortened to their host."""
    return re.sub(r"(https?://[^/\s'?)]+)[^\s')]*", r"\1", text)


def one_line(text: object) -> str:
    """Text without line breaks, not too long; an upload's address carries a pass: only its host."""
    line = without_paths(" ".join(str(text).split()))
    return line if len(line) <= 200 else line[:197] + "..."
