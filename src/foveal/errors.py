"""The exceptions that Foveal raises, and a helper that suggests the nearest valid name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from .text import printable


class FovealError(Exception):
    """Base of all errors that the caller can correct: the message says what, where and what to do.

    Attributes:
        exit_code: exit code of the command line: 2 if the request was wrong, 1 if the work failed.
    """

    exit_code = 2

    def __str__(self) -> str:
        """The message on one line; control characters, which names and files may contain, are escapes."""
        return printable(" ".join(super().__str__().splitlines()))


class InputError(FovealError):
    """An image, a size or an argument cannot be used."""


class OutOfMemoryError(InputError):
    """There is not enough memory, of the machine or of a GPU, for an image or a batch."""


class DataError(FovealError):
    """A data set is incomplete, inconsistent or unreadable."""


class CheckpointError(FovealError):
    """A checkpoint does not exist, is unsafe or damaged, or does not fit the model."""


class ConfigError(FovealError):
    """An option, a name or a configuration key is unknown, of the wrong type or out of range."""


class ExportError(FovealError):
    """A model cannot be exported, or its exported file computes something else."""

    exit_code = 1


class TrainingError(FovealError):
    """A training run cannot continue."""

    exit_code = 1


class DependencyError(FovealError):
    """A feature needs an optional dependency that is not installed."""


#: What libraries say that have no error type for it: torch's allocator, the C++ library, oneDNN, ONNX Runtime.
_OUT_OF_MEMORY = (
    "out of memory", "not enough memory", "allocate memory", "std::bad_alloc", "bad allocation",
    "could not create a primitive",
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, also one of another library, says that there was not enough memory."""
    if isinstance(error, MemoryError | OutOfMemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, too
        return True
    text = str(error).lower()
    return not isinstance(error, FovealError) and any(words in text for words in _OUT_OF_MEMORY)


_COMPARED, _LONGEST = 2_000, 200  # names and characters: difflib's time grows with the square of the length

#: Names by which this field's programs call the same thing. The nearest name is a valid one of the first group that has
#: one, and only otherwise the most similar one.
_SAME: tuple[tuple[str, ...], ...] = (
    ("batch_size", "batch", "bs", "train_batch_size", "per_device_train_batch_size"),
    ("crop", "size", "image_size", "img_size", "imgsz", "input_size", "img_sz", "resolution"),
    ("lr", "lr0", "learning_rate", "base_lr", "blr"),
    ("epochs", "epoch", "num_epochs", "n_epochs", "max_epochs", "num_train_epochs"),
    ("workers", "num_workers", "n_workers", "dataloader_num_workers"),
    ("weights", "checkpoint", "checkpoint_path", "ckpt", "ckpt_path", "pretrained", "encoder_weights", "load_from"),
    ("model", "model_name", "arch", "architecture", "backbone", "encoder_name", "weights", "checkpoint", "ckpt"),
    ("num_classes", "nc", "n_classes", "classes", "num_labels"),
    ("in_chans", "in_channels", "channels", "num_channels"),
    ("out", "output", "output_dir", "out_dir", "save_dir", "project"),
    ("data", "dataset", "data_dir", "data_path", "root"),
    ("images", "image", "source", "input", "inputs"),
    ("precision", "dtype", "amp", "mixed_precision", "fp16", "bf16", "half"),
    ("weight_decay", "wd"),
    ("warmup", "warmup_epochs", "warmup_steps", "warmup_ratio"),
    ("patience", "early_stopping", "early_stopping_patience"),
    ("device", "devices", "gpu", "gpus", "cuda", "accelerator"),
    ("label_smoothing", "smoothing", "label_smoothing_factor"),
    ("grad_clip", "clip_grad", "gradient_clip_val", "max_grad_norm"),
    ("accumulate", "grad_accum_steps", "gradient_accumulation_steps", "accumulate_grad_batches"),
    ("ema_decay", "ema", "model_ema_decay"),
    ("grad_checkpointing", "gradient_checkpointing"),
    ("sync_bn", "sync_batchnorm"),
    ("drop_path_rate", "drop_path"),
    ("dropout", "drop", "drop_rate"),
    ("config", "cfg", "recipe", "config_file"),
    ("seed", "random_seed", "random_state"),
    ("to", "format"),
    ("split", "subset", "val_split"),
    ("resume", "resume_from", "resume_from_checkpoint"),
    ("runtime", "backend", "engine"),
    ("threads", "num_threads"),
    ("licence", "license"),
)


def closest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name that means the same as ``name`` or, if there is none, is the most similar; ``None``: none is."""
    compared = [each for each in sorted(set(valid))[:_COMPARED] if len(each) < _LONGEST]
    plain = {_plain(each): each for each in reversed(compared)}
    wanted = _plain(name[:_LONGEST])
    for group in _SAME:
        if wanted in group and (found := next((each for each in group if each in plain), None)) is not None:
            return plain[found]
    similar = difflib.get_close_matches(wanted, plain, n=1, cutoff=0.5)
    return plain[similar[0]] if similar else None


def _plain(name: str) -> str:
    """A name without the signs that an option has on the command line."""
    return name.lower().lstrip("-").removeprefix("set.").replace("-", "_")


def nearest(name: str, valid: Iterable[str]) -> str:
    """End of an error message: ``"; did you mean 'x'?"`` with the :func:`closest` name, else a list of valid names."""
    names = sorted(set(valid))
    if (found := closest(name, names)) is not None:
        return f"; did you mean {found!r}?"
    if not names:
        return ""
    listed = ", ".join(each[:_LONGEST] for each in names[:12]) + (", ..." if len(names) > 12 else "")
    return f"; valid: {listed}"
