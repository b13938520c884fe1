"""State on disk: a process that is killed at any moment resumes to the same bytes; what differs is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import foveal
from foveal.errors import ConfigError, InputError
from foveal.streaming import maps, run
from foveal.streaming.maps import DiskMap
from foveal.streaming.regions import Extent, Region
from helpers.processes import run_until_killed
from helpers.streams import predictor_for, segmenter, stream_until, stripes

TILE = 32


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Weights and an image."""
    weights, image = tmp_path / "weights.pt", tmp_path / "image.npy"
    torch.save(segmenter().state_dict(), weights)
    np.save(image, stripes(64, 70))
    return weights, image


def in_process(*arguments: Any) -> int:
    """Exit code of :func:`stream_until` in a process of its own."""
    return run_until_killed(stream_until, *arguments, seconds=120)


@pytest.mark.long
def test_killed_at_any_operation_the_next_start_gives_the_same_bytes(files: tuple[Path, Path], tmp_path: Path) -> None:
    """Killed before or after every fifth of all writes, syncs and renames."""
    weights, image = files
    out, state = tmp_path / "mask.tif", tmp_path / ".mask.tif.streaming"
    assert in_process(0, str(weights), str(image), str(out), TILE) == 0
    expected = out.read_bytes()
    call, kills = 3, 0
    while True:
        out.unlink(missing_ok=True)
        if in_process(call, str(weights), str(image), str(out), TILE) == 0:
            break
        kills += 1
        assert not out.exists() or out.read_bytes() == expected
        assert in_process(0, str(weights), str(image), str(out), TILE) == 0
        assert out.read_bytes() == expected
        assert not state.exists()
        call += 5
    assert kills >= 20


def test_work_that_was_done_is_not_done_again(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed again and again, the computation still ends: each start continues where the record is."""
    weights, image = files
    out = tmp_path / "mask.npy"
    starts = 1
    while in_process(110, str(weights), str(image), str(out), TILE) != 0:
        starts += 1
        assert starts < 40
    assert starts > 2
    mask = foveal.stream(predictor_for(segmenter()), image).outputs[0]
    assert np.array_equal(np.load(out), mask)


class StopError(Exception):
    pass


def interrupted(predictor: Any, image: Path, out: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """Start a computation and stop it at two thirds."""

    def stop(share: float, text: str) -> None:
        if share > 0.66:
            raise StopError

    monkeypatch.setattr(run, "SAVE_SECONDS", 0)
    with pytest.raises(StopError):
        foveal.stream(predictor, image, out, tile=TILE, progress=stop, **options)


def test_only_the_same_computation_is_resumed(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, image = files
    predictor, out = predictor_for(segmenter()), tmp_path / "mask.png"
    interrupted(predictor, image, out, monkeypatch)
    with pytest.raises(ConfigError, match="begun with another tile:"):
        foveal.stream(predictor, image, out, tile=2 * TILE, resume=True)
    with pytest.raises(ConfigError, match="begun with another keep:"):
        foveal.stream(predictor, image, out, tile=TILE, keep="float16", resume=True)
    with pytest.raises(ConfigError, match="begun with another weights:"):
        foveal.stream(predictor_for(segmenter(scales=())), image, out, tile=TILE, resume=True)
    np.save(image, stripes(64, 70) // 2)
    with pytest.raises(ConfigError, match="begun with another image:"):
        foveal.stream(predictor, image, out, tile=TILE, resume=True)
    assert not out.exists()
    shares: list[float] = []
    foveal.stream(predictor, image, out, tile=TILE, progress=lambda share, _: shares.append(share))
    assert shares[0] < 0.2  # without resume, from the start
    assert shares[-1] == pytest.approx(1)


def test_a_damaged_record_is_named(files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, image = files
    predictor, out = predictor_for(segmenter()), tmp_path / "mask.png"
    interrupted(predictor, image, out, monkeypatch)
    record = tmp_path / ".mask.png.streaming" / "progress-0.npz"
    record.write_bytes(record.read_bytes()[:50])
    with pytest.raises(InputError, match=r"progress-0\.npz: damaged; remove .*streaming and start again"):
        foveal.stream(predictor, image, out, tile=TILE, resume=True)


def test_two_processes_do_not_share_a_state(files: tuple[Path, Path], tmp_path: Path) -> None:
    _, image = files
    out = tmp_path / "mask.png"
    with (
        maps.open_state(tmp_path / ".mask.png.streaming", {}, resume=False),
        pytest.raises(ConfigError, match="another process works there"),
    ):
        foveal.stream(predictor_for(segmenter()), image, out, tile=TILE)


def test_too_little_disk_is_said_before_the_start(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, image = files
    usage = maps.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(maps.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(InputError, match="need 1 MB of disk, and 0 MB are free"):
        foveal.stream(predictor_for(segmenter()), image, tmp_path / "mask.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.npy", "weights.pt"]


def test_the_disk_that_is_told_is_the_disk_that_is_used(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, image = files
    largest, folder = 0, tmp_path / ".mask.png.streaming"

    def measure(share: float, text: str) -> None:
        nonlocal largest
        largest = max(largest, sum(path.stat().st_size for path in folder.glob("*.map")))

    result = foveal.stream(predictor_for(segmenter()), image, tmp_path / "mask.png", tile=TILE, progress=measure)
    assert largest == result.disk_bytes > 0


def test_maps_in_16_bits_are_half_as_large_and_close(files: tuple[Path, Path], tmp_path: Path) -> None:
    _, image = files
    predictor = predictor_for(segmenter())
    exact = foveal.stream(predictor, image, tmp_path / "a.npy", tile=TILE)
    half = foveal.stream(predictor, image, tmp_path / "b.npy", tile=TILE, keep="float16")
    assert half.disk_bytes < 0.7 * exact.disk_bytes
    assert (np.load(tmp_path / "a.npy") == np.load(tmp_path / "b.npy")).mean() > 0.98


def test_a_map_on_disk_keeps_what_is_written(tmp_path: Path) -> None:
    kept = DiskMap(tmp_path / "x.map", Extent(5, 7, 1), 2, "float32")  # pyright: ignore[reportArgumentType]
    values = np.random.default_rng(0).random((3, 4, 2), np.float32)
    kept.write(Region(1, 4, 2, 6), values)
    kept.sync()
    kept.close()
    again = DiskMap(tmp_path / "x.map", Extent(5, 7, 1), 2, "float32")  # pyright: ignore[reportArgumentType]
    assert np.array_equal(again.read(Region(1, 4, 2, 6)), values)
    assert not again.read(Region(0, 1, 0, 7)).any()
    assert (tmp_path / "x.map").stat().st_size == 5 * 7 * 2 * 4
    again.close()
