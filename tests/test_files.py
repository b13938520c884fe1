"""Files are written completely or not at all: after errors, with obstacles in the path, and after kill -9."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from foveal.errors import InputError
from foveal.files import atomic_write, ensure_folder, remove_leftovers


def test_success_replaces(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.bin"
    for content in (b"first", b"second"):
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
        assert path.read_bytes() == content
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as temporary:
        temporary.write_bytes(b"half" * (1 // 0))
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.bin"]


def test_kill_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    """And a temporary file, which others leave alone until the process has ended."""
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    code = (
        "import sys, time\nfrom foveal.files import atomic_write\n"
        "with atomic_write(sys.argv[1]) as temporary:\n"
        "    file = temporary.open('wb'); file.write(b'half'); file.flush()\n"
        "    print('writing', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    temporary = next(p.name for p in tmp_path.iterdir() if p != path)
    (tmp_path / ".mine-foveal-notes.txt").write_text("not a temporary file")
    remove_leftovers(tmp_path)
    assert (tmp_path / temporary).exists()  # its process lives
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert path.read_bytes() == b"old"
    ensure_folder(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".mine-foveal-notes.txt", "file.bin"]


@pytest.mark.parametrize("delay", [0.0, 0.003, 0.007, 0.013, 0.029, 0.061])
def test_kill_at_any_moment_leaves_a_complete_file(tmp_path: Path, delay: float) -> None:
    """A process that rewrites a file repeatedly is killed at any moment: the file is one complete version."""
    path = tmp_path / "file.bin"
    path.write_bytes(b"0" * 100_000)
    code = (
        "import sys, itertools\nfrom foveal.files import atomic_write\nprint('go', flush=True)\n"
        "for i in itertools.count():\n"
        "    with atomic_write(sys.argv[1]) as temporary: temporary.write_bytes(b'%d' % (i % 10) * 100_000)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "go\n"
    time.sleep(delay)
    process.kill()
    process.communicate()
    content = path.read_bytes()
    assert len(content) == 100_000
    assert len(set(content)) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on file sizes")
def test_full_disk_is_explained_and_leaves_the_old_file(tmp_path: Path) -> None:
    """A limit on file sizes in a separate process simulates a full disk: writes fail half-way."""
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    code = (
        "import resource, signal, sys\nfrom foveal.files import atomic_write\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "with atomic_write(sys.argv[1]) as temporary: temporary.write_bytes(bytes(5000))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"InputError: cannot write {path}: File too large" in done.stderr
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.bin"]


def test_impossible_places_are_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write"), atomic_write(tmp_path / "file" / "below.bin"):
        pass
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="cannot write"), atomic_write(tmp_path / "folder") as temporary:
        temporary.write_bytes(b"x")
