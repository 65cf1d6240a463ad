import errno
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from disks import small_disk
from rights import ordinary_rights
from safetensors.torch import load_file, save_file

from synth.base.claims import claim_folder
from synth.base.errors import UserError
from synth.base.files import (
    atomic_path,
    config_differences,
    read_json,
    remove_partials,
    write_json,
    write_text,
)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    with small_disk(tmp_path / "disk", 64) as disk:
        yield disk


def test_a_full_disk_keeps_the_old_text_and_nothing_else(disk: Path) -> None:
    path = disk / "a.txt"
    write_text(path, "old")
    with pytest.raises(UserError, match=r"a\.txt: not written, the disk is full; free some space"):
        write_text(path, "x" * 200_000)
    assert path.read_text() == "old"
    assert os.listdir(disk) == ["a.txt"]


def test_a_full_disk_is_recognised_through_safetensors(disk: Path) -> None:
    path = disk / "a.safetensors"
    with pytest.raises(UserError, match="the disk is full"), atomic_path(path) as partial:
        save_file({"a": torch.zeros(100_000)}, partial)
    assert os.listdir(disk) == []


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_others_may_read_what_the_umask_lets_them(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with atomic_path(tmp_path / "a.safetensors") as partial:
            save_file({"a": torch.zeros(3)}, partial)  # for the owner alone, were it up to it
        write_text(tmp_path / "a.txt", "text")
    finally:
        os.umask(before)
    for name in ("a.safetensors", "a.txt"):
        assert (tmp_path / name).stat().st_mode & 0o777 == mode, name
    assert load_file(tmp_path / "a.safetensors")["a"].tolist() == [0, 0, 0]


def test_a_full_disk_without_a_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_text(tmp_path / "a", "old")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="the disk is full"):
        write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_place_that_cannot_be_written_names_reason_and_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"not written \(.+\); choose a folder"):
        write_text(tmp_path / "file" / "a.txt", "")


def test_an_error_in_the_block_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    with pytest.raises(KeyError), atomic_path(tmp_path / "a") as partial:  # noqa: PT012
        partial.write_text("half")
        raise KeyError
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_partials_of_a_killed_process_are_removed_and_others_are_not(tmp_path: Path) -> None:
    for name in (".a[1].1234abcd.partial", ".b.1234abcd.partial", "a[1]"):
        (tmp_path / name).touch()
    remove_partials(tmp_path / "a[1]")
    assert sorted(os.listdir(tmp_path)) == [".b.1234abcd.partial", "a[1]"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "damaged"), (b"\xff\xfe", "damaged"), (b"", "damaged"), (b"[1]", "got list")],
)
def test_damaged_json_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.json: .*{message}"):
        read_json(tmp_path / "a.json")


def test_missing_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.json: no such file"):
        read_json(tmp_path / "a.json")


def test_json_that_cannot_be_reached_is_one_line(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {})
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.json").chmod(0)
    with ordinary_rights():
        for name, words in (
            ("a.json", r"a\.json: cannot be read \(Permission denied\); check the file"),
            ("folder", r"folder: cannot be read \(Is a directory\)"),
            ("a.json/b.json", "no such file; is this the folder that you meant"),
            (f"{'x' * 300}/a.json", "File name too long"),
        ):
            with pytest.raises(UserError, match=words):
                read_json(tmp_path / name)


def test_json_comes_back_as_it_was(tmp_path: Path) -> None:
    value = {"ä": [1, 2.5, None], "b": {"c": [[], [[1, -2e-7], [math.inf]], "[\n 1,\n 2\n]"]}}
    path = tmp_path / "deep" / "a.json"
    write_json(path, value)
    assert read_json(path) == value
    assert [line.strip() for line in path.read_text().splitlines()][1:3] == [
        '"\\u00e4": [1, 2.5, null],',
        '"b": {',
    ]
    assert "[1, -2e-07]," in path.read_text()


def test_long_values_that_differ_are_cut() -> None:
    (line,) = config_differences({"a": {"b": list(range(300))}}, {"a": {"b": 1}})
    assert re.fullmatch(r"a\.b: \[0, 1, .* \.\.\. there, 1 here", line)
    assert len(line) < 130


def test_a_claimed_folder_goes_on_with_equal_and_refuses_another_configuration(
    tmp_path: Path,
) -> None:
    config = {"seed": 0, "unet": {"size": (64, 64), "channels": 3}}
    assert not claim_folder(tmp_path / "out", config)
    assert claim_folder(tmp_path / "out", config)
    other = {"seed": 0, "unet": {"size": (64, 32), "channels": 3}}
    with pytest.raises(UserError, match=r"unet\.size: \[64, 64\] there, \[64, 32\] here") as error:
        claim_folder(tmp_path / "out", other)
    assert "seed" not in str(error.value)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["unet"]["size"] == [64, 64]


def test_a_folder_without_its_configuration_is_claimed_anew(tmp_path: Path) -> None:
    (tmp_path / "half-made.bin").touch()
    assert not claim_folder(tmp_path, {"seed": 0})
    assert read_json(tmp_path / "config.json") == {"seed": 0}


def test_differences_name_added_removed_and_nested_fields() -> None:
    old, new = {"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"c": 2, "d": 4}, "e": 5}
    assert config_differences(old, new) == [
        "a: 1 there, null here",
        "b.d: 3 there, 4 here",
        "e: null there, 5 here",
    ]
    assert config_differences(new, new) == []


def test_a_folder_in_which_nothing_was_made_yet_can_be_taken_over(tmp_path: Path) -> None:
    work = tmp_path / "state"
    assert not claim_folder(tmp_path, {"seed": 0}, work=work)
    assert claim_folder(tmp_path, {"seed": 0}, work=work)
    assert not claim_folder(tmp_path, {"seed": 1}, work=work)
    work.touch()
    with pytest.raises(UserError, match="seed: 1 there, 2 here"):
        claim_folder(tmp_path, {"seed": 2}, work=work)
