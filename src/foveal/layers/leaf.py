"""Functions that tracers do not follow: one node of a graph of ``torch.fx``, or a constant of ``torch.compile``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import chain
from typing import Any, ParamSpec, TypeVar, cast

from torch.fx import Proxy

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def leaf(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Make a function one node of a graph that ``torch.fx`` records, whatever it computes inside.

    ``torch.fx`` follows a model with proxies, which have no values. A function that compares sizes, makes a tensor of a
    size or chooses by dtype or device is therefore not followed but called when the graph runs. Other tracers
    (``torch.export``, ``torch.compile``, ``torch.jit.trace``) have values and follow it.

    ``torch.fx.wrap`` does the same for one module that calls the function; this is for all of them.

    Args:
        function: a function whose proxies, if there are any, are arguments themselves, not parts of arguments.
    """

    @functools.wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        for argument in chain(args, kwargs.values()):
            if isinstance(argument, Proxy):
                given: Any = kwargs
                return cast(Result, argument.tracer.create_proxy("call_function", call, args, given))
        return function(*args, **kwargs)

    return call


def constant(function: Callable[[], bool]) -> Callable[[], bool]:
    """Let ``torch.compile`` call a function once and take the result as a constant.

    ``torch.compiler.assume_constant_result`` sets the same attribute, but first imports the compiler, which takes a
    second of each process that loads a model.
    """
    marked: Any = function
    marked._dynamo_marked_constant = True
    return function
