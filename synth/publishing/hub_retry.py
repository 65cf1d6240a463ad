"""Calls to the Hub that wait and try again, and what its refusals mean for a user."""

import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple, TypeVar

from huggingface_hub.errors import (
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from synth.base.errors import UserError

T = TypeVar("T")
OnWait = Callable[[str], None]
"""Told in one line why and how long the next try waits."""

HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
"""Of the client's HTTP library: httpx2 in huggingface_hub 2, httpx before."""
BUSY = frozenset({408, 429, 500, 502, 503, 504})
"""Answers after which another try can succeed."""


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


def reach(work: Callable[[], T], doing: str, endpoint: str, backoff: Backoff, on_wait: OnWait) -> T:
    """The result of `work`, tried again where the connection drops or the Hub is busy.

    doing: "write to ORG/NAME", for messages. Raises UserError when the Hub refuses, and when it
    stays away.
    """
    for failed in range(1, backoff.tries + 1):
        try:
            return work()
        except (HTTP_ERROR, OSError, RuntimeError) as error:
            reason = transient_reason(error)
            if reason is None:
                meaning = refusal(error, doing, endpoint)
                if meaning is None:
                    raise
                raise UserError(meaning) from error
            wait = asked_wait_s(error)
            if failed == backoff.tries or (wait is not None and wait > backoff.patience_s):
                raise gave_up(reason, wait, doing, endpoint) from error
            wait = backoff.wait_s(failed) if wait is None else wait
            on_wait(f"{endpoint}: {reason}; try {failed + 1} of {backoff.tries} in {wait:.0f} s")
            backoff.sleep(wait)
    raise AssertionError("unreachable")


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


def asked_wait_s(error: BaseException) -> float | None:
    """Seconds that the Hub asks to wait for, None where it says nothing."""
    answered = answer(error)
    return None if answered is None else retry_after_s(answered.response.headers)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The Retry-After header: seconds, or a date."""
    value = headers.get("Retry-After", "")
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


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
