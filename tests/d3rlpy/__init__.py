"""The d3rlpy API."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # d3rlpy imports the old gym, which warns
    import d3rlpy  # noqa: F401
