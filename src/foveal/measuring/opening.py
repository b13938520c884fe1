"""From candidates to what is timed: models by name get random weights, and a file where their runtime needs one."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, DependencyError
from ..info import ModelInfo
from ..prediction.interpolation import interpolation
from ..prediction.load import load
from ..prediction.predictor import Predictor
from ..prediction.prompting import decoder_prompts
from ..prediction.runner import PromptRunner, Runtime
from ..prediction.runtimes import RUNTIMES, choose
from ..prediction.torch_runner import TorchPrompter, TorchRunner
from ..task import find_task
from ..weights.references import find_local
from .candidates import CLICK, Candidate
from .peers import is_peer, open_peer
from .rounds import Work

if TYPE_CHECKING:
    import torch

#: Sizes of the input, (H, W), for tasks whose models have none of their own.
SIZES = {"classify": (224, 224), "segment": (512, 1024), "upscale": (270, 480)}
_OTHER_SIZE = (224, 224)  # of peers for no task, and of further tasks


@dataclass(frozen=True)
class Opened:
    """A candidate that is ready to be timed.

    Attributes:
        candidate: with its size and batch.
        source: what :func:`foveal.load` takes for it: the reference, or a file that was written for this benchmark.
        threads: threads of its runtime.
        task: its task; empty for a peer for which none was named.
        runtime: what runs it, as text.
        info: description of the model; ``None`` for peers.
        works: what is timed, by part: "" is the network, and promptable models have "encoder" and "click".
        model: the network of a torch peer, else ``None``.
    """

    candidate: Candidate
    source: str
    threads: int
    task: str
    runtime: str
    info: ModelInfo | None
    works: Mapping[str, Work]
    model: Any = None


def open_all(candidates: Sequence[Candidate], threads: int, folder: Path) -> list[Opened]:
    """Open candidates of any kind; a peer gets the task and the size of the first model, unless it has its own.

    Args:
        candidates: in the order of the report.
        threads: threads of each runtime, unless the candidate has its own.
        folder: for files that runtimes need.

    Raises:
        ConfigError: a setting that cannot apply to its candidate.
        FovealError: as :func:`foveal.load`.
    """
    opened: dict[int, Opened] = {}
    for index, candidate in enumerate(candidates):
        if not is_peer(candidate.ref):
            opened[index] = open_model(candidate, candidate.threads or threads, folder)
    first = opened[min(opened)] if opened else None
    for index, candidate in enumerate(candidates):
        if index not in opened:
            task = candidate.task or (first.task if first else "")
            size = candidate.size or (first.candidate.size if first else None) or SIZES.get(task, _OTHER_SIZE)
            opened[index] = _open_peer(candidate.replace(task=task, size=size), candidate.threads or threads)
    return [opened[index] for index in sorted(opened)]


def _open_peer(candidate: Candidate, threads: int) -> Opened:
    candidate = candidate.replace(batch=candidate.batch or 1)
    peer = open_peer(candidate, threads, image_of(candidate, 3))
    task = candidate.task or ""
    return Opened(candidate, candidate.ref, threads, task, peer.runtime, None, {"": peer.work}, peer.model)


def open_model(candidate: Candidate, threads: int, folder: Path) -> Opened:
    """Open a model that :func:`foveal.load` takes, or an architecture with random weights.

    Raises:
        ConfigError: a setting that cannot apply to it.
        FovealError: as :func:`foveal.load`.
    """
    random_weights = _names_architecture(candidate.ref)
    source = _write_random(candidate, folder) if random_weights else candidate.ref
    source, predictor = _load(candidate, source, threads, folder)
    info = predictor.info
    task = find_task(info.task)
    if not task.has_head:
        raise ConfigError(
            f"{candidate.ref}: a backbone gives {task.result}, one for each stage: give a model of a task"
        )
    if candidate.task not in (None, info.task):
        raise ConfigError(
            f"{candidate.ref} is for {info.task!r}; task={candidate.task} is for models by name: leave it out, or "
            f"write NAME@task={candidate.task} at those"
        )
    candidate = _with_input(candidate, info, task.takes_prompts)
    image = image_of(candidate, info.in_chans)
    works = _prompt_works(predictor, image) if task.takes_prompts else {"": _network_work(predictor, image)}
    runtime = predictor.runtime.partition(": ")[0] + (", random weights" if random_weights else "")
    return Opened(candidate, source, threads, info.task, runtime, info, works)


def image_of(candidate: Candidate, channels: int) -> NDArray[np.float32]:
    """The images that a candidate runs on, the same values for all candidates of the same size and batch."""
    shape = (candidate.batch or 1, channels, *(candidate.size or _OTHER_SIZE))
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


# ---- loading


def _names_architecture(ref: str) -> bool:
    """Whether ``ref`` is the name of an architecture; exported files are measured without torch."""
    if not re.fullmatch(r"\w+", ref) or find_local(ref) is not None:
        return False
    try:
        from ..factory.create import list_models
    except ModuleNotFoundError as error:
        raise DependencyError(f"{ref}: architectures need {error.name}: pip install 'foveal[torch]'") from error
    return ref in list_models()


def _write_random(candidate: Candidate, folder: Path) -> str:
    """Write a checkpoint of an architecture with random weights, always the same, so that every runtime can load it."""
    import torch

    from ..factory.create import create_model
    from ..info import info_of
    from ..models.registry import check_takes_images
    from ..weights.checkpoints import save_checkpoint

    check_takes_images(candidate.ref)
    path = folder / f"{candidate.ref}.{candidate.task or 'default'}.safetensors"
    if not path.exists():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = create_model(candidate.ref, candidate.task)
        save_checkpoint(path, model.state_dict(), info_of(model))
    return str(path)


def _load(candidate: Candidate, source: str, threads: int, folder: Path) -> tuple[str, Predictor]:
    """Load a model with the candidate's settings; export it first if its runtime opens exported files only."""
    settings = {"device": candidate.device, "dtype": candidate.dtype, "runtime": candidate.runtime}
    if predictor := interpolation(source):
        for name in (*settings, "threads"):
            if candidate.asks_for(name) and getattr(candidate, name) != 1:
                raise ConfigError(
                    f"{source} is interpolation with numpy on one thread of the CPU: leave out "
                    f"{name}={getattr(candidate, name)}"
                )
        return source, predictor
    runtime = RUNTIMES.get(candidate.runtime)
    if runtime is not None and _needs_export(source, runtime):
        if not runtime.runs(candidate.device, candidate.dtype):
            raise ConfigError(
                f"{candidate.ref}: {runtime.name} runs on {' or '.join(runtime.devices) or 'any device'} in "
                f"{' or '.join(runtime.dtypes)}, not with device={candidate.device}, dtype={candidate.dtype}"
            )
        source = _export(source, runtime.suffixes, folder)
    return source, load(source, threads=threads, **settings)


def _needs_export(source: str, runtime: Runtime) -> bool:
    """Whether ``source`` is a checkpoint and the runtime opens exported files only."""
    if any(Path(source).suffix in other.suffixes for other in RUNTIMES.values()):
        return False
    try:
        choose(source, runtime.name)
    except ConfigError:
        return bool(runtime.suffixes)
    return False


def _export(source: str, suffixes: Sequence[str], folder: Path) -> str:
    """Export a checkpoint to a format with one of the suffixes."""
    from ..exporting.export import export
    from ..exporting.formats import FORMATS

    format = next((format for format in FORMATS.values() if format.suffixes[0] in suffixes), None)
    if format is None:
        raise ConfigError(f"{source}: Foveal writes no {' or '.join(suffixes)} files: give an exported file")
    name = re.sub(r"\W+", "_", source.removeprefix(str(folder))).strip("_")
    name += f".{_version(Path(source))}"  # names of several checkpoints may be equal up to their signs
    suffix = format.suffixes[0]
    files = [folder / f"{name}{part}{suffix}" for part in ("", ".encoder")]  # of promptable models, the encoder's
    written = next((path for path in files if path.exists()), None)
    return str(written or export(source, format.name, output=files[0]).path)


def _version(source: Path) -> str:
    """What differs between checkpoints, and between the contents that one has at different times."""
    facts = [str(source.absolute())]
    if source.exists():
        status = source.stat()
        facts += [str(status.st_size), str(status.st_mtime_ns)]
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:8]


# ---- what is timed


def _with_input(candidate: Candidate, info: ModelInfo, takes_prompts: bool) -> Candidate:
    """Complete the size and the number of images; the image encoders of promptable models have one size."""
    size, batch = candidate.size or SIZES.get(info.task, _OTHER_SIZE), candidate.batch or 1
    if takes_prompts:
        own = info.preprocess.size or size
        if candidate.size not in (None, own):
            raise ConfigError(
                f"{candidate.ref} takes images of {own[0]}x{own[1]} only: leave out size={size[0]}x{size[1]}, or give "
                "it to the other candidates, REF@size=HEIGHTxWIDTH"
            )
        if batch > 1:
            raise ConfigError(f"{candidate.ref} encodes one image at a time: leave out batch={batch}")
        size = own
    return candidate.replace(size=size, batch=batch)


def _network_work(predictor: Predictor, image: NDArray[np.float32]) -> Work:
    """One run of the network; on an accelerator the images are there already and the output stays there."""
    runner: Any = predictor.runner
    device = _accelerator(runner)
    if device is not None and isinstance(runner, TorchRunner):
        return Work(_on_device(runner.model, image, device, runner.dtype, runner.options), device)
    return Work(partial(runner, image), device)


def _prompt_works(predictor: Predictor, image: NDArray[np.float32]) -> dict[str, Work]:
    """The image encoder, and a click into the middle of an image that is already encoded."""
    runner: Any = predictor.prompter()
    device = _accelerator(runner)
    encode: Callable[[], object] = partial(runner, image)
    if device is not None and isinstance(runner, TorchPrompter):
        encode = _on_device(runner.model.image_encoder, image, device, runner.dtype, {})
    middle = np.full((1, 1, 2), 512.0)  # in the frame, whose long side is 1024
    coords, labels = decoder_prompts(1, middle, None, np.ones((1, 1), np.int64))
    decode = cast("PromptRunner", runner).decode
    click = partial(decode, runner(image), coords, labels, None, -np.inf)
    return {"encoder": Work(encode, device), CLICK: Work(click, device)}


def _accelerator(runner: Any) -> torch.device | None:
    device = getattr(runner, "device", None)
    return None if getattr(device, "type", "cpu") == "cpu" else device


def _on_device(
    model: Any, image: NDArray[np.float32], device: torch.device, dtype: torch.dtype, options: Mapping[str, Any]
) -> Callable[[], object]:
    import torch

    x = torch.from_numpy(image).to(device=device, dtype=dtype)

    def run() -> object:
        with torch.inference_mode():
            return model(x, **options)

    return run
