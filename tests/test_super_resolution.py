"""Super-resolution: the networks, the figures of merit, upscaling of real files, training of the task's job."""

from __future__ import annotations

import copy
import json
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms
from torchmetrics.functional.image import structural_similarity_index_measure

import foveal
from foveal import assets
from foveal.checkpoints import save_checkpoint
from foveal.config import TrainConfig
from foveal.data.degradation import degraded
from foveal.data.super_resolution import bicubic_downscale, interpolated
from foveal.data.transforms import UpscaleAugment
from foveal.errors import ConfigError, DataError, InputError
from foveal.factory import create_model, list_models
from foveal.imaging import Picture, read_image, read_picture
from foveal.info import info_of
from foveal.layers.reparam import fuse_branches
from foveal.run.fidelity import UpscaleScores, fidelity, luma, psnr, ssim
from foveal.run.jobs import UpscaleJob
from foveal.run.load import identify
from foveal.run.predict import Predictor, TorchRunner
from foveal.run.progress import Progress
from foveal.run.upscaling import enlarged_bands
from foveal.tasks.upscale import SCALES

NAMES = list_models(task="upscale")


def model_of(name: str, scale: int = 2, seed: int = 0, **options: Any) -> torch.nn.Module:
    """A model whose every part matters: random weights, as large as a trained network's."""
    torch.manual_seed(seed)
    model = create_model(name, task="upscale", scale=scale, **options).eval()
    torch.nn.init.normal_(model.head.subpixel.weight, std=0.02)  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    return model


def predictor_of(model: torch.nn.Module) -> Predictor:
    return Predictor(TorchRunner(model), info_of(model), "torch")


def photo(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth shapes with edges and a little grain."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    waves = sum(
        rng.uniform(20, 50) * np.sin(rng.uniform(-0.3, 0.3) * x + rng.uniform(-0.3, 0.3) * y + rng.uniform(0, 6))
        for _ in range(4)
    )
    edges = 60 * ((x // 17 + y // 23) % 2)
    image = 90 + (waves + edges)[..., None] * rng.uniform(0.5, 1, 3) + rng.normal(0, 2, (height, width, 3))
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


# ---- networks


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", SCALES)
def test_any_size_any_scale(name: str, scale: int) -> None:
    with torch.device("meta"):
        model = create_model(name, task="upscale", scale=scale, in_chans=5)
        for h, w in ((32, 32), (33, 65), (97, 40)):
            assert model(torch.empty(2, 5, h, w)).shape == (2, 5, scale * h, scale * w)


@pytest.mark.parametrize("name", NAMES)
def test_untrained_models_are_near_bicubic(name: str) -> None:
    """The long residual: what a network has not learned yet, the interpolation does."""
    torch.manual_seed(0)
    model = create_model(name).eval()
    image = photo(48, 40)
    expected = next(enlarged_bands(lambda x: interpolated(x, 2).astype(np.float32), Picture(image), 2))
    assert psnr(predictor_of(model).upscale(image).image, expected) > 25


def test_the_base_is_the_interpolation_to_the_bit_inside() -> None:
    """MATLAB's kernel, a = -0.5; torch's own bicubic has another."""
    model = create_model("realtime_sr", scale=3).double().eval()
    torch.nn.init.zeros_(model.head.subpixel.weight)  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    torch.nn.init.zeros_(model.head.subpixel.bias)  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    image = np.random.default_rng(0).random((40, 33, 3))
    with torch.no_grad():
        found = model(torch.from_numpy(image).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    inside = (slice(9, -9), slice(9, -9))
    np.testing.assert_allclose(found[inside], interpolated(image, 3)[inside], atol=1e-12)


@pytest.mark.parametrize("scale", SCALES)
def test_fused_branches_compute_the_same(scale: int) -> None:
    model = model_of("realtime_sr", scale)
    fused = copy.deepcopy(model)
    fuse_branches(fused)
    image = torch.rand(2, 3, 37, 50)
    with torch.no_grad():
        assert (model(image) - fused(image)).abs().max() < 1e-5
    count = [sum(p.numel() for p in m.parameters()) for m in (model, fused)]
    assert count[0] <= 150_000
    assert count[1] < 0.55 * count[0]
    again = create_model("realtime_sr", scale=scale, fused=True)
    foveal.load_checkpoint(again, fused.state_dict())
    assert identify(fused.state_dict()).options == {"fused": True, "scale": scale}


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_told_by_its_keys_and_shapes(name: str) -> None:
    for scale in SCALES:
        found = identify(
            {f"module.{k}": v for k, v in create_model(name, scale=scale, in_chans=4).state_dict().items()}
        )
        assert (found.model, found.task, found.in_chans) == (name, "upscale", 4)
        assert found.options["scale"] == scale
        assert found.preprocess.std == (1, 1, 1)
    bare = identify(create_model(name, features_only=True).state_dict())
    assert (bare.model, bare.task) == (name, "features")


def test_the_trunk_starts_from_another_scale(tmp_path: Path) -> None:
    two = model_of("efficientvit_sr_w075", 2)
    save_checkpoint(tmp_path / "x2.safetensors", two.state_dict(), info_of(two))
    four = create_model("efficientvit_sr_w075", scale=4, weights=tmp_path / "x2.safetensors")
    assert four.head.subpixel.weight.shape[0] == 48  # pyright: ignore[reportAttributeAccessIssue, reportIndexIssue]
    for key, value in two.state_dict().items():
        if key.startswith("backbone."):
            assert torch.equal(four.state_dict()[key], value)


def test_wrong_requests_are_refused() -> None:
    with pytest.raises(ConfigError, match="scale=5: give one of 1, 2, 3, 4"):
        create_model("efficientvit_sr", scale=5)
    with pytest.raises(ConfigError, match="efficientvit_sr is not for 'segment'"):
        create_model("efficientvit_sr", task="segment")
    with pytest.raises(ConfigError, match="efficientvit_b0 is not for 'upscale'"):
        create_model("efficientvit_b0", task="upscale")
    with pytest.raises(ConfigError, match="num_classes=7: efficientvit_sr makes images"):
        create_model("efficientvit_sr", num_classes=7)
    with pytest.raises(ConfigError, match="no option 'scal'; did you mean 'scale'"):
        create_model("efficientvit_sr", scal=2)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_gives_the_same_picture(name: str) -> None:
    """PSNR to the truth within 0.02 dB of float32's."""
    large = photo(96, 128)
    small = bicubic_downscale(large, 2)
    model = model_of(name)
    figures = [
        fidelity(Predictor(TorchRunner(model, dtype=dtype), info_of(model), "torch").upscale(small).image, large, 2)[0]
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
    ]
    assert abs(figures[2] - figures[0]) < 0.02


# ---- figures of merit


def test_ssim_equals_torchmetrics() -> None:
    a, b = (luma(photo(60, 71, seed)) for seed in (1, 2))
    first, second = (torch.from_numpy(x)[None, None] for x in (a, b))
    # Its reflected border is as wide as the window's half; without it both see the same windows.
    found = structural_similarity_index_measure(first, second, data_range=255.0, return_full_image=True)
    assert isinstance(found, tuple)
    inner = found[1][0, 0, 5:-5, 5:-5].mean()
    assert ssim(a, b) == pytest.approx(float(inner), abs=1e-6)
    assert ssim(a, a) == pytest.approx(1)


def test_psnr_in_closed_form() -> None:
    """A grey level's error is 219/255 of a level of luma; the border does not count."""
    true = np.full((20, 22, 3), 100, np.uint8)
    found = true + np.uint8(1)
    found[:3] = found[-3:] = found[:, :3] = found[:, -3:] = 255
    assert fidelity(found, true, 3)[0] == pytest.approx(20 * np.log10(255 * 255 / 219))
    with pytest.raises(InputError, match="cannot be compared"):
        fidelity(found, true[1:], 3)
    with pytest.raises(InputError, match="SSIM needs 11 x 11"):
        fidelity(found, true, 5)


# ---- data


@pytest.mark.parametrize("scale", [2, 3])
def test_downscaling_equals_torch_inside(scale: int) -> None:
    """torch's antialiased bicubic has MATLAB's kernel and clips it at the edges: equal inside, to the rounded bit."""
    image = photo(60, 72)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    size = (60 // scale, 72 // scale)
    found = torch.nn.functional.interpolate(tensor, size, mode="bicubic", antialias=True)
    expected = np.clip(np.floor(found[0].permute(1, 2, 0).numpy() + 0.5), 0, 255)[3:-3, 3:-3]
    differ = bicubic_downscale(image, scale)[3:-3, 3:-3] != expected
    assert differ.mean() < 1e-3  # ties at .5, which float arithmetic breaks either way


def test_equal_images_are_valid_json() -> None:
    """JSON knows no infinity."""
    flat = np.full((32, 32, 3), 7, np.uint8)
    scores = UpscaleScores(1, *fidelity(flat, flat, 2))
    assert scores.psnr == math.inf
    assert json.loads(json.dumps(scores.to_dict(), allow_nan=False)) == {"psnr": None, "ssim": 1.0}


def test_interpolation_keeps_ramps_and_undoes_nothing() -> None:
    ramp = np.arange(20.0)[:, None, None].repeat(8, 1)
    found = interpolated(ramp, 4)[12:-12, 0, 0]
    np.testing.assert_allclose(found, (np.arange(80) + 0.5)[12:-12] / 4 - 0.5, atol=1e-12)
    assert np.allclose(interpolated(np.full((9, 9, 1), 7.0), 3, "lanczos"), 7)


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_crops_show_the_same_place(scale: int) -> None:
    """The large crop shrunk is the small crop, whatever the flips: away from its edges, where the crop knows less."""
    large = photo(90, 120)
    small = bicubic_downscale(large, scale)
    augment = UpscaleAugment((48, 48), scale)
    seen = set()
    for seed in range(12):
        a, b = augment(small, large, np.random.default_rng(seed))
        assert a.shape == (48 // scale, 48 // scale, 3)
        assert b.shape == (48, 48, 3)
        assert np.abs(bicubic_downscale(b, scale).astype(int) - a)[3:-3, 3:-3].max() <= 1
        seen.add(b.tobytes())
    assert len(seen) > 8


def test_images_below_the_crop_are_mirrored() -> None:
    large = photo(40, 100)
    a, b = UpscaleAugment((64, 64), 2, flip=0)(bicubic_downscale(large, 2), large, np.random.default_rng(0))
    assert a.shape == (32, 32, 3)
    assert np.array_equal(b[40:], b[16:40][::-1])


def test_degradations_do_what_they_say() -> None:
    large = photo(64, 64)
    rng = np.random.default_rng
    assert np.array_equal(degraded(large, 2, {}, rng(0)), bicubic_downscale(large, 2))
    flat = np.full((200, 200, 3), 128, np.uint8)
    noisy = degraded(flat, 1, {"noise": (25, 25)}, rng(0)).astype(float)
    assert noisy.std() == pytest.approx(25, rel=0.02)
    assert noisy.mean() == pytest.approx(128, abs=0.3)
    step = np.zeros((31, 31, 3), np.uint8)
    step[:, 16:] = 255
    blurred = degraded(step, 1, {"blur": (2, 2)}, rng(0))[15, :, 0] / 255
    normal = torch.distributions.Normal(15.5, 2.0).cdf(torch.arange(31.0)).numpy()
    np.testing.assert_allclose(blurred, normal, atol=0.02)
    errors = [psnr(degraded(large, 1, {"jpeg": (q, q)}, rng(0)), large) for q in (10, 50, 95)]
    assert errors == sorted(errors)
    assert errors[0] < 32


def test_sets_are_folders(tmp_path: Path) -> None:
    for name in ("seta", "setb"):
        (tmp_path / name).mkdir()
        Image.fromarray(photo(40, 48)).save(tmp_path / name / "a.png")
    found = foveal.evaluate("bicubic.x2", tmp_path)
    assert [part.name for part in found.sets] == ["seta", "setb"]
    assert found["seta"].psnr == found["setb"].psnr
    with pytest.raises(DataError, match="no split 'setc'"):
        foveal.evaluate("bicubic.x2", tmp_path, split="setc")
    with pytest.raises(ConfigError, match="for segmentation"):
        foveal.evaluate("bicubic.x2", tmp_path, boundary=True)


# ---- pictures


def written_png(path: Path, pixels: NDArray[np.uint16]) -> Path:
    """A 16-bit PNG, written by hand: Pillow has none in colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    return path


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_survive(tmp_path: Path, channels: int) -> None:
    """Read to the bit; a gentle ramp comes out finer than 8 bits could hold."""
    ramp = np.linspace(10_000, 10_600, 64 * 48).reshape(64, 48, 1).repeat(channels, 2).astype(np.uint16)
    source = written_png(tmp_path / "in.png", ramp)
    picture = read_picture(source)
    assert np.array_equal(picture.pixels, ramp[..., :3] if channels > 1 else ramp.repeat(3, 2))
    result = foveal.load("bicubic.x2")(source)
    assert result.image.dtype == np.uint16
    again = read_picture(result.save(tmp_path / "out.png"))
    assert again.grey == (channels == 1)
    assert np.array_equal(again.pixels, result.image[..., :3])
    assert len(np.unique(again.pixels)) > 300
    if channels == 4:
        assert again.alpha is not None
        assert np.array_equal(again.alpha, result.image[..., 3])


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_alpha_grey_and_profile_survive(tmp_path: Path, mode: str) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    rgba = Image.fromarray(np.dstack([photo(40, 50), np.linspace(0, 255, 2000).reshape(40, 50).astype(np.uint8)]))
    rgba.convert(mode).save(tmp_path / "in.png", icc_profile=profile)
    model = model_of("realtime_sr")
    result = predictor_of(model).upscale(tmp_path / "in.png")
    result.save(tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as out:
        assert out.mode == mode
        assert out.size == (100, 80)
        assert out.info["icc_profile"] == profile
        out.load()
        if mode.endswith("A"):
            alpha = np.asarray(out.getchannel("A"))
            expected = interpolated(np.asarray(rgba.getchannel("A"))[..., None] / 1.0, 2)[..., 0]
            assert np.abs(alpha - expected.clip(0, 255)).max() <= 0.501


def test_png_bands_are_one_picture(tmp_path: Path) -> None:
    """Our writer's file read by Pillow, in every kind, from uneven bands."""
    from foveal.pictures import Canvas, write_picture

    rng = np.random.default_rng(0)
    for channels in (1, 2, 3, 4):
        pixels = rng.integers(0, 256, (201, 37, channels), dtype=np.uint8)
        bands = [pixels[:1], pixels[1:150], pixels[150:]]
        write_picture(tmp_path / "x.png", Canvas(201, 37, channels), bands)
        with Image.open(tmp_path / "x.png") as found:
            assert np.array_equal(np.asarray(found).reshape(pixels.shape), pixels)


def test_what_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(photo(32, 32, seed)) for seed in (0, 1)]
    frames[0].save(tmp_path / "moving.png", save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match="2 pictures in one file"):
        read_picture(tmp_path / "moving.png")
    result = foveal.load("bicubic.x2")(np.zeros((32, 32, 4), np.uint8))
    with pytest.raises(InputError, match="JPEG has no transparency"):
        result.save(tmp_path / "x.jpg")
    wide = foveal.load("bicubic.x2").upscale(np.zeros((32, 32, 3), np.uint16))
    with pytest.raises(InputError, match="16 bits per channel are written as"):
        wide.save(tmp_path / "x.webp")
    with pytest.raises(InputError, match="expected uint8 or uint16"):
        read_picture(np.zeros((4, 4, 3), np.float32))  # pyright: ignore[reportArgumentType]


# ---- windows


def test_windows_of_a_local_model_are_exact() -> None:
    """Interpolation and a network whose view is narrower than the overlap: no seam at all."""
    image = photo(150, 210)
    for predictor in (foveal.load("bicubic.x3"), predictor_of(model_of("realtime_sr", 3))):
        whole = predictor.upscale(image, tile=216, overlap=0).image
        windows = predictor.upscale(image, tile=64, overlap=32).image
        assert np.abs(whole.astype(int) - windows).max() <= 1


def test_windows_of_an_attentive_model_come_close() -> None:
    image = photo(150, 210)
    predictor = predictor_of(model_of("efficientvit_sr"))
    whole = predictor.upscale(image, tile=216, overlap=0).image
    assert psnr(predictor.upscale(image, tile=96).image, whole) > 40


@pytest.mark.parametrize("size", [(150, 210), (257, 193)])
def test_exact_windows_are_the_whole_image(size: tuple[int, int]) -> None:
    """Attention's sums are taken over the image before: to rounding the same, where plain windows differ."""
    image = photo(*size)
    for name in NAMES:
        model = model_of(name)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.15 if parameter.ndim == 1 else 1.0 / parameter[0].numel() ** 0.5)
        predictor = predictor_of(model)
        windows: list[dict[str, Any]] = [{"tile": 320, "overlap": 0}, {"tile": 128, "exact": True}, {"tile": 128}]
        wide = image.astype(np.uint16) * 257
        whole, exact, plain = (predictor.upscale(wide, **how).image for how in windows)
        assert whole.std() > 500
        assert np.abs(whole.astype(int) - exact).max() <= 8  # of 65535
        assert name == "realtime_sr" or np.abs(whole.astype(int) - plain).max() > 40


def test_exact_windows_need_the_network(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exact windows need a torch model"):
        foveal.load("bicubic.x2").upscale(photo(40, 40), exact=True)
    with pytest.raises(ConfigError, match="overlap=8: exact windows share"):
        predictor_of(model_of("efficientvit_sr")).upscale(photo(40, 40), exact=True, overlap=8)


def test_impossible_windows_are_refused() -> None:
    predictor = foveal.load("bicubic.x2")
    for tile, overlap in ((60, 0), (65, 0), (64, 40), (64, -1)):
        with pytest.raises(InputError, match=f"tile={tile}, overlap={overlap}"):
            predictor.upscale(photo(40, 40), tile=tile, overlap=overlap)


def test_export_gives_the_same_picture(tmp_path: Path) -> None:
    for name in NAMES:
        model = model_of(name, 2)
        report = foveal.export(model, output=tmp_path / "x.onnx")
        exported = foveal.load(report)
        image = photo(45, 61)
        a, b = (p.upscale(image).image.astype(int) for p in (exported, predictor_of(model)))
        assert np.abs(a - b).max() <= 1


# ---- training


def folder_of_photos(root: Path) -> Path:
    """A real photograph, the one in the package: the left half in four parts, and a piece of the right."""
    street = read_image(assets.path("street", ".jpg"))[:740]
    parts = [street[top : top + 185, :640] for top in range(0, 740, 185)]
    for split, images in (("train", parts), ("val", [street[200:520, 700:1020]])):
        (root / split).mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray(image).save(root / split / f"{number}.png")
    return root


def settings(**more: Any) -> TrainConfig:
    common = {
        "model": "efficientvit_sr_w075",
        "task": "upscale",
        "epochs": 1,
        "samples_per_epoch": 240,
        "batch_size": 4,
    }
    common |= {"crop": (64, 64), "lr": 3e-3, "weight_decay": 0.0, "ema_decay": 0.9, "workers": 0}
    return TrainConfig(**(common | more))


def test_training_beats_bicubic(tmp_path: Path) -> None:
    """The common engine: after 60 steps the network is better than what it adds to, on the other half."""
    data = folder_of_photos(tmp_path / "data")
    result = foveal.train(data, config=settings(), out=tmp_path / "run")
    assert result.metric == "psnr"
    assert result.value > foveal.evaluate("bicubic.x2", data, split="val")["val"].psnr + 0.1
    again = foveal.evaluate(tmp_path / "run", data)  # all but the training split
    assert [part.name for part in again.sets] == ["val"]
    assert again["val"].psnr == pytest.approx(result.value, abs=0.01)


def test_the_same_engine_removes_noise(tmp_path: Path) -> None:
    data = folder_of_photos(tmp_path / "data")
    config = settings(
        model="realtime_sr", options={"scale": 1}, degradation={"noise": (25, 25)}, pixel_loss="charbonnier"
    )
    result = foveal.train(data, config=config, out=tmp_path / "run")
    true = read_image(data / "val" / "0.png")
    noisy = degraded(true, 1, {"noise": (25, 25)}, np.random.default_rng(0))
    repaired = foveal.load(result.folder)(noisy).image
    assert psnr(repaired, true) > psnr(noisy, true) + 2
    report = foveal.evaluate(tmp_path / "run", data, split="val")
    assert report.sets[0].small == "noise 25..25"
    assert report["val"].psnr == pytest.approx(result.value, abs=0.01)


@pytest.mark.parametrize("ref", [ref for ref, weights in assets.WEIGHTS.items() if weights.task == "upscale"])
def test_weights_in_the_package_restore_what_shrinking_took(ref: str) -> None:
    """Far better than interpolation on a photograph that no training saw, and alike on every runtime."""
    scale = int(ref.rpartition("x")[2])
    large = read_image(assets.path("street", ".jpg"))[300:540, 400:760]
    small = bicubic_downscale(large, scale)

    def quality(name: str, **options: Any) -> float:
        return fidelity(foveal.load(name, **options)(small).image, large, scale)[0]

    quick = quality(ref, runtime="onnxruntime")
    assert quick > quality(f"bicubic.x{scale}") + {2: 1.5, 4: 0.7}[scale]
    assert quality(ref, runtime="torch") == pytest.approx(quick, abs=0.02)
    assert quality(ref, runtime="torch", dtype="float16") == pytest.approx(quick, abs=0.02)


def test_crops_grow_in_the_last_quarter(tmp_path: Path) -> None:
    config = TrainConfig(task="upscale", splits=("train",), val_split="", crop=(32, 32), late_crop=(48, 64))
    job = UpscaleJob(folder_of_photos(tmp_path), config, Progress(enabled=False))
    sides = {done: job.sample(0, np.random.default_rng(0), done)[1].shape[1:] for done in (0.0, 0.74, 0.75, 1.0)}
    assert sides == {0.0: (32, 32), 0.74: (32, 32), 0.75: (48, 64), 1.0: (48, 64)}
    with pytest.raises(ConfigError, match=r"late_crop=\(64, 64\) is for 'upscale', not 'segment': leave it out"):
        TrainConfig(task="segment", late_crop=(64, 64))
    with pytest.raises(ConfigError, match=r"late_crop.* is out of range"):
        TrainConfig(task="upscale", late_crop=(16, 16))


def test_impossible_training_is_refused(tmp_path: Path) -> None:
    data = folder_of_photos(tmp_path / "data")
    common = {"model": "realtime_sr", "task": "upscale", "out": tmp_path / "run"}
    with pytest.raises(ConfigError, match="scale 1 repairs images: say what from"):
        foveal.train(data, options={"scale": 1}, crop=(32, 32), **common)
    with pytest.raises(ConfigError, match="divisible by the scale 3"):
        foveal.train(data, options={"scale": 3}, crop=(64, 64), **common)
    with pytest.raises(ConfigError, match="divisible by the scale 2"):
        foveal.train(data, crop=(64, 64), late_crop=(97, 97), **common)
    with pytest.raises(ConfigError, match="degradation"):
        foveal.train(data, degradation={"jpeg": (0, 300)}, **common)
