"""Energy is read where the machine shows it, in the form in which Linux shows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from foveal.measuring.energy import PackageEnergy, energy_counter, joules_per_run


def zone(folder: Path, name: str, kind: str, used: int) -> Path:
    """A counter of the kernel's powercap interface, in microjoules; it starts again at 1000."""
    (folder / name).mkdir()
    for file, content in {"name": kind, "energy_uj": used, "max_energy_range_uj": 1000}.items():
        (folder / name / file).write_text(f"{content}\n")
    return folder / name / "energy_uj"


def test_packages_are_added_up_and_counters_start_again(tmp_path: Path) -> None:
    """Parts of a package, and the platform that contains it, would count twice."""
    first, second = zone(tmp_path, "intel-rapl:0", "package-0", 900), zone(tmp_path, "intel-rapl:1", "package-1", 10)
    part, platform = zone(tmp_path, "intel-rapl:0:0", "core", 0), zone(tmp_path, "intel-rapl:2", "psys", 0)
    read = PackageEnergy(tmp_path)
    for file, value in ((first, 100), (second, 60), (part, 500), (platform, 500)):
        file.write_text(f"{value}\n")
    assert read() == pytest.approx(250e-6)
    first.write_text("150\n")
    assert read() == pytest.approx(300e-6)


def test_without_counters_there_is_no_energy(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileNotFoundError):
            PackageEnergy(folder)
    zone(tmp_path, "intel-rapl:0", "package-0", 0).write_text("not a number\n")
    with pytest.raises(ValueError, match="not a number"):
        PackageEnergy(tmp_path)


def test_energy_of_a_run() -> None:
    used = iter([100.0, 160.0])
    runs: list[int] = []
    joules = joules_per_run(lambda: runs.append(1), lambda: next(used), seconds=0.001)
    assert joules == pytest.approx(60 / len(runs))


def test_the_processor_of_this_machine() -> None:
    """It is read, or it is absent; either way nothing is raised."""
    read = energy_counter(None)
    assert read is None or read() <= read()
