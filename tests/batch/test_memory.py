"""20,000 images: the memory of the driver and of the workers does not grow with their number."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from helpers.batch_jobs import MODEL, children, entries, names_in, pictures, start

pytestmark = pytest.mark.long
COUNT = 20_000


def resident(pid: int) -> int:
    """Memory of a process in KiB; 0: it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")), 0)


def test_memory_stays_flat(tmp_path: Path) -> None:
    """From a quarter of the work to its end neither grows by 24 MiB, and each image is once in the results."""
    different = pictures(tmp_path / "some", 50, (32, 48))
    folder = tmp_path / "in"
    for index in range(COUNT):
        path = folder / f"{index % 100:02}" / f"{index:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(tmp_path / "some" / different[index % 50], path)
    out, log = tmp_path / "out", tmp_path / "log"
    process = start(folder, out, "--model", MODEL, "--result", "shares", "--part-size", 100, errors=log)
    seen: list[tuple[int, int, int]] = []  # parts, memory of the driver, of its largest worker
    while process.poll() is None:
        workers = [memory for pid in children(process.pid) if (memory := resident(pid))]
        if workers and (driver := resident(process.pid)):
            seen.append((entries(out), driver, max(workers)))
        time.sleep(0.5)
    assert process.returncode == 0, log.read_text()
    quarter, half = COUNT // 400, COUNT // 200
    for index, name in ((1, "driver"), (2, "worker")):
        early = max(row[index] for row in seen if row[0] <= half and row[0] >= quarter)
        late = max(row[index] for row in seen if row[0] > half)
        print(f"{name}: {early >> 10} MiB in the second quarter, {late >> 10} MiB later")
        assert late - early <= 24 << 10
    expected = sorted(f"{index % 100:02}/{index:05}.png" for index in range(COUNT))
    assert names_in(out) == expected
    assert f"{COUNT} of {COUNT} images" in log.read_text()
    assert os.path.getsize(log) < 100_000
