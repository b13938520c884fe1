"""The presets of the benchmark: what they count is right, what they fit is known, and reports are whole."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import foveal
from foveal.cli import main
from foveal.measuring import costs
from foveal.measuring.presets import PRESETS
from foveal.measuring.presets.architectures import architectures, published_top1
from foveal.measuring.presets.attention import attention, fitted_exponent, peak_allocated
from foveal.measuring.presets.scaling import scaling
from foveal.models.efficientnet import EFFICIENTNET_COEFFICIENTS, compound_scale


def as_json(report: Any) -> dict[str, Any]:
    return json.loads(json.dumps(report.to_dict()))


def assert_is_picture(path: Path) -> None:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 200
        assert len(set(picture.convert("L").get_flattened_data())) > 10


@given(st.floats(-3, 3), st.floats(1e-6, 1e6), st.integers(1, 1000), st.integers(2, 6))
def test_exponent_of_a_power_law_is_found(power: float, factor: float, first: int, count: int) -> None:
    lengths = [first * 2**i for i in range(count)]
    assert fitted_exponent(lengths, [factor * n**power for n in lengths]) == pytest.approx(power, abs=1e-9)


@pytest.mark.parametrize(
    ("lengths", "values"), [([64], [1.0]), ([64, 64], [1.0, 2.0]), ([64, 128], [0.0, 1.0]), ([64, 128], [1.0])]
)
def test_no_exponent_without_two_lengths_and_logarithms(lengths: list[int], values: list[float]) -> None:
    with pytest.raises(foveal.InputError, match="two or more different"):
        fitted_exponent(lengths, values)


def test_peak_is_what_is_held_at_once() -> None:
    """Two tensors of 256 KiB that live together, and two that follow each other."""

    def one_by_one() -> None:
        for _ in range(2):
            torch.empty(1 << 16)

    assert peak_allocated(lambda: [torch.empty(1 << 16), torch.empty(1 << 16)]) == 2 << 18
    assert peak_allocated(one_by_one) == 1 << 18
    assert peak_allocated(lambda: None) == 0


def test_attention(tmp_path: Path) -> None:
    report = attention(tokens=(512, 128, 64, 256), rounds=1, threads=1)
    rows = {row.name: row for row in report.rows}
    assert report.tokens == (64, 128, 256, 512)
    assert report.fitted == (256, 512)
    assert {name: row.path for name, row in rows.items()} == {
        "softmax": "math",
        "flash": "flash",
        "gqa": "flash",
        "linear": "",
        "causal linear": "",
        "linformer": "flash",
    }
    whole = [4 * report.num_heads * n * n for n in report.tokens]  # bytes of one matrix of weights
    assert all(held >= 2 * size for held, size in zip(rows["softmax"].peak_bytes, whole, strict=True))
    assert rows["flash"].peak_bytes[-1] < whole[-1]
    assert 1.7 < rows["softmax"].memory_exponent < 2.05
    for name in ("flash", "gqa", "linear", "causal linear"):
        assert rows[name].memory_exponent == pytest.approx(1, abs=0.1), name
    assert rows["linformer"].memory_exponent < 1.1
    for row in report.rows:
        assert min(row.ms) > 0
        ends = [(row.ms, row.time_exponent), (row.peak_bytes, row.memory_exponent)]
        for values, exponent in ends:
            assert exponent == pytest.approx(fitted_exponent(report.fitted, values[-2:]), abs=1e-2)
    assert report.traffic[-1].tiled < report.traffic[-1].standard == report.traffic[0].standard
    found = as_json(report)
    assert found["rows"][0]["peak_bytes"] == list(rows["softmax"].peak_bytes)
    assert found["machine"]["torch"]
    assert {len(line) for line in report.table()} == {len(report.tokens) + 4}
    assert "256, 512 tokens" in " ".join(report.notes())
    report.draw(tmp_path / "attention.png")
    assert_is_picture(tmp_path / "attention.png")


@pytest.mark.long
def test_network_of_timm() -> None:
    (row,) = architectures(names=("resnet50",), rounds=1, threads=1).rows
    assert row.params == sum(p.numel() for p in timm.create_model("resnet50").parameters())
    assert round(row.macs / 1e9, 2) == 4.09, "torchvision's figure"
    assert row.top1 == 76.13
    assert row.ratio == 1.0
    assert row.peak_mib is not None
    assert 4 * row.params / 2**20 < row.peak_mib < 8 * row.params / 2**20


def test_architectures_without_timm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The row of timm's network is left out and named; ours are there."""
    monkeypatch.setitem(sys.modules, "timm", None)
    names = ("resnet50", "mobilenetv3_small_100")
    report = architectures(names=names, size=(64, 96), batch=2, rounds=1, threads=1)
    (row,) = report.rows
    with torch.device("meta"):
        expected = costs.count(foveal.create_model(row.name, "classify").eval(), 3, (64, 96))
    assert (row.params, row.macs) == expected
    assert row.peak_mib is not None
    assert row.peak_mib > 4 * row.params / 2**20
    assert report.left_out.keys() == {"resnet50"}
    assert [note for note in report.notes() if "resnet50 left out: needs timm: pip install" in note]
    assert as_json(report)["rows"][0]["name"] == row.name
    assert len(report.table()) == 2
    report.draw(tmp_path / "architectures.png")
    assert_is_picture(tmp_path / "architectures.png")
    with pytest.raises(foveal.DependencyError, match="timm"):
        architectures(names=("resnet50",))


def test_quoted_accuracy_is_of_the_size_that_is_measured() -> None:
    for side, percent in {224: 79.39, 256: 79.918}.items():
        found = published_top1("efficientvit_b1", (side, side))
        assert found is not None
        assert found.percent == percent
    assert published_top1("efficientvit_b1", (224, 256)) is None
    assert published_top1("resnet50", (256, 256)) is None
    assert published_top1("vit_tiny", (224, 224)) is None


def test_scaling(tmp_path: Path) -> None:
    report = scaling(phis=(0, 1), rounds=1, threads=1)
    for row in report.rows:
        name = f"efficientnet_b{row.phi}"
        released = EFFICIENTNET_COEFFICIENTS[name]
        assert (row.released.width, row.released.depth, row.released.resolution) == released
        with torch.device("meta"):
            expected = costs.count(foveal.create_model(name).eval(), 3, (released.resolution, released.resolution))
        assert (row.released.params, row.released.macs) == expected
        assert (row.formula.width, row.formula.depth, row.formula.resolution) == compound_scale(row.phi)
        assert row.p50_ms > 0
    first, second = report.rows
    assert first.formula == first.released
    assert second.formula.macs > second.released.macs, "B1 was rounded down"
    assert as_json(report)["rows"][1]["released"]["params"] == 7_794_184
    assert len(report.table()) == 3
    report.draw(tmp_path / "scaling.png")
    assert_is_picture(tmp_path / "scaling.png")


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One object on standard output and the figure in its file."""
    plot = tmp_path / "new" / "attention.png"
    arguments = ["--tokens", "32,64", "--rounds", "1", "--threads", "1", "--plot", str(plot), "--json"]
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--preset", "attention", *arguments])
    assert ended.value.code == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["preset"], report["tokens"], report["rounds"]) == ("attention", [32, 64], 1)
    assert_is_picture(plot)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give models, or --preset"),
        (["efficientvit_b0", "--preset", "scaling"], "not both"),
        (["--preset", "scaling", "--resume", "rows.jsonl"], "preset scaling has no option 'resume'"),
        (["--preset", "headline", "--groups", "segments"], "did you mean 'segmentation'?"),
        (["--preset", "atention"], "did you mean 'attention'?"),
        (["--preset", "scaling", "--runtime", "torch"], "preset scaling has no option 'runtime'"),
        (["--preset", "scaling", "--device", "cuda"], "--preset scaling runs on the CPU in float32"),
        (["--preset", "attention", "--dtype", "float16"], "--preset attention runs on the CPU in float32"),
        (["--preset", "architectures", "--tokens", "64,128"], "preset architectures has no option 'tokens'"),
        (["--preset", "attention", "--tokens", "64"], "two or more different lengths"),
        (["--preset", "attention", "--tokens", "64;128"], "for example 256,1024"),
        (["--preset", "attention", "--rounds", "0"], "positive"),
        (["--preset", "attention", "--plot", "figure.svg"], "written as .png"),
        (["efficientvit_b0", "--plot", "figure.png"], "are for --preset"),
        (["efficientvit_b0", "--tokens", "64"], "are for --preset"),
    ],
)
def test_wrong_requests_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", *arguments])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(foveal.ConfigError, match="0 to 7"):
        scaling(phis=(8,))
    with pytest.raises(foveal.ConfigError, match="positive"):
        scaling(threads=0)
    with pytest.raises(foveal.ConfigError, match="different networks"):
        architectures(names=("resnet50", "resnet50"))
    with pytest.raises(foveal.ConfigError, match="did you mean 'efficientvit_b"):
        architectures(names=("efficientvit_bo",))
    with pytest.raises(foveal.ConfigError, match="does not divide"):
        attention(tokens=(64, 128), num_kv_heads=3)


def test_python_entry() -> None:
    assert set(PRESETS) == {"architectures", "attention", "cost-laws", "headline", "scaling"}
    report = foveal.bench_preset("attention", tokens=(32, 64), rounds=1, threads=1, embed_dim=64, num_heads=2)
    assert as_json(report)["embed_dim"] == 64


@pytest.mark.parametrize("name", PRESETS)
def test_toys_of_the_presets(name: str) -> None:
    report = foveal.bench_preset(name, toy=True, threads=1)
    assert len(report.table()) > 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["efficientvit_b0", "--toy"], "--toy is for --preset; leave it out"),
        (
            ["--preset", "headline", "--toy", "--resume", "x.jsonl"],
            "--toy measures nothing to keep: leave out --resume",
        ),
        (["--preset", "headline", "--toy", "--groups", "promptible"], "promptible"),
    ],
)
def test_what_toys_do_not_take(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", *words])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert "DDRNet" not in said
