"""``python -m benchmarks ...`` is ``dmamba bench ...``."""

from __future__ import annotations

import os
import sys

from sb3_dmamba.cli import app
from sb3_dmamba.machine import set_thread_variables

if __name__ == "__main__":
    set_thread_variables(os.environ)
    app(["bench", *sys.argv[1:]], prog_name="python -m")
