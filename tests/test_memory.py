"""Free memory within the limits of control groups, on trees as Linux shows them; freed memory."""

import platform
import resource
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from synth.base.memory import free_in_groups, free_memory

TOP_V2, TOP_V1 = "sys/fs/cgroup", "sys/fs/cgroup/memory"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Write a system's files and say how much is free: of 1000 bytes in the whole machine."""
    memory = psutil.virtual_memory()._replace(available=1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)

    def free(groups: str, **files: str) -> int:
        for name, text in {"proc/self/cgroup": groups, **files}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return free_memory(tmp_path)

    return free


def v2(folder, limit, used, cache=0):
    stat = f"anon 7\nfile 9\ninactive_file {cache}\n"
    values = {"memory.max": f"{limit}\n", "memory.current": f"{used}\n", "memory.stat": stat}
    return {f"{TOP_V2}{folder}/{name}": text for name, text in values.items()}


def v1(folder, limit, used, cache=0):
    stat = f"inactive_file 1\ntotal_inactive_file {cache}\n"
    values = {"limit_in_bytes": f"{limit}\n", "usage_in_bytes": f"{used}\n"}
    files = {f"{TOP_V1}{folder}/memory.{name}": text for name, text in values.items()}
    return {**files, f"{TOP_V1}{folder}/memory.stat": stat}


def test_without_groups_it_is_the_machines(tmp_path, machine):
    assert free_memory(tmp_path / "nothing") == 1000
    assert machine("") == 1000
    assert machine("nonsense\n0::/a\n") == 1000


def test_a_container_of_version_2(machine):
    assert machine("0::/\n", **v2("", 500, 100, cache=30)) == 500 - 100 + 30


def test_a_container_of_version_1_whose_path_is_the_hosts(machine):
    groups = "5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n0::/\n"
    assert machine(groups, **v1("", 400, 150, cache=20)) == 270


def test_the_tightest_of_the_groups_above_counts(machine):
    files = v2("/a/b", 900, 0) | v2("/a", 600, 450) | v2("", "max", 999)
    assert machine("0::/a/b\n", **files) == 150
    assert machine("0::/a/b/c\n", **files) == 150  # a folder that is not shown
    assert machine("0::/other\n", **files) == 1000


def test_a_limit_above_the_machine_changes_nothing(machine):
    assert machine("4:memory:/\n", **v1("", 9223372036854771712, 150)) == 1000


def test_a_group_that_is_full_has_nothing_free(machine):
    assert machine("0::/\n", **v2("", 500, 600)) == 0


def test_this_machine():
    available = psutil.virtual_memory().available
    assert 0 < free_memory() <= available * 1.1
    assert all(free >= 0 for free in free_in_groups(Path("/")))


# --- what was freed ------------------------------------------------------------------------------

FAULTS = """
import numpy as np
from resource import RUSAGE_SELF, getrusage
from synth.base.memory import keeping_freed_memory

def faults():
    before = getrusage(RUSAGE_SELF).ru_minflt
    np.ones(64 << 20, np.uint8)
    return getrusage(RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1])

@keeping_freed_memory()
def kept():
    faults()
    return faults(), resident()

before = resident()
faults()
apart = faults()
inside, held = kept()
print(apart, inside, faults(), before, held, resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's malloc")
def test_a_training_gets_a_large_block_again_without_a_page_fault():
    """Each page of a new block is a fault when it is first written; huge ones count 512 times."""
    ended = subprocess.run(
        [sys.executable, "-c", FAULTS], check=True, capture_output=True, timeout=300
    )
    apart, inside, afterwards, before, held, in_the_end = map(int, ended.stdout.split())
    num_pages = (64 << 20) // resource.getpagesize()
    assert inside < 10 < num_pages / 1024 <= min(apart, afterwards)
    assert held - before > num_pages * 0.9
    assert in_the_end - before < num_pages * 0.1
