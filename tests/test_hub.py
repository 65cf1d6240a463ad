"""Publishing with the real clients to a Hub on the loopback interface (tests/hub_server.py)."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
from commands import Command
from hub_server import READ_TOKEN, TOKEN, Fault, Repo, running_hub, sha256
from publishing import Publisher, image_of, make_parcel, write_folder

import synth.publishing.parquet
from synth.base.errors import UserError
from synth.publishing.hub import asked_wait_s, connect, one_line, require_repo_name

CARD = "README.md"
pytestmark = pytest.mark.filterwarnings(
    "ignore:Use 'content=:DeprecationWarning"  # huggingface_hub 2.4 uploads with data=
)


@pytest.fixture
def hub():
    with running_hub() as hub:
        yield hub


@pytest.fixture(autouse=True)
def client(monkeypatch, tmp_path):
    """The client's own waits are noted, not waited; nothing comes from the user's home."""
    waits = []
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    patched = SimpleNamespace(sleep=waits.append, time=time.time, monotonic=time.monotonic)
    monkeypatch.setattr("huggingface_hub.utils._http.time", patched)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    huggingface_hub.utils.disable_progress_bars()
    yield waits
    huggingface_hub.utils.enable_progress_bars()


@pytest.fixture
def small_shards(monkeypatch):
    """About two images to a shard."""
    monkeypatch.setattr(synth.publishing.parquet, "SHARD_BYTES", 2000)


@pytest.fixture
def parcel(small_shards, tmp_path):
    """Five images of a nut: three shards, a card, a sheet and a manifest."""
    return make_parcel(tmp_path / "staging", write_folder(tmp_path / "sia"))


def holds(hub, parcel, repo="me/data"):
    """The repository has every file of the parcel, byte for byte, beside its .gitattributes."""
    there = {path: content for path, content in hub.repos[repo].files.items() if path[0] != "."}
    return there == {path: file.read_bytes() for path, file in parcel.files.items()}


def shards(parcel):
    return [path for path in parcel.files if path.endswith(".parquet")]


# What arrives


def test_a_publication_arrives_once_and_a_second_one_sends_nothing(hub, parcel, tmp_path):
    assert len(shards(parcel)) == 3
    sent = Publisher(hub)(parcel, tmp_path)
    assert holds(hub, parcel)
    assert hub.repos["me/data"].private
    assert sent.url == f"{hub.url}/datasets/me/data"
    assert (sent.num_files, sent.num_bytes) == (len(parcel.files), parcel.num_bytes)
    large = [file for path, file in parcel.files.items() if path.endswith((".parquet", ".png"))]
    assert sorted(hub.sent("PUT", "/lfs/")) == sorted(
        f"/lfs/{sha256(file.read_bytes())}" for file in large
    )
    hub.log.clear()
    again = Publisher(hub)(parcel, tmp_path)
    assert (again.num_files, again.num_bytes, again.card_was_edited) == (0, 0, False)
    assert {method for method, path in hub.log if "create" not in path} <= {"GET", "HEAD"}


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_connection_dropped_in_a_file_loses_nothing(hub, parcel, tmp_path, client, after):
    hub.faults = [Fault("PUT", "/lfs/", after=after)]
    Publisher(hub)(parcel, tmp_path)
    assert holds(hub, parcel)
    puts = hub.sent("PUT", "/lfs/")
    assert len(puts) == len(set(puts)) == 4
    assert len(client) == 1


def test_a_connection_that_drops_for_longer_than_the_client_tries(hub, parcel, tmp_path):
    hub.faults = [Fault("PUT", "/lfs/", after=1, times=6)]  # the client gives up after six
    publisher = Publisher(hub)
    publisher(parcel, tmp_path)
    assert holds(hub, parcel)
    assert publisher.waits == [1.0]
    assert "cannot be reached" in publisher.lines[0]
    assert len(hub.sent("PUT", "/lfs/")) == 4


def test_a_refusal_midway_then_a_rerun_sends_only_the_rest(hub, parcel, tmp_path):
    hub.faults = [Fault("PUT", "/lfs/", status=403, after=2)]
    with pytest.raises(UserError, match="lacks the right"):
        Publisher(hub)(parcel, tmp_path)
    first = hub.sent("PUT", "/lfs/")
    assert len(first) == 2
    assert set(hub.repos["me/data"].files) == {".gitattributes"}  # nothing half visible
    hub.log.clear()
    Publisher(hub)(parcel, tmp_path)
    second = hub.sent("PUT", "/lfs/")
    assert len(second) == 2
    assert not set(first) & set(second)
    assert holds(hub, parcel)


@pytest.mark.parametrize("path", ["/api/repos/create", "/commit/", "/tree/", "/preupload/"])
@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_hub_is_waited_for(hub, parcel, tmp_path, client, path, status):
    method = "GET" if path == "/tree/" else "POST"
    hub.faults = [Fault(method, path, status=status, headers={"Retry-After": "7"}, times=2)]
    publisher = Publisher(hub)
    publisher(parcel, tmp_path)
    assert holds(hub, parcel)
    assert len(hub.repos["me/data"].commits) == 2
    waits = publisher.waits + client  # its own tries or ours, as the route has it
    assert len(waits) == 2
    assert all(7 <= wait <= 8 for wait in waits)


@pytest.mark.parametrize("status", [0, 503])
def test_the_manifest_is_read_from_a_busy_hub(hub, parcel, tmp_path, client, status):
    Publisher(hub)(parcel, tmp_path)
    hub.faults = [Fault("HEAD", "/siaforge.json", status=status, times=3)]
    publisher = Publisher(hub)
    assert publisher(parcel, tmp_path).num_files == 0
    assert len(publisher.waits + client) >= 2
    assert not any(fault.times for fault in hub.faults)


def test_waits_double_up_to_a_limit_where_the_hub_names_none(hub, parcel, tmp_path):
    hub.faults = [Fault("POST", "/commit/", status=503, times=5)]
    publisher = Publisher(hub, longest_s=5.0)
    publisher(parcel, tmp_path)
    assert publisher.waits == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert len(publisher.lines) == 5
    assert "answers 503; try 2 of 6 in 1 s" in publisher.lines[0]


def test_a_commit_whose_answer_is_lost_is_not_made_twice(hub, parcel, tmp_path):
    hub.faults = [Fault("POST", "/commit/", lost=True)]
    publisher = Publisher(hub)
    publisher(parcel, tmp_path)
    assert len(publisher.waits) == 1
    assert len(hub.repos["me/data"].commits) == 2
    assert len(hub.sent("POST", "/commit/")) == 1
    assert holds(hub, parcel)


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (Fault("POST", "/commit/", status=503, times=99), "answers 503; run the same command"),
        (
            Fault("POST", "/commit/", status=429, headers={"Retry-After": "3600"}),
            "answers 429; run the same command again in 60 minutes",
        ),
        (Fault("POST", "/commit/", times=99), "cannot be reached"),
    ],
)
def test_a_hub_that_stays_away_is_given_up_and_nothing_is_lost(hub, parcel, tmp_path, fault, line):
    hub.faults = [fault]
    with pytest.raises(UserError, match=line):
        Publisher(hub, tries=3)(parcel, tmp_path)
    hub.faults, sent = [], len(hub.sent("PUT", "/lfs/"))
    Publisher(hub)(parcel, tmp_path)
    assert holds(hub, parcel)
    assert len(hub.sent("PUT", "/lfs/")) == sent


def test_no_network_is_one_line(parcel, tmp_path):
    with running_hub() as gone:
        publisher = Publisher(gone, tries=2)
    with pytest.raises(
        UserError, match=r"could not create me/data: http://127.0.0.1:\d+ cannot be"
    ):
        publisher(parcel, tmp_path)
    assert publisher.waits == [1.0]


def test_an_offline_client_is_told_apart(hub, parcel, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        Publisher(hub)(parcel, tmp_path)


def test_a_pass_in_an_address_is_not_shown():
    error = RuntimeError("refused for url (https://cas.example/xorb?X-Signature=secret) by it")
    assert one_line(error) == "refused for url (https://cas.example) by it"


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"Retry-After": "30"}, 30),
        ({"ratelimit": '"api";r=0;t=55'}, 55),  # what the Hub says of its own limits
        ({"ratelimit": '"api";r=9;t=55'}, None),
        ({"Retry-After": "soon"}, None),
        ({}, None),
    ],
)
def test_the_time_that_the_hub_names_is_waited(headers, wait_s):
    assert asked_wait_s(headers) == wait_s


# A repository that grows


def test_a_grown_folder_keeps_its_full_shards(hub, small_shards, tmp_path):
    staging, root = tmp_path / "staging", tmp_path / "sia"
    first = make_parcel(staging, write_folder(root, num=5))
    Publisher(hub)(first, staging)
    kept = {path: first.files[path].read_bytes() for path in shards(first)[:2]}
    hub.log.clear()
    grown = make_parcel(staging, write_folder(root, num=9))
    sent = Publisher(hub)(grown, staging)
    assert holds(hub, grown)
    assert {path: grown.files[path].read_bytes() for path in kept} == kept
    assert len(shards(grown)) == 5
    assert len(hub.sent("PUT", "/lfs/")) == 4  # the last shard, two new ones, the sheet
    assert sent.num_removed == 0


def test_shards_that_are_no_longer_needed_go_and_other_files_stay(hub, small_shards, tmp_path):
    first = make_parcel(tmp_path / "one", write_folder(tmp_path / "sia", num=5))
    Publisher(hub)(first, tmp_path)
    hub.repos["me/data"].files["notes.txt"] = b"of a colleague"
    smaller = make_parcel(tmp_path / "two", write_folder(tmp_path / "other", num=2))
    sent = Publisher(hub)(smaller, tmp_path)
    assert sent.num_removed == 2
    assert hub.repos["me/data"].files.pop("notes.txt") == b"of a colleague"
    assert holds(hub, smaller)


def test_an_edited_card_is_replaced_and_told(hub, parcel, tmp_path):
    Publisher(hub)(parcel, tmp_path)
    hub.repos["me/data"].files[CARD] += b"\nEdited in the browser."
    sent = Publisher(hub)(parcel, tmp_path)
    assert sent.card_was_edited
    assert holds(hub, parcel)


def test_a_category_is_added_beside_the_first(hub, parcel, tmp_path):
    Publisher(hub)(parcel, tmp_path)
    write_folder(tmp_path / "sia", "bolt")
    both = make_parcel(tmp_path / "both", tmp_path / "sia")
    hub.log.clear()
    Publisher(hub)(both, tmp_path)
    assert holds(hub, both)
    assert both.categories == ("bolt", "nut")
    assert len(hub.sent("PUT", "/lfs/")) == 4  # three shards of bolts and the sheet


# Who sees it


def test_it_becomes_public_only_when_asked_and_last(hub, parcel, tmp_path):
    Publisher(hub)(parcel, tmp_path, public=True)
    assert not hub.repos["me/data"].private
    routes = [path for method, path in hub.log if method in ("POST", "PUT")]
    assert routes[-1] == "/api/datasets/me/data/settings"
    with pytest.raises(UserError, match="is public, and --public was not given"):
        Publisher(hub)(parcel, tmp_path)


# What is refused


@pytest.mark.parametrize("repo", ["data", "a/b/c", "me/da ta", "me/data.git", "me/..", "", "me/"])
def test_a_malformed_name_is_refused(repo):
    with pytest.raises(UserError, match="must be ORG/NAME"):
        require_repo_name(repo)


def test_no_token_is_told_with_the_way_to_one():
    with pytest.raises(UserError, match="hf auth login"):
        connect()


def test_a_wrong_token_and_one_that_only_reads(hub, parcel, tmp_path):
    with pytest.raises(UserError, match="does not accept the token") as refused:
        Publisher(hub, token="hf_wrongTokenOfSomebody")(parcel, tmp_path)
    assert "wrongToken" not in str(refused.value)
    with pytest.raises(UserError, match="could not create me/data: the token lacks the right"):
        Publisher(hub, token=READ_TOKEN)(parcel, tmp_path)
    hub.repos["me/data"] = Repo()
    with pytest.raises(UserError, match="could not write to me/data: the token lacks the right"):
        Publisher(hub, token=READ_TOKEN)(parcel, tmp_path)
    assert not hub.objects


def test_a_repository_that_vanishes_is_named(hub, parcel, tmp_path):
    hub.faults = [Fault("GET", "/tree/", status=404, headers={"X-Error-Code": "RepoNotFound"})]
    with pytest.raises(UserError, match="could not read me/data: no such repository"):
        Publisher(hub)(parcel, tmp_path)


def test_a_repository_of_something_else_is_left_alone(hub, parcel, tmp_path):
    hub.repos["me/data"] = Repo(files={"train.csv": b"1,2", "README.md": b"# Mine"})
    with pytest.raises(
        UserError, match=r"did not put there \(README.md, train.csv\); give another"
    ):
        Publisher(hub)(parcel, tmp_path)
    assert len(hub.repos["me/data"].files) == 2
    assert not hub.objects


def test_another_dataset_another_kind_and_a_lost_category_are_refused(hub, parcel, tmp_path):
    Publisher(hub)(parcel, tmp_path)
    before = dict(hub.repos["me/data"].files)
    other = write_folder(tmp_path / "a", dataset="textures")
    with pytest.raises(UserError, match=r"holds source images of dataset mvtec.*of textures"):
        Publisher(hub)(make_parcel(tmp_path / "A", other), tmp_path)
    blended = write_folder(tmp_path / "b", kind="blended")
    with pytest.raises(UserError, match="these are blended images of mvtec"):
        Publisher(hub)(make_parcel(tmp_path / "B", blended), tmp_path)
    bolts = write_folder(tmp_path / "c", "bolt")
    with pytest.raises(UserError, match="also holds nut; give these folders too"):
        Publisher(hub)(make_parcel(tmp_path / "C", bolts), tmp_path)
    assert hub.repos["me/data"].files == before


# The whole command, in a process of its own


def environment(hub, home: Path) -> dict[str, str]:
    return os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(home),
        "XDG_CACHE_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
    }


PUBLISH_AND_LOAD = """
import json, sys
import numpy as np
import synth.cli

try:
    synth.cli.main()
except SystemExit as ended:
    assert ended.code == 0, ended.code
from datasets import get_dataset_config_names, load_dataset

for name in get_dataset_config_names("me/data"):
    data = load_dataset("me/data", name, split="train")
    for row in data:
        arrays = {k: np.asarray(row.pop(k)) for k in ("image", "mask") if k in row}
        print(json.dumps([name, row, {k: [v.shape, v.tobytes().hex()] for k, v in arrays.items()}]))

from pathlib import Path
from synth.data import hub_data
from synth.base.errors import UserError
from synth.base.progress import no_bars

try:
    hub_data.write_hub_dataset(Path("me/plain"), "plain", no_bars)
except UserError as error:
    print(error)
hub_data.SIA_COLUMNS = frozenset({"a column of nobody's"})  # as if they were another's images
print(hub_data.write_hub_dataset(Path("me/plain"), "plain", no_bars))
"""


def test_what_was_published_loads_with_every_row_and_pixel(hub, tmp_path):
    """Killed in the middle of sending, run again, then read back by `load_dataset`."""
    for category in ("nut", "bolt"):
        write_folder(tmp_path / "sia", category, kind="blended")
    words = ["publish", str(tmp_path / "sia"), "--repo", "me/data"]
    plain = make_parcel(tmp_path / "plain", write_folder(tmp_path / "other"), repo="me/plain")
    Publisher(hub)(plain, tmp_path, repo="me/plain")
    hub.log.clear()
    hub.objects.clear()
    env = environment(hub, tmp_path / "home")
    hub.faults = [Fault("PUT", "/lfs/", status=-1, after=1)]
    command = [sys.executable, "-m", "synth", *words]
    killed = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not hub.stalled.wait(0.1):
        assert killed.poll() is None, killed.communicate(timeout=20)
        assert time.monotonic() < deadline
    killed.send_signal(signal.SIGKILL)
    output = killed.communicate(timeout=20)[1]
    hub.stalled.clear()
    assert len(hub.objects) == 1
    built = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("sia.publish/*/*.parquet")}
    assert len(built) == 2

    command = [sys.executable, "-c", PUBLISH_AND_LOAD, *words]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert {path: path.stat().st_mtime_ns for path in built} == built
    puts = hub.sent("PUT", "/lfs/")
    assert len(puts) == len(set(puts)) == 3
    said, *lines, refused, own = ended.stdout.splitlines()
    assert said.startswith(f"published: {hub.url}/datasets/me/data (private;")

    rows = [json.loads(line) for line in lines]
    assert [name for name, _, _ in rows] == ["bolt"] * 5 + ["nut"] * 5
    for name, row, arrays in rows:
        metadata = tmp_path / f"sia/mvtec/{name}/metadata.jsonl"
        written = json.loads(metadata.read_text().splitlines()[row["index"]])
        assert row == {k: v for k, v in written.items() if not k.endswith("file_name")}
        image = image_of(name, row["index"])
        mask = (image_of(name + "mask", row["index"])[..., 0] > 128).astype(np.uint8) * 255
        assert arrays["image"] == [list(image.shape), image.tobytes().hex()]
        assert arrays["mask"] == [list(mask.shape), mask.tobytes().hex()]

    # and through --dataset hub, whose reader knows any dataset of images, but for anomalies
    assert refused.startswith("me/plain: SIA images, which show anomalies")
    assert sorted(path.read_bytes() for path in Path(own).glob("train/good/*")) == sorted(
        path.read_bytes() for path in tmp_path.glob("other/mvtec/nut/images/000/*.png")
    )

    texts = [output, ended.stdout, ended.stderr]
    assert not any(TOKEN in text for text in texts)
    assert not any(
        TOKEN.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()
    )
    card = (tmp_path / "sia/mvtec/nut/README.md").read_text()
    assert "license: cc-by-nc-sa-4.0" in card
    assert "configs" not in card


# The command, in this process, as far as it needs no Hub


@pytest.fixture
def run(monkeypatch, capsys):
    return Command(monkeypatch, capsys)


def test_a_dry_run_makes_everything_says_it_and_needs_no_token(run, tmp_path):
    write_folder(tmp_path / "sia")
    ended = run("synth", "publish", tmp_path / "sia", "--repo", "me/data", "--dry-run")
    assert ended.code == 0, ended.err
    assert "repository: me/data (private)" in ended.out
    assert "licence: CC BY-NC-SA 4.0 (cc-by-nc-sa-4.0)" in ended.out
    for path in ("README.md", "nut/train-00000.parquet", "sheet.png", "siaforge.json"):
        assert (tmp_path / "sia.publish" / path).stat().st_size > 0
        assert path in ended.out
    assert ended.out.splitlines()[-1].startswith("nothing was sent")


def test_the_command_refuses_in_one_line(run, tmp_path):
    good = write_folder(tmp_path / "sia")
    words = ("synth", "publish", tmp_path / "sia", "--repo", "me/data")
    assert "no Hugging Face token" in run.refused(*words)
    dry = (*words, "--dry-run")
    assert "drops what MVTec AD asks for" in run.refused(*dry, "--licence", "mit")
    assert run(*dry, "--licence", "mit", "--i-have-the-rights").code == 0
    assert "--staging: got" in run.refused(*dry, "--staging", good / "here")
    assert "no SIA folder" in run.refused("synth", "publish", tmp_path / "none", *dry[3:])
    assert "must be ORG/NAME" in run.refused(*dry[:-2], "nameless")
    (good / "images/000/000002.png").write_bytes(b"")
    refused = run.refused(*dry)
    assert "000002.png: empty" in refused
    assert "synth validate" in refused


def test_a_card_that_a_person_wrote_stays(run, tmp_path):
    folder = write_folder(tmp_path / "sia")
    words = ("synth", "publish", folder, "--repo", "me/data", "--dry-run")
    assert run(*words).code == 0
    assert "# Synthetic anomalies: MVTec AD (nut)" in (folder / CARD).read_text()
    (folder / CARD).write_text("Mine.")
    ended = run(*words)
    assert ended.code == 0
    assert "stays as it is" in ended.err
    assert (folder / CARD).read_text() == "Mine."


def test_folders_that_do_not_belong_together_are_refused(run, tmp_path):
    one, two = write_folder(tmp_path / "a"), write_folder(tmp_path / "b", dataset="textures")
    words = ("--repo", "me/data", "--dry-run")
    assert "its dataset is 'textures'" in run.refused("synth", "publish", one, two, *words)
    again = write_folder(tmp_path / "c")
    assert "category 'nut', as" in run.refused("synth", "publish", one, again, *words)
    blended = write_folder(tmp_path / "d", "bolt", kind="blended")
    assert "its kind is 'blended'" in run.refused("synth", "publish", one, blended, *words)
