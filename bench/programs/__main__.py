"""``python -m bench.programs [--short] [NAME]``: the table by itself, an object a line."""

from __future__ import annotations

import json
import sys

from bench.programs import run
from bench.programs.stage import SHORT, Work

if __name__ == "__main__":
    named = [word for word in sys.argv[1:] if not word.startswith("-")]
    for row in run(SHORT if "--short" in sys.argv else Work(), *named):
        print(json.dumps(row), flush=True)
