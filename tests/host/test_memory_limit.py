"""The memory that control groups leave: nested groups of both versions, in made-up trees of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from aristos.host import memory_limit
from aristos.transport import capacity

GIB = 1 << 30
V1 = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n"
V2 = "31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
NONE = 9223372036854771712  # how version 1 says that there is no limit


def tree(root: Path, cgroup: str, mounts: str, groups: dict[str, tuple[object, object]], stat: str = "") -> Path:
    """Write /proc and the groups: folder -> (limit, use)."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    (root / "proc/self/mountinfo").write_text("23 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + mounts)
    for name, values in groups.items():
        group = root / "sys/fs/cgroup" / name
        group.mkdir(parents=True, exist_ok=True)
        first = " - cgroup " in mounts and not name.startswith("unified")
        files = memory_limit.V1 if first else memory_limit.V2
        for file, value in zip((files.limit, files.used), values):
            (group / file).write_text(f"{value}\n")
        (group / "memory.stat").write_text(stat)
    return root


def test_a_limit_of_a_group_above_binds(tmp_path):
    job = {"": ("max", 9 * GIB), "slurm": (8 * GIB, 3 * GIB), "slurm/job_7": (6 * GIB, 2 * GIB)}
    step = {"slurm/job_7/step_0": ("max", GIB), "slurm/job_7/step_0/task_1": (100 * GIB, GIB)}
    root = tree(tmp_path, "0::/slurm/job_7/step_0/task_1\n", V2, job | step)
    assert memory_limit.room(root) == 4 * GIB


def test_a_full_group_far_above_leaves_nothing(tmp_path):
    root = tree(tmp_path, "0::/a/b\n", V2, {"a": (GIB, 2 * GIB), "a/b": (GIB, 0)})
    assert memory_limit.room(root) == 0


def test_version_1_beside_version_2(tmp_path):
    both = V1 + "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    groups = {"memory": (NONE, 9 * GIB), "memory/slurm/uid_5": (3 * GIB, GIB), "memory/slurm/uid_5/job": (NONE, GIB)}
    cgroup = "9:name=systemd:/x\n4:cpu,memory:/slurm/uid_5/job\n1:cpuset:/y\n0::/\n"
    assert memory_limit.room(tree(tmp_path, cgroup, both, groups)) == 2 * GIB


def test_a_container_mounts_its_own_group_alone(tmp_path):
    mount = V1.replace(" / /sys", " /docker/a\\040b /sys")
    root = tree(tmp_path, "4:memory:/docker/a b/job\n", mount, {"memory": (NONE, 0), "memory/job": (GIB, 1000)})
    assert memory_limit.room(root) == GIB - 1000


@pytest.mark.parametrize("path", ["/elsewhere/job", "/../../x"])
def test_a_group_outside_the_mounted_one_counts_as_the_mounted_one(path, tmp_path):
    mount = V2.replace(" / /sys", " /docker/a /sys")
    assert memory_limit.room(tree(tmp_path, f"0::{path}\n", mount, {"": (GIB, 0), "x": (5, 0)})) == GIB


def test_files_in_the_page_cache_do_not_count_as_use(tmp_path):
    stat = f"anon 5\ninactive_file {GIB}\nactive_file 1000\nshmem 7\n"
    assert memory_limit.room(tree(tmp_path, "0::/job\n", V2, {"job": (2 * GIB, 2 * GIB)}, stat)) == GIB + 1000


@pytest.mark.parametrize(
    ("cgroup", "mounts", "values"),
    [
        ("", "", ("max", 0)),
        ("0::/\n", V2, ("max", 0)),
        ("0::/\n", V2, ("9" * 5000, 0)),
        ("0::/\n", V2, (-5, 0)),
        ("0::/\n", V2, (GIB, "much")),
        ("0::/\n", V2, ("", "")),
        ("0::/\n", "31 23 0:28 / /sys/fs/cgroup - cgroup2\n", (GIB, 0)),
        ("0::/\n", V2.replace("/sys/fs", "/../sys/fs"), (GIB, 0)),
        ("0::/\n", V2.replace("/sys/fs", "/\\000"), (GIB, 0)),
        ("0::" + "/a" * 500_000, V2, (GIB, 0)),
        ("\0:::::\n0\n::\n4:memory\n", V2, (GIB, 0)),
    ],
)
def test_files_that_cannot_be_understood_set_no_limit(cgroup, mounts, values, tmp_path):
    assert memory_limit.room(tree(tmp_path, cgroup, mounts, {"": values})) is None


def test_no_files_are_no_limit(tmp_path):
    assert memory_limit.room(tmp_path) is None


def test_free_memory_is_what_the_groups_leave(monkeypatch):
    free = capacity.free_memory()
    assert free is not None
    monkeypatch.setattr(memory_limit, "room", lambda: free // 1000)
    assert capacity.free_memory() == free // 1000
    monkeypatch.setattr(memory_limit, "room", lambda: None)
    assert capacity.free_memory() > free // 1000
