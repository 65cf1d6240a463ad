"""Several processes, and killed ones, at one SIA folder."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from limits import killed_after

from synth.base.claims import claim_folder
from synth.base.errors import DataWarning, UserError
from synth.base.locks import sole_user, take_lock
from synth.sia.writer import Item, SiaHeader, write_sia

ROOT = Path(__file__).parents[1]
PROGRAM = """
    import sys, time
    from pathlib import Path
    import numpy as np
    import synth.sia.writer
    from synth.sia.writer import Item, SiaHeader, write_sia

    def make_items(indices):
        for index in indices:
            time.sleep(0.004)
            rng = np.random.default_rng(index)
            yield Item(index, rng.integers(0, 256, (8, 10, 3), dtype=np.uint8), None, {})

    synth.sia.writer.SAVE_SECONDS = 0.05
    header = SiaHeader("source", "data", "nut", {})
    print(write_sia(Path(sys.argv[1]), header, int(sys.argv[2]), make_items).num_images)
"""


def make_items(indices: Iterable[int]) -> Iterator[Item]:
    for index in indices:
        rng = np.random.default_rng(index)
        yield Item(index, rng.integers(0, 256, (8, 10, 3), dtype=np.uint8), None, {})


def write(folder: Path, num: int, process: int = 0, num_processes: int = 1) -> int:
    header = SiaHeader("source", "data", "nut", {})
    share = {"process": process, "num_processes": num_processes}
    return write_sia(folder, header, num, make_items, **share).num_images


def start(folder: Path, num: int) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(folder), str(num)]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def wait_for_images(folder: Path, num: int) -> int:
    """How many images the folder has, once they are `num` or more."""
    deadline = time.monotonic() + 300
    while (count := len(list(folder.glob("images/*/*.png")))) < num:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return count


def test_a_killed_process_loses_little_and_is_continued_to_the_same_bytes(tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = start(killed, 250)
    wait_for_images(killed, 150)
    process.kill()
    process.communicate(timeout=60)
    there = wait_for_images(killed, 150)
    assert there < 250
    assert list(killed.glob("shards/.*.lock"))
    assert not (killed / "metadata.jsonl").exists()
    assert write(killed, 250) <= 250 - there + 40  # what came since the last record
    write(whole, 250)
    assert contents(killed) == contents(whole)


def test_the_same_command_twice_divides_the_work_and_outlives_a_kill(tmp_path: Path) -> None:
    shared, whole = tmp_path / "shared", tmp_path / "whole"
    first, second = start(shared, 500), start(shared, 500)
    wait_for_images(shared, 150)
    first.kill()
    first.communicate(timeout=60)
    second.communicate(timeout=300)
    assert second.returncode == 0
    assert (shared / "metadata.jsonl").exists()
    third, fourth = start(shared, 900), start(shared, 900)
    made = [int(process.communicate(timeout=300)[0]) for process in (third, fourth)]
    assert sum(made) == 400  # nothing twice
    write(whole, 900)
    assert contents(shared) == contents(whole)


@pytest.mark.parametrize("links", [True, False])
def test_of_several_configurations_at_one_moment_one_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def unsupported(source: Path, target: Path) -> None:
        raise PermissionError(1, "no hard links here")

    if not links:
        monkeypatch.setattr("os.link", unsupported)
    for attempt in range(20):
        folder, taken, refused = tmp_path / str(attempt), list[int](), list[str]()
        barrier = threading.Barrier(4)

        def claim(seed: int) -> None:
            barrier.wait(60)  # noqa: B023
            try:
                claim_folder(folder, {"seed": seed})  # noqa: B023
            except UserError as error:
                refused.append(str(error))  # noqa: B023
            else:
                taken.append(seed)  # noqa: B023

        threads = [threading.Thread(target=claim, args=(seed,), daemon=True) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(taken) == 1
        assert len(refused) == 3
        assert all("made with another configuration" in line for line in refused)
        assert json.loads((folder / "config.json").read_text()) == {"seed": taken[0]}
        assert len(list(folder.iterdir())) == 1


def test_without_locks_shares_are_fixed_and_the_bytes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(file: object, operation: int) -> None:
        raise OSError(37, "No locks available")

    whole, shared = tmp_path / "whole", tmp_path / "shared"
    write(whole, 250)
    monkeypatch.setattr("fcntl.flock", unsupported)
    with pytest.warns(DataWarning, match="its file system has no locks .No locks available"):
        assert write(shared, 250, 1, 2) == 100
    with pytest.warns(DataWarning, match="make sure that no other command writes into it"):
        assert write(shared, 250, 0, 2) == 150
    assert contents(shared) == contents(whole)


# Locks


def test_a_lock_is_held_by_one_and_gone_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "lock"
    held = take_lock(path)
    assert held is not None
    assert take_lock(path) is None
    held.release()
    assert not path.exists()
    again = take_lock(path)
    assert again is not None
    again.release()


def test_waiting_for_a_lock_ends_when_it_is_let_go(tmp_path: Path) -> None:
    path, order = tmp_path / "lock", list[str]()
    held = take_lock(path)
    assert held is not None

    def wait() -> None:
        lock = take_lock(path, wait=True)
        order.append("taken")
        assert lock is not None
        assert path.exists()
        lock.release()

    threads = [threading.Thread(target=wait, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    order.append("let go")
    held.release()
    for thread in threads:
        thread.join(60)
    assert order == ["let go", "taken", "taken", "taken"]
    assert not path.exists()


def test_a_lock_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="not written"):
        take_lock(tmp_path / "file" / "lock")


LOCKED = """
    import os, signal, sys, time
    from pathlib import Path
    from synth.base.locks import sole_user

    with sole_user(Path(sys.argv[1])):
        if os.fork() == 0:
            print("held", flush=True)  # the worker has started
        time.sleep(60)
"""


def test_a_folder_is_free_when_its_command_is_killed_and_a_worker_lives_on(tmp_path: Path) -> None:
    words = [sys.executable, "-c", textwrap.dedent(LOCKED), str(tmp_path)]
    with (
        subprocess.Popen(
            words, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
        ) as process,
        killed_after(process, 120),
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match="another command is at work in it"),
            sole_user(tmp_path),
        ):
            raise AssertionError
        process.kill()
        process.wait(timeout=60)
        try:
            with sole_user(tmp_path):
                pass
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # the worker
    assert not any(tmp_path.iterdir())
