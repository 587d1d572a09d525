"""The command line, ``dmamba``."""

from sb3_dmamba.cli.app import app, main

__all__ = ["app", "main"]
