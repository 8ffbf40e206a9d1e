"""Functions of the user's that a configuration names by their import path."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from museg_ray.errors import ConfigError


def load_function(key: str, path: str) -> Callable[..., Any]:
    """The function at `package.module.function`.

    Args:
        key: the configuration key that holds the path; errors name it.
        path: of the function.

    Raises:
        ConfigError: no such module or function.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # as `python -m` does; the `museg` command has its own folder there instead
    module_name, _, function_name = path.rpartition(".")
    try:
        function = getattr(importlib.import_module(module_name), function_name) if module_name else None
    except Exception as error:  # whatever the user's module does while it is imported
        fault = f"{type(error).__name__}: {error}"
        raise ConfigError(
            f"{key} is {path!r}, which cannot be imported: {fault}. Expected package.module.function; the package must "
            "be installed, or lie in the working directory (in a Ray job: in --working-dir)."
        ) from error
    if not callable(function):
        raise ConfigError(f"{key} is {path!r}; expected package.module.function, a function to call.")
    return function
