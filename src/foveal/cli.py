"""The ``foveal`` command: names of verbs and where they live, no logic; help needs neither torch nor numpy."""

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
for _place, _help in {
    "segment:segment": "Segment photographs: class masks and overlays.",
    "upscale:upscale": "Enlarge photographs.",
    "prompt:prompt": "Cut out what is pointed at, or everything.",
    "classify:classify": "Classify photographs.",
    "predict:predict": "Predict with any model; the task is the model's.",
    "demo:demo": "Segment and enlarge the bundled photograph with the bundled weights.",
    "models:models": "List the models, or one model's options and published figures.",
    "train:app": "Train a model on a data set.",
    "evaluate:evaluate": "Score a model on a labelled data set.",
    "compare:compare": "Compare two evaluations: difference, interval, p.",
    "export:export": "Write a model as a file that runs without torch.",
    "bench:bench": "Measure models against each other on this machine.",
    "convert:convert": "Turn any published checkpoint into a safetensors file.",
}.items():
    app.command(f"foveal.commands.{_place}", name=_place.partition(":")[0], help=_help)

_data = cyclopts.App(name="data", help="Look at data sets.")
_data.command(
    "foveal.commands.data:data_check", name="check", help="Read a whole data set: what is in it, what is wrong."
)
app.command(_data)


def main(arguments: list[str] | None = None) -> None:
    """Run one command. Exit code 0: done; 1: the work, or part of it, failed; 2: the request was wrong."""
    arguments = sys.argv[1:] if arguments is None else arguments
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of odd metadata: the command has one line for each image
    try:
        _refuse_entries(arguments)
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except FovealError as error:
        _fail(error)
    except cyclopts.CycloptsError as error:
        _fail(error)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        sys.stderr.close()
        sys.exit(0)
    sys.exit(code if isinstance(code, int) else 0)


def _refuse_entries(arguments: list[str]) -> None:
    """A setting with entries is one value, since naming some would leave the rest open; cyclopts fails on a mixture."""
    for argument in arguments:
        name, _, entry = argument.partition("=")[0].removeprefix("--set.").partition(".")
        if argument.startswith("--set.") and entry:
            raise ConfigError(f"--set.{name}.{entry}: give all entries at once, --set.{name} '{{{entry}: ...}}'")


def _fail(error: Exception) -> NoReturn:
    print("foveal:", " ".join(str(error).split()), file=sys.stderr)
    sys.exit(getattr(error, "exit_code", 2))
