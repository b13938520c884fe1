"""Parts of the training loop, each compared with what it should equal."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.torch_version import TorchVersion

import foveal
from foveal.data.classification import ClassificationData
from foveal.data.synthetic import write_shapes
from foveal.info import Labels
from foveal.layers.recompute import recompute
from foveal.layers.sync_norm import synchronise_norms
from foveal.progress import Progress
from foveal.training.batches import Batches, Samples
from foveal.training.config import TrainConfig
from foveal.training.distributed import blocks_of
from foveal.training.folder import RunFolder, RunState
from foveal.training.segment import SegmentJob
from helpers.processes import fork_server


def _trained_once(again: bool) -> tuple[list[Tensor], list[Tensor], int]:
    """Gradients, buffers, and bytes saved for the backward pass."""
    torch.manual_seed(0)
    model = foveal.create_model("efficientvit_b0", "segment", num_classes=3).double()
    if again:
        recompute(model.backbone.stages)
    kept = 0

    def pack(x: Tensor) -> Tensor:
        nonlocal kept
        kept += x.nbytes
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = model(torch.randn(2, 3, 64, 64, dtype=torch.float64)).square().mean()
    loss.backward()
    return [p.grad for p in model.parameters() if p.grad is not None], [b.clone() for b in model.buffers()], kept


def test_recomputed_stages_change_memory_alone() -> None:
    gradients, buffers, kept = _trained_once(False)
    again, buffers_again, kept_again = _trained_once(True)
    assert kept_again < 0.5 * kept
    assert len(again) == len(gradients)
    for a, b in zip(gradients + buffers, again + buffers_again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_blocks_of_every_kind_of_stage() -> None:
    """Stages that are sequences, that have a list of blocks, and that are one block."""
    model = foveal.create_model("efficientvit_b0", "segment", num_classes=3)
    assert [type(block).__name__ for block in blocks_of(model)].count("EfficientViTBlock") == 4
    assert len(blocks_of(model)) == sum(len(stage) for stage in model.backbone.stages)
    stage, own, lone = nn.Sequential(nn.ReLU(), nn.GELU()), nn.Module(), nn.SiLU()
    own.downsample, own.blocks = nn.Conv2d(1, 1, 1), nn.ModuleList([nn.Tanh()])
    model.backbone.stages = nn.ModuleList([stage, own, lone])
    assert [type(block) for block in blocks_of(model)] == [nn.ReLU, nn.GELU, nn.Tanh, nn.SiLU]


def test_batches_continue_where_a_run_stopped() -> None:
    """The same batches follow from any position; processes share each batch; a pass has no image twice."""
    data = ClassificationData(tuple((Path(f"{i}.jpg"), 0) for i in range(10)), Labels(("one",)))
    config = TrainConfig(batch_size=4)
    whole = iter(Batches(data, config, 0, 0, 1))
    expected = [next(whole) for _ in range(6)]
    for position in range(6):
        later = iter(Batches(data, config, position, 0, 1))
        assert [next(later) for _ in range(6 - position)] == expected[position:]
    shares = [iter(Batches(data, config, 0, rank, 2)) for rank in range(2)]
    for batch in expected:
        parts = [next(share) for share in shares]
        assert sorted(parts[0] + parts[1]) == sorted(batch)
    assert len({place.image for batch in expected[:2] for place in batch}) == 8


def test_a_state_needs_a_torch_that_reads_it_safely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CVE-2026-24747: refused in one line, before the data set is read."""
    folder = RunFolder(tmp_path)
    folder.write_config(TrainConfig())
    folder.save_state({}, RunState(images=3))
    folder.check_resumable(TrainConfig())
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.9.1+cpu"))
    with pytest.raises(foveal.CheckpointError, match=r"state\.pt: torch 2\.9\.1\+cpu cannot read this safely"):
        foveal.train(tmp_path / "nowhere", out=tmp_path, resume=True)


def _half_of_a_batch(rank: int, folder: str) -> None:
    """One of two processes: apply a synchronised norm to half of the batch and write the results."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    norm = synchronise_norms(nn.Sequential(nn.BatchNorm1d(5)).double(), torch.device("cpu"))
    x = _BATCH[rank * 3 : rank * 3 + 3].clone().requires_grad_()
    y = norm(x)
    (y**3).sum().backward()
    torch.save([y.detach(), x.grad, dict(norm.named_buffers())], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


_BATCH = torch.from_numpy(np.random.default_rng(0).standard_normal((6, 5)))


def test_norms_of_vectors_are_synchronised_too(tmp_path: Path) -> None:
    """Two processes with half of the batch each compute the same as one with all of it, forward and backward."""
    fork_server()  # has torch imported
    torch.multiprocessing.start_processes(_half_of_a_batch, (str(tmp_path),), nprocs=2, start_method="forkserver")
    norm, x = nn.Sequential(nn.BatchNorm1d(5)).double(), _BATCH.clone().requires_grad_()
    y = norm(x)
    (y**3).sum().backward()
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert x.grad is not None
    assert (torch.cat([parts[0][0], parts[1][0]]) - y).abs().max() < 1e-12
    assert (torch.cat([parts[0][1], parts[1][1]]) - x.grad).abs().max() < 1e-12
    for key, buffer in norm.named_buffers():
        for part in parts:
            assert (part[2][key] - buffer).abs().max() < 1e-12


def test_the_share_of_a_run_goes_on_within_a_pass(tmp_path: Path) -> None:
    """What happens in the last quarter happens in a run of one pass, too."""
    shapes = write_shapes(tmp_path, train=8, val=1, size=(32, 32))
    config = TrainConfig(batch_size=2, epochs=1, crop=(32, 32), val_split="")
    shares: list[float] = []

    class Noting(SegmentJob):
        def sample(self, index: int, rng: np.random.Generator, done: float) -> tuple[Tensor, Tensor]:
            shares.append(done)
            return super().sample(index, rng, done)

    job = Noting(shapes, config, Progress(enabled=False))
    samples = Samples(job, config)
    for batch in itertools.islice(Batches(job.data, config, 0, 0, 1), 4):
        for place in batch:
            samples[place]
    assert sorted(set(shares)) == [0.0, 0.25, 0.5, 0.75]
