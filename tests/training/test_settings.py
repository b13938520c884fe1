"""The settings of training: declared once, with their ranges in errors, and the same flat keys as before."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml

import foveal
from foveal.config import read_yaml, to_dict
from foveal.errors import ConfigError
from foveal.training.common_settings import CommonSettings
from foveal.training.config import TASK_SETTINGS, TrainConfig, own_fields, portable_settings, resolve_config
from foveal.training.folder import RunFolder
from foveal.training.jobs import JOBS, complete_config
from foveal.training.settings import default_of, setting_fields

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))

#: The keys of recipes, of ``config.yaml`` in the folders of earlier runs and of checkpoints' notes.
KEYS_BEFORE = [
    "model",
    "task",
    "options",
    "weights",
    "splits",
    "val_split",
    "epochs",
    "samples_per_epoch",
    "shuffle_buffer",
    "batch_size",
    "accumulate",
    "crop",
    "late_crop",
    "scale",
    "area",
    "crop_ratio",
    "flip",
    "jitter",
    "tint",
    "rare_crop",
    "loss",
    "degradation",
    "pixel_loss",
    "teacher",
    "embeddings",
    "teacher_prompts",
    "freeze_encoder",
    "prompts",
    "clicks",
    "class_weights",
    "label_smoothing",
    "class_map",
    "deep_supervision",
    "lr",
    "weight_decay",
    "warmup",
    "ema_decay",
    "grad_clip",
    "grad_checkpointing",
    "freeze_bn",
    "sync_bn",
    "fsdp",
    "bn_batches",
    "precision",
    "workers",
    "cache_gib",
    "max_bad",
    "eval_every",
    "save_minutes",
    "log_every",
    "csv",
    "tensorboard",
    "seed",
]

KEYS_SINCE = [
    "device",
    "patience",
    "backbone_lr_scale",
    "in_chans",
    "auto_batch_size",
    "augment",
    "transform",
    "optimizer",
    "momentum",
    "layer_decay",
    "schedule",
    "freeze",
    "wandb",
    "mlflow",
    "drop_path",
    "zero_init_last",
    "repeats",
    "sizes",
    "distil",
    "teacher_cache",
    "tune",
    "lora_rank",
    "lora_alpha",
    "lora_where",
    "prompt_tokens",
    "regression_loss",
]

#: Values just outside the range of each setting that has one.
OUTSIDE: dict[str, list[Any]] = {
    "splits": [()],
    "epochs": [0],
    "in_chans": [-1, 1025],
    "samples_per_epoch": [-1, 7],
    "shuffle_buffer": [0],
    "batch_size": [0],
    "accumulate": [0, 9],
    "crop": [(31, 64), (64, 31)],
    "flip": [-0.1, 1.1],
    "jitter": [-0.1, 1.0],
    "tint": [-0.1, 1.0],
    "lr": [0.0, float("nan")],
    "backbone_lr_scale": [-0.1],
    "weight_decay": [-0.1],
    "warmup": [-0.1, 1.0],
    "ema_decay": [-0.1, 1.0],
    "grad_clip": [-0.1],
    "bn_batches": [-1],
    "workers": [-1],
    "cache_gib": [-0.1],
    "max_bad": [-0.1, 0.6],
    "eval_every": [0],
    "patience": [-1],
    "save_minutes": [0.0],
    "log_every": [-1],
    "seed": [-1, 1 << 63],
    "scale": [(0.0, 1.0), (2.0, 1.0)],
    "rare_crop": [-0.1, 1.1],
    "loss": [{}, {"dice": 0.0}],
    "deep_supervision": [-0.1],
    "area": [(0.0, 1.0), (0.5, 0.4), (0.5, 1.1)],
    "crop_ratio": [0.0, 1.1],
    "label_smoothing": [-0.1, 1.0],
    "late_crop": [(0, 64), (31, 31)],
    "degradation": [{"blur": (-1, 2)}, {"noise": (0, 256)}, {"jpeg": (50, 40)}],
    "teacher_prompts": [-1],
    "prompts": [0],
    "momentum": [-0.1, 1.0],
    "layer_decay": [0.0, 1.1],
    "freeze": [("stages",), ("stage0",)],
    "class_weights": [(-1.0, 2.0), (0.0, 0.0), {"a": -1.0}],
    "clicks": [-1],
    "drop_path": [-0.1, 1.0],
    "lora_rank": [0, 1025],
    "lora_alpha": [0.0],
    "prompt_tokens": [0, 257],
    "repeats": [0, 3],
    "sizes": [(31,), (64, 0)],
    "regression_loss": [{"l1": 0.0}],
}
TASK_OF = {declared.name: task for task in TASK_SETTINGS for declared, _ in own_fields(task)}


def test_one_flat_set_of_keys() -> None:
    """The keys are those of before and new ones; each is declared once."""
    keys = [declared.name for declared, _ in setting_fields(TrainConfig)]
    assert len(keys) == len(set(keys)) == sum(1 for _ in setting_fields(CommonSettings)) + len(TASK_OF)
    assert set(keys) == {*KEYS_BEFORE, *KEYS_SINCE}
    assert list(to_dict(TrainConfig())) == list(portable_settings(TrainConfig())) == keys


def test_every_setting_is_explained_and_every_number_has_a_range() -> None:
    hints = typing.get_type_hints(TrainConfig)
    for declared, info in setting_fields(TrainConfig):
        assert info.help.endswith(".")
        default = default_of(declared)
        assert info.valid is None or default is None or info.valid.contains(default)
        if hints[declared.name] in (int, float) or isinstance(default_of(declared), tuple):
            assert info.valid is not None, declared.name
        assert (info.valid is not None) == (declared.name in OUTSIDE), declared.name


@pytest.mark.parametrize("name", OUTSIDE)
def test_errors_of_range_name_the_range(name: str) -> None:
    valid = next(info.valid for declared, info in setting_fields(TrainConfig) if declared.name == name)
    assert valid is not None
    for value in OUTSIDE[name]:
        with pytest.raises(ConfigError) as error:
            TrainConfig(**{"task": TASK_OF.get(name, "segment"), name: value})
        message = str(error.value)
        assert message.startswith(f"{name}={value!r} is out of range: give {valid.text}")
        assert "\n" not in message


def test_ranges_that_depend_on_the_batch_say_its_size() -> None:
    with pytest.raises(ConfigError, match=r"^accumulate=5 is out of range: give 1 to batch_size \(4\)$"):
        TrainConfig(batch_size=4, accumulate=5)
    with pytest.raises(ConfigError, match=r"give 0, or at least batch_size \(4\)$"):
        TrainConfig(batch_size=4, samples_per_epoch=3)
    assert TrainConfig(batch_size=4, samples_per_epoch=4, accumulate=4).accumulate == 4


def test_settings_without_an_effect_are_refused() -> None:
    with pytest.raises(ConfigError, match="layer_decay has nothing to act on: leave one of the two out"):
        TrainConfig(freeze=("backbone",), layer_decay=0.8)
    assert TrainConfig(freeze=("stage2",), layer_decay=0.8).layer_decay == 0.8


#: A valid value of each setting of one task that is not its default.
OTHER_VALUES: dict[str, Any] = {
    "rare_crop": 0.5,
    "loss": {"dice": 1.0},
    "class_weights": "none",
    "class_map": "map.yaml",
    "deep_supervision": 0.4,
    "area": (0.5, 1.0),
    "crop_ratio": 1.0,
    "label_smoothing": 0.1,
    "sizes": (32, 64),
    "late_crop": (64, 64),
    "degradation": {"noise": (5, 50)},
    "pixel_loss": "charbonnier",
    "teacher_cache": "folder",
    "regression_loss": {"huber": 1.0},
    "embeddings": "folder",
    "teacher_prompts": 2,
    "freeze_encoder": True,
    "prompts": 4,
    "clicks": 1,
}


@pytest.mark.parametrize("name", TASK_OF)
def test_settings_of_another_task_are_refused(name: str) -> None:
    value, own = OTHER_VALUES[name], TASK_OF[name]
    for task in TASK_SETTINGS:
        settings = {"task": task, "weights": "in1k", "teacher": "sam"}
        make = lambda settings=settings: TrainConfig(**{**settings, name: value})  # noqa: E731
        if task == own:
            assert getattr(make(), name) == value
        else:
            message = f"^{name}={re.escape(repr(value))} is for '{own}', not '{task}': leave it out$"
            with pytest.raises(ConfigError, match=message):
                make()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_map": "map.yaml"}, "class_map='map.yaml' needs weights: give weights too, or leave class_map out"),
        ({"task": "prompt", "teacher_prompts": 2}, "teacher_prompts=2 needs teacher: "),
        ({"patience": 3, "val_split": ""}, "patience=3 needs val_split: "),
    ],
)
def test_settings_that_need_another_one(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**settings)


def test_tables_have_every_task() -> None:
    tasks = typing.get_args(typing.get_type_hints(CommonSettings)["task"])
    assert list(TASK_SETTINGS) == list(JOBS) == list(tasks)
    for task in tasks:
        assert issubclass(TrainConfig, TASK_SETTINGS[task])


def test_a_job_gets_its_own_settings_and_no_others() -> None:
    """Type checkers refuse a setting of another task in a job, because its class does not have it."""
    for task, cls in TASK_SETTINGS.items():
        names = {declared.name for declared, _ in setting_fields(cls)}
        assert {name for name, own in TASK_OF.items() if own == task} <= names
        assert not {name for name, own in TASK_OF.items() if own != task} & names


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_read(path: Path) -> None:
    values = read_yaml(path)
    config = resolve_config(path, {"epochs": 3})
    assert config.epochs == 3
    if "class_map" in values:  # its path begins at the recipe's folder
        values["class_map"] = str(path.parent / values["class_map"])
    assert {key: value for key, value in to_dict(config).items() if key in values} == {**values, "epochs": 3}


def test_earlier_runs_are_read(tmp_path: Path) -> None:
    """Their config.yaml has the settings of all tasks, and neither ``device`` nor ``patience``."""
    before = {key: value for key, value in to_dict(TrainConfig(task="classify")).items() if key in KEYS_BEFORE}
    folder = RunFolder(tmp_path)
    folder.config_file.write_text(yaml.safe_dump({**before, "class_weights": "none", "crop_ratio": 1.0}))
    config = folder.read_config()
    assert (config.device, config.patience, config.crop_ratio) == ("auto", 0, 1.0)
    assert config.class_weights == TrainConfig().class_weights  # of segmentation


def test_flat_arguments_in_python() -> None:
    """The public class takes the settings of a task like the common ones; overrides replace those of an object."""
    config = foveal.TrainConfig(model="efficientvit_b1", epochs=7, loss={"dice": 1.0})
    assert (config.epochs, config.loss, config.lr) == (7, {"dice": 1.0}, 2e-3)
    changed = resolve_config(config, {"loss": {"lovasz": 2}, "crop": [64, 96]})
    assert (changed.model, changed.epochs, changed.loss, changed.crop) == (
        "efficientvit_b1",
        7,
        {"lovasz": 2.0},
        (64, 96),
    )
    assert TrainConfig().loss is not TrainConfig().loss
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.epochs = 8  # type: ignore[misc]
    with pytest.raises(ConfigError, match=r"options: unknown key 'epoch'; did you mean 'epochs'\?"):
        resolve_config(None, {"epoch": 3})


def test_paths_in_checkpoints_are_names_alone() -> None:
    config = TrainConfig(task="prompt", weights="/home/me/runs/one", teacher="/data/sam.pth", embeddings="/data/cache")
    notes = portable_settings(config)
    assert (notes["weights"], notes["teacher"], notes["embeddings"]) == ("one", "sam.pth", "cache")


def test_embeddings_are_in_the_folder_of_the_run() -> None:
    run = Path("runs/one")
    assert complete_config(TrainConfig(task="prompt", teacher="sam"), run).embeddings == str(run / "embeddings")
    for config in (
        TrainConfig(task="prompt"),
        TrainConfig(task="prompt", teacher="sam", embeddings="x"),
        TrainConfig(),
    ):
        assert complete_config(config, run).embeddings == config.embeddings


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (1.0, 0)),
        ({"weights": "cityscapes"}, (0.1, 10)),
        ({"model": "efficientvit_b0.cityscapes"}, (0.1, 10)),
        ({"task": "classify", "weights": "in1k"}, (0.1, 10)),
        ({"weights": "cityscapes", "lr": 3e-4}, (1.0, 0)),  # a recipe that names lr
        ({"weights": "cityscapes", "freeze_bn": True}, (0.1, 0)),
        ({"weights": "cityscapes", "backbone_lr_scale": 1.0}, (1.0, 0)),
        ({"weights": "cityscapes", "lr": 3e-4, "backbone_lr_scale": 0.0, "bn_batches": 3}, (0.0, 3)),
        ({"task": "upscale", "weights": "runs/x2"}, (1.0, 0)),
        ({"task": "prompt", "weights": "mobilesam"}, (1.0, 0)),
    ],
)
def test_defaults_of_fine_tuning(settings: dict[str, Any], expected: tuple[float, int]) -> None:
    config = complete_config(TrainConfig(**settings), Path("run"))
    assert (config.backbone_lr_scale, config.bn_batches) == expected
    assert complete_config(config, Path("run")) == config


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_train_the_backbone_like_the_head(path: Path) -> None:
    """They name their lr, so that defaults of fine-tuning do not change published results."""
    weights = "" if path.stem.startswith("tiny_imagenet") else read_yaml(path).get("weights", "run")  # these have none
    config = complete_config(resolve_config(path, {"weights": weights}), Path("run"))
    assert config.backbone_lr_scale == 1
    assert config.bn_batches == read_yaml(path).get("bn_batches", 0)


@pytest.mark.parametrize("crop", [512, "512", "512x512", "512 X 512", "512,512", [512, 512]])
def test_crops_in_customary_forms(crop: Any) -> None:
    assert resolve_config(None, {"crop": crop, "task": "classify"}).crop == (512, 512)
    assert resolve_config(None, {"late_crop": crop, "task": "upscale"}).late_crop == (512, 512)
    assert TrainConfig(crop=crop if isinstance(crop, str | int) else tuple(crop)).crop == (512, 512)


def test_settings_need_neither_torch_nor_numpy() -> None:
    code = "import sys, foveal.training.config, foveal.commands.train\n"
    code += "heavy = {'torch', 'numpy', 'PIL', 'accelerate'} & set(sys.modules)\nassert not heavy, heavy"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
