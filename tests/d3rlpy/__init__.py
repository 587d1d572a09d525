"""The d3rlpy API."""

import contextlib
import warnings

with warnings.catch_warnings(), contextlib.suppress(ModuleNotFoundError):  # conftest.py then skips
    warnings.simplefilter("ignore")  # d3rlpy imports the old gym, which warns
    import d3rlpy  # noqa: F401
