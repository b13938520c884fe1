"""Building the scan's kernel: once per compiler, and the fallback without a compiler."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from foveal.errors import DependencyError
from foveal.layers.scan import cpu
from helpers.scans import ROOT, difference, needs_compiler, scan, tensors


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder, and no library loaded yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    forget()
    yield tmp_path / "foveal"
    forget()


def forget() -> None:
    cpu._library.cache_clear()
    cpu._function.cache_clear()


def check_auto() -> None:
    inputs = tensors(1, 4, 30, 2)
    assert difference(scan(inputs, "auto", torch.float32)[0], scan(inputs, "loop")[0]) < 3e-6


@needs_compiler
def test_the_kernel_is_built_once(cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    check_auto()
    assert capfd.readouterr().err == f"compiling the selective scan for this CPU (once) into {cache}\n"
    (library,) = cache.iterdir()
    built = library.stat().st_mtime_ns
    forget()
    check_auto()
    assert capfd.readouterr().err == ""
    assert [path.stat().st_mtime_ns for path in cache.iterdir()] == [built]


@needs_compiler
@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands in for a compiler")
def test_another_compiler_gets_a_library_of_its_own(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for option in ("-O0", "-Og"):
        compiler = tmp_path / f"compiler{option}"
        compiler.write_text(f'#!/bin/sh\nexec {shutil.which("c++")} "$@" {option}\n')
        compiler.chmod(0o755)
        monkeypatch.setenv("CXX", str(compiler))
        forget()
        check_auto()
    assert len(list(cache.iterdir())) == 2


def test_without_a_compiler_the_chunked_form_is_used(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.warns(RuntimeWarning, match=r"'chunked' instead: no C\+\+ compiler found \(c\+\+, g\+\+") as said:
        check_auto()
    assert len(said) == 1
    check_auto()  # a second warning would be an error
    with pytest.raises(DependencyError, match=r"method='kernel' needs a C\+\+ compiler.*method='chunked'"):
        scan(tensors(1, 2, 3, 1), "kernel")
    assert not cache.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands in for a compiler")
def test_a_compiler_that_fails_is_not_asked_again_at_once(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No part of a library is left; the record of the failure counts for an hour and for the same PATH."""
    compiler, calls = tmp_path / "broken", tmp_path / "calls"
    script = (
        f'#!/bin/sh\ncase "$*" in *-dM*) exit 0;; esac\necho call >> {calls}\necho "cc1plus: out of luck" >&2\nexit 1\n'
    )
    compiler.write_text(script)
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))

    def attempts() -> int:
        forget()
        with pytest.warns(RuntimeWarning, match=r"'chunked' instead: .*broken: cc1plus: out of luck"):
            check_auto()
        return len(calls.read_text().splitlines())

    assert attempts() == 1
    (record,) = cache.iterdir()
    assert record.suffix == ".failed"
    assert attempts() == 1
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert attempts() == 2
    an_hour_ago = record.stat().st_mtime - 3601
    os.utime(record, (an_hour_ago, an_hour_ago))
    assert attempts() == 3
    record.unlink()
    assert attempts() == 4


@needs_compiler
def test_a_cache_that_cannot_be_written(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.warns(RuntimeWarning, match="'chunked' instead: cannot write"):
        check_auto()


def test_the_source_is_part_of_the_package() -> None:
    assert cpu.SOURCE.is_file()
    assert cpu.SOURCE.is_relative_to(ROOT / "src" / "foveal")
