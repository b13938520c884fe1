"""The comparison with networks of others: their costs are the published ones, rows are whole, runs continue."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import foveal
from foveal.costs import count
from foveal.measuring import pairwise
from foveal.measuring.page import write_page
from foveal.measuring.pairwise import EAGER, PairRun, measure, ratios_of
from foveal.measuring.peers import find_peer
from foveal.measuring.presets.figures import command_of, plots_of
from foveal.measuring.presets.headline import HEADER, headline
from foveal.measuring.presets.pairs import GROUPS, PAIRS, PEERS, Pair, pairs_of
from foveal.measuring.quality import quality_of
from foveal.measuring.row_file import RowFile
from foveal.models.registry import variants

REPOSITORY = Path(__file__).parents[2]
SEGNEXT = "benchmarks.peers.segnext:segnext"
#: Millions of weights and billions of multiply-accumulates as the papers print them: ADE20K at 512x512, Cityscapes.
PUBLISHED = {
    (f"{SEGNEXT}_t", 150, (512, 512)): (4.26, 6.6),
    (f"{SEGNEXT}_s", 150, (512, 512)): (13.9, 15.9),
    (f"{SEGNEXT}_b", 150, (512, 512)): (27.6, 34.9),
    (f"{SEGNEXT}_l", 150, (512, 512)): (48.9, 70.0),
    (f"{SEGNEXT}_t", 19, (1024, 2048)): (4.3, 50.5),
    ("benchmarks.peers.realtime:ddrnet_23_slim", 19, (1024, 2048)): (5.7, 36.3),
    ("benchmarks.peers.realtime:pidnet_s", 19, (1024, 2048)): (7.6, 47.6),
}


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers are looked for in the working folder."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.syspath_prepend(REPOSITORY)


@pytest.mark.parametrize(("network", "published"), PUBLISHED.items(), ids=[key[0] for key in PUBLISHED])
def test_rebuilt_networks_have_the_published_costs(
    network: tuple[str, int, tuple[int, int]], published: tuple[float, float]
) -> None:
    ref, classes, size = network
    with torch.device("meta"):
        model = find_peer(ref)(classes).eval()
    params, macs = count(model, 3, size)
    assert params / 1e6 == pytest.approx(published[0], rel=0.03)
    assert macs / 1e9 == pytest.approx(published[1], rel=0.03)


@pytest.mark.parametrize(
    "name",
    # The package of most of them is in the dependency group of the long tests.
    [
        *(pytest.param(name, marks=pytest.mark.long) for name in ("SegFormer-B0", "SegFormer-B5", "SAM-ViT-B")),
        "MobileSAM",
    ],
)
def test_published_networks_have_the_published_costs(name: str) -> None:
    """SegFormer's paper counts 4 % more than convolutions and products."""
    peer = PEERS[name]
    with torch.device("meta"):
        params, macs = count(find_peer(peer.ref)().eval(), 3, peer.macs_size)
    assert params / 1e6 == pytest.approx(peer.params, rel=0.03)
    assert macs / 1e9 == pytest.approx(peer.gmacs, rel=0.05)


@pytest.mark.parametrize("name", ["SegNeXt-T", "DDRNet-23-slim", "PIDNet-S"])
def test_rebuilt_networks_give_logits_of_stride_8(name: str) -> None:
    """Also of sizes that their strides do not divide, and with numbers that do not grow or vanish."""
    torch.manual_seed(0)
    model = find_peer(PEERS[name].ref)().eval()
    with torch.inference_mode():
        logits = model(torch.randn(1, 3, 72, 136))
    assert logits.shape == (1, 19, 9, 17)
    assert 1e-6 < logits.std() < 1e6


def test_pairs_name_what_exists() -> None:
    for pair in PAIRS:
        assert pair.group in GROUPS
        assert callable(find_peer(PEERS[pair.peer].ref)), pair.peer
        assert pair.ours.partition(".")[0] in variants(), pair.ours
    assert {pair.peer for pair in PAIRS} == set(PEERS), "each peer is compared"
    assert {pair.group for pair in PAIRS} == set(GROUPS)
    assert [p.peer for p in pairs_of(["segmentation"], ["efficientvit_l2"])] == ["SegNeXt-L"]


def test_quality_is_that_of_the_registry_and_of_the_model_cards() -> None:
    quality = quality_of("efficientvit_b1", "segment")
    assert quality is not None
    assert (quality.value, quality.metric) == (80.547, "mIoU, cityscapes")
    assert quality_of("efficientvit_b1", "classify", (256, 256)) == (79.918, "top-1, ImageNet", "official README")
    assert quality_of("efficientvit_b1", "classify", (240, 240)) is None
    for tag, psnr in (("x2", 31.89), ("x4", 27.27)):
        assert quality_of(f"efficientvit_sr.{tag}", "upscale") == (psnr, f"PSNR, BSD100 {tag}", "measured by us")
    assert quality_of("vit_small", "classify") is None


def test_ratios_separate_the_algorithm_from_the_runtime() -> None:
    """The peer is fastest in OpenVINO, ours in the native engine."""
    found = ratios_of(
        {
            "ours eager": [4.0, 4.0, 4.0], "ours native": [1.0, 1.0, 1.0], "ours openvino": [2.0, 2.0, 2.0],
            "peer eager": [12.0, 16.0, 12.0], "peer openvino": [6.0, 6.0, 6.0], "peer onnxruntime": [7.0, 7.0, 7.0],
        }
    )  # fmt: skip
    assert found[EAGER]["ratio"] == 3.0
    assert (found["same"]["runtime"], found["same"]["ratio"]) == ("openvino", 3.0)
    assert (found["fastest"]["ours"], found["fastest"]["peer"]) == ("native", "openvino")
    assert found["fastest"]["ratio"] == 6.0
    assert "onnxruntime" not in found, "ours did not run there"


@pytest.mark.parametrize(
    ("ours", "peer", "task", "size"),
    [
        ("efficientvit_b0", "MobileNetV4-Conv-S", "classify", (64, 64)),
        ("efficientvit_sr.x2", "BSRN", "upscale", (16, 24)),
        ("tf_efficientnet_lite0.sam", "PIDNet-S", "prompt", None),  # MobileSAM takes a second
    ],
)
def test_pairs_of_other_tasks_are_measured(
    ours: str, peer: str, task: str, size: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In torch and in our engine; the image encoder of promptable models alone."""
    monkeypatch.setattr(pairwise, "TURN", 0.0)
    found = measure(
        PairRun(ours, PEERS[peer].ref, task, size, size or (64, 64), runtimes=(EAGER, "native"), rounds=1, seconds=0.1)
    )
    assert found.get("left_out") == {}, found
    assert found["candidates"].keys() == {"ours eager", "ours native", "peer eager"}
    assert found["ratios"][EAGER]["ratio"] > 0
    assert found["again"]["candidate"].startswith("ours ")
    assert min(found["costs"]["ours"] + found["costs"]["peer"]) > 0


def test_headline_is_measured_resumed_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One real pair in its own process; the second run takes it from the file, and the page has it."""
    rows, page = tmp_path / "rows.jsonl", tmp_path / "docs" / "page.md"
    pairs = [Pair("segmentation", "efficientvit_b0", "DDRNet-23-slim", 2.0, "a claim")]
    options = {"groups": ["segmentation"], "size": (64, 64), "threads": 1, "dtype": "float32", "pairs": pairs}
    report = headline(**options, runtime="eager,native", rounds=1, resume=rows)
    (row,) = report.rows
    assert row["key"]["size"] == "64x64"
    assert set(row["candidates"]) == {"ours eager", "ours native", "peer eager"}
    assert row["ratios"]["fastest"]["ratio"] == pytest.approx(
        row["candidates"]["peer eager"][0] / min(row["candidates"][f"ours {name}"][0] for name in (EAGER, "native")),
        rel=1e-3,
    )
    before = rows.read_bytes()
    again = headline(**options, runtime="eager,native", rounds=1, resume=rows)
    assert again.rows == report.rows
    assert rows.read_bytes() == before
    assert report.table()[0] == HEADER
    assert {len(line) for line in report.table()} == {len(HEADER)}
    write_page(rows, page)
    text = page.read_text(encoding="utf-8")
    assert "| efficientvit_b0 | DDRNet-23-slim | 64x64 | 1 | 1 | float32 |" in text
    assert "a claim" in text
    assert page.with_suffix(".quality.png").read_bytes()[:4] == b"\x89PNG"


def made_up_row(ours: str, peer: str, ratio: float, same: float, ms: float, **changes: str) -> dict[str, object]:
    key = {
        "group": "segmentation", "ours": ours, "peer": peer, "size": "512x1024", "peer_size": "512x1024", "batch": 1,
        "threads": 2, "dtype": "float32", "device": "cpu", **changes,
    }  # fmt: skip
    fastest = {"ours": "native", "peer": "openvino", "ratio": ratio, "noise": 0.1}
    return {
        "kind": "pair", "key": key, "paper": 6.2, "remark": "up to", "rounds": 5, "load": 0.1,
        "candidates": {"ours native": [ms], "peer openvino": [ms * ratio]},
        "ratios": {"same": {"runtime": "openvino", "ratio": same, "noise": 0.1}, "fastest": fastest},
        "again": {"candidate": "ours native", "ratio": 1.01, "noise": 0.04},
        "costs": {"ours": [1, 1], "peer": [int(5.7e6), int(9e9)]}, "left_out": {},
    }  # fmt: skip


def test_page_begins_with_where_others_are_ahead(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "rows.jsonl")
    file.add(made_up_row("efficientvit_b2", "SegNeXt-S", 2.0, 1.5, 100.0))
    file.add(made_up_row("efficientvit_b1", "DDRNet-23-slim", 0.8, 0.5, 60.0))
    file.add(made_up_row("efficientvit_b1", "PIDNet-S", 1.2, 0.9, 61.0))
    failed = made_up_row("efficientvit_b3", "SegNeXt-B", 1.0, 1.0, 1.0)
    file.add({"kind": "pair", "key": failed["key"], "failed": "killed"})
    write_page(tmp_path / "rows.jsonl", tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    behind = text[text.index("## Where others are ahead") : text.index("## How it is measured")]
    assert "In 1 of 3 rows the other network is faster" in behind
    assert behind.index("DDRNet-23-slim") < behind.index("PIDNet-S")
    assert "SegNeXt-S" not in behind
    assert "within the bound in 3 of 3 rows, and at most 1.0% from 1" in text
    assert "efficientvit_b3 and SegNeXt-B (killed)" in text
    (plot,) = plots_of(file.rows)
    assert [(point.name, point.ms) for point in plot.points][:2] == [
        ("DDRNet-23-slim", 48.0),
        ("efficientvit_b1", 60.0),
    ]
    assert f"`{plot.points[0].command}`" in text


def test_a_plot_has_one_size_also_where_a_peer_takes_larger_images() -> None:
    """The size with the most rows: Restormer runs on the interpolated image, and only at the smaller size."""
    rows = [
        made_up_row("efficientvit_sr.x2", peer, 2.0, 1.0, ms, group="super-resolution", size=size, peer_size=peer_size)
        for peer, size, peer_size, ms in (
            ("Restormer", "160x240", "320x480", 20.0),
            ("SPAN", "160x240", "160x240", 21.0),
            ("SPAN", "512x512", "512x512", 130.0),
        )
    ]
    (plot,) = plots_of(rows)
    assert plot.title.startswith("super-resolution, 160x240")
    assert {point.name: point.ms for point in plot.points} == {
        "efficientvit_sr.x2": 20.0,
        "Restormer": 40.0,
        "SPAN": 42.0,
    }


def test_command_of_a_point_names_what_ran() -> None:
    row = made_up_row("efficientvit_b1", "PIDNet-S", 1.0, 1.0, 1.0)
    assert command_of(row, "ours", "native") == (
        "foveal bench efficientvit_b1@runtime=native --size 512x1024 --task segment --threads 2"
    )
    assert command_of(row, "peer", "openvino") == (
        "foveal bench benchmarks.peers.realtime:pidnet_s@runtime=openvino --size 512x1024 --threads 2"
    )


def test_slow_pairs_are_measured_in_the_first_setting_only() -> None:
    from foveal.measuring.presets.headline import _in_settings, _tasks

    jobs = _in_settings(_tasks(pairs_of(["promptable"]), None, None, True), ("float32", "bfloat16"), (2, 1))
    settings = {(job.task.dtype, job.task.threads) for job in jobs if job.pair.peer == "SAM-ViT-H"}
    assert settings == {("float32", 2)}
    ours = [job for job in jobs if job.pair.ours == "tf_efficientnet_lite0.sam" and job.pair.peer == "MobileSAM"]
    assert len(ours) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": ("segmentatoin",)}, "did you mean 'segmentation'"),
        ({"models": ("efficientvit_b9",)}, "in no pair"),
        ({"runtime": "native,tensorflow"}, "unknown runtime 'tensorflow'"),
        ({"rounds": 0}, "must be positive"),
        ({"dtype": "float8"}, "unknown dtype"),
    ],
)
def test_wrong_requests_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(foveal.ConfigError, match=message):
        foveal.bench_preset("headline", **options)


def test_without_the_repository_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(foveal.ConfigError, match=r"run this command in a checkout") as caught:
        headline()
    assert "\n" not in str(caught.value)


def test_outputs_that_are_no_numbers_are_not_timed() -> None:
    with pytest.raises(foveal.InputError, match="not finite"):
        pairwise._check_finite(np.array([1.0, np.nan]))


def test_a_process_that_fails_is_a_row_with_the_reason() -> None:
    found = pairwise.measure_apart(
        PairRun("efficientvit_b0", "no.such:peer", "segment", (64, 64), (64, 64), runtimes=(EAGER,))
    )
    assert "cannot be imported" in found["failed"]
    assert json.dumps(found)


def test_a_pair_that_memory_does_not_suffice_for_is_measured_in_fewer_runtimes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that kills its process, except while it is exported, stands for one that is too large in torch."""
    (tmp_path / "too_large.py").write_text(_TOO_LARGE, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    settings = {"runtimes": (EAGER, "onnxruntime"), "rounds": 1, "seconds": 0.1, "folder": str(tmp_path)}
    task = PairRun("efficientvit_b0", "too_large:Network", "classify", (64, 64), (64, 64), **settings)
    found = pairwise.measure_within_memory(task)
    assert found["candidates"].keys() == {"ours onnxruntime", "peer onnxruntime"}
    assert found["left_out"] == dict.fromkeys(("ours eager", "peer eager"), "memory did not suffice for all runtimes")


_TOO_LARGE = """
import os
import signal
import torch

class Network(torch.nn.Conv2d):
    def __init__(self):
        super().__init__(3, 8, 3)

    def forward(self, x):
        if x.device.type == "cpu" and not torch.compiler.is_exporting():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)
"""


def test_the_page_of_the_documentation_is_made_from_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, page = Path("benchmarks", "results", "headline.jsonl"), Path("docs", "benchmarks.md")
    for path in (rows, page):
        (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / rows).write_bytes((REPOSITORY / rows).read_bytes())
    monkeypatch.chdir(tmp_path)
    write_page(rows, page)
    assert page.read_text(encoding="utf-8") == (REPOSITORY / page).read_text(encoding="utf-8")
    assert page.with_name("benchmarks.quality.png").stat().st_size > 0


def test_a_page_names_the_machine_of_each_row(tmp_path: Path) -> None:
    """Times of two machines are not drawn together."""
    lines = (REPOSITORY / "benchmarks" / "results" / "headline.jsonl").read_text(encoding="utf-8").splitlines()
    other = json.dumps({**json.loads(lines[0]), "cpu": "Another"})
    rows, page = tmp_path / "rows.jsonl", tmp_path / "page.md"
    rows.write_text("\n".join([*lines[:4], other, *lines[1:3]]) + "\n", encoding="utf-8")
    write_page(rows, page)
    text = page.read_text(encoding="utf-8")
    assert "- Machine 1: " in text
    assert "- Machine 2: Another, " in text
    table = text.partition("### Segmentation: 2 threads, float32")[2].partition("##")[0].splitlines()
    assert [line.rpartition(" | ")[2] for line in table if line.startswith("| efficientvit")] == [
        *("1 |",) * 3,
        *("2 |",) * 2,
    ]
    assert "float32, machine 1" in text
    assert "float32, machine 2" not in text
