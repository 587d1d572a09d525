"""``python -m benchmarks ...`` is ``dmamba bench ...``."""

from __future__ import annotations

import sys

from sb3_dmamba.cli import app

if __name__ == "__main__":
    app(["bench", *sys.argv[1:]], prog_name="python -m")
