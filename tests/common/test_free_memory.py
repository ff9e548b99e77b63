"""The free memory of the machine and of a control group."""

from __future__ import annotations

from streamloader.common import free_memory


def test_free_memory_is_the_lower_of_machine_and_control_group(tmp_path, monkeypatch):
    limit, usage, stat = (tmp_path / name for name in ("max", "current", "stat"))
    usage.write_text("7000\n")
    stat.write_text("anon 5000\ninactive_file 1500\n")
    monkeypatch.setattr(free_memory, "_CGROUP_FILES", ((str(limit), str(usage), str(stat)),))
    machine = free_memory.free_memory()
    assert machine > 1 << 20
    limit.write_text("10000\n")
    assert free_memory.free_memory() == 10000 - 7000 + 1500
    limit.write_text("6000\n")
    stat.write_text("anon 5000\n")
    assert free_memory.free_memory() == 0
    limit.write_text("max\n")
    assert free_memory.free_memory() > 1 << 20
