"""The ``foveal`` command: names of verbs and their modules, no logic. Help imports neither torch nor numpy."""

from __future__ import annotations

import os
import sys
import warnings
from typing import NoReturn

import cyclopts

from .commands import mistakes, streams
from .errors import FovealError, InputError
from .text import notice


def _version() -> str:
    from importlib import metadata

    return metadata.version("foveal")


app = cyclopts.App(
    name="foveal",
    help="Sharp, fast vision on large images: segment, train, evaluate, export, measure.",
    version=_version,
    help_on_error=False,
    default_parameter=cyclopts.Parameter(negative_iterable=()),  # no --empty-NAME for options with several values
)
for _target, _help in {
    "segment:segment": "Segment images: class masks and overlays.",
    "upscale:upscale": "Upscale images.",
    "regress:regress": "Predict maps of values: depth, surface normals, alpha.",
    "prompt:prompt": "Cut out the object at points or in a box, or all objects.",
    "classify:classify": "Classify images.",
    "predict:predict": "Predict with any model, whatever its task.",
    "video:video": "Segment or upscale a video, frame by frame.",
    "batch:batch": "Run a model on many images, by several processes or machines; a second start continues.",
    "serve:serve": "Serve models over HTTP, with a page to click on.",
    "demo:demo": "Segment and upscale the bundled photograph with the bundled weights.",
    "models:models": "List the models, or the options and published figures of one model.",
    "train:app": "Train a model on a data set.",
    "evaluate:evaluate": "Score a model on a labelled data set.",
    "compare:compare": "Compare two evaluations: difference, confidence interval, p-value.",
    "export:export": "Export a model to a file that runs without torch.",
    "bench:bench": "Compare the speed of models on this machine.",
    "share:save": "Save a model as a folder with weights, description and model card.",
    "share:push": "Upload a model with its card to the hub.",
    "convert:convert": "Convert any published checkpoint to a safetensors file.",
}.items():
    app.command(f"foveal.commands.{_target}", name=_target.removesuffix(":app").rpartition(":")[2], help=_help)

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
    streams.prepare()
    try:
        _check_working_folder()
        arguments = _join_sides(arguments)
        mistakes.check(arguments)
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        streams.finish()
    except cyclopts.CycloptsError as error:
        _fail(mistakes.describe(error), 2)
    except FovealError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the program that reads the output, for example head, has ended
        streams.abandon_output()
        sys.exit(0)
    except OSError as error:  # that no verb expects, such as a full temporary folder
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> NoReturn:
    try:
        streams.finish()
    except (OSError, FovealError):
        streams.abandon_output()
    notice(f"foveal: {' '.join(message.split())}")
    sys.exit(code)


def _check_working_folder() -> None:
    """Refuse to run in a removed folder, where relative paths mean nothing and torch cannot be imported."""
    try:
        os.getcwd()
    except OSError as error:
        raise InputError(f"the working folder cannot be used ({error.strerror}): change to another one") from error


def _join_sides(arguments: list[str]) -> list[str]:
    """Write ``--crop 512 1024`` as ``--crop 512x1024``, since an option takes one value."""
    joined: list[str] = []
    for argument in arguments:
        if joined[-2:-1] in (["--crop"], ["--set.crop"]) and joined[-1].isdecimal() and argument.isdecimal():
            joined[-1] += f"x{argument}"
        else:
            joined.append(argument)
    return joined
