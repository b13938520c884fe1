"""The ``foveal`` command: names of verbs and their modules, no logic. Help imports neither torch nor numpy."""

from __future__ import annotations

import sys
import warnings
from importlib import metadata
from typing import NoReturn

import cyclopts

from .errors import ConfigError, FovealError

app = cyclopts.App(
    name="foveal",
    help="Sharp, fast vision on large images: segment, train, evaluate, export, measure.",
    version=lambda: metadata.version("foveal"),
    help_on_error=False,
)
for _target, _help in {
    "segment:segment": "Segment images: class masks and overlays.",
    "upscale:upscale": "Upscale images.",
    "prompt:prompt": "Cut out the object at points or in a box, or all objects.",
    "classify:classify": "Classify images.",
    "predict:predict": "Predict with any model, whatever its task.",
    "demo:demo": "Segment and upscale the bundled photograph with the bundled weights.",
    "models:models": "List the models, or the options and published figures of one model.",
    "train:app": "Train a model on a data set.",
    "evaluate:evaluate": "Score a model on a labelled data set.",
    "compare:compare": "Compare two evaluations: difference, confidence interval, p-value.",
    "export:export": "Export a model to a file that runs without torch.",
    "bench:bench": "Compare the speed of models on this machine.",
    "convert:convert": "Convert any published checkpoint to a safetensors file.",
}.items():
    app.command(f"foveal.commands.{_target}", name=_target.partition(":")[0], help=_help)

_data = cyclopts.App(name="data", help="Check data sets, and compute their statistics.")
_data.command(
    "foveal.commands.data:data_check", name="check", help="Read a whole data set: what is in it, and what is wrong."
)
_data.command(
    "foveal.commands.data_stats:data_stats", name="stats", help="Mean and standard deviation of the images' bands."
)
app.command(_data)


def main(arguments: list[str] | None = None) -> None:
    """Run one command. Exit code 0: all done; 1: the work, or a part of it, failed; 2: the request was wrong."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # Pillow warns about unusual metadata, but a command prints at most one line for each image.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        _refuse_single_entries(arguments)
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except FovealError as error:
        _fail(error)
    except cyclopts.CycloptsError as error:
        _fail(error)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the program that reads the output, for example head, has ended
        sys.stderr.close()
        sys.exit(0)
    sys.exit(code if isinstance(code, int) else 0)


def _refuse_single_entries(arguments: list[str]) -> None:
    """Refuse ``--set.NAME.ENTRY``: a setting with entries is one value, given with all entries at once.

    Otherwise the entries not named would be undefined, and cyclopts fails on a mixture of both forms.
    """
    for argument in arguments:
        name, _, entry = argument.partition("=")[0].removeprefix("--set.").partition(".")
        if argument.startswith("--set.") and entry:
            raise ConfigError(f"--set.{name}.{entry}: give all entries at once, --set.{name} '{{{entry}: ...}}'")


def _fail(error: Exception) -> NoReturn:
    print("foveal:", " ".join(str(error).split()), file=sys.stderr)
    sys.exit(getattr(error, "exit_code", 2))
