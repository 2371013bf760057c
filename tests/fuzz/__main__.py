"""``./dev fuzz [NAMES] [--inputs N] [--json]``: inputs led by coverage, through every parser that others can reach.

Needs atheris (``.venv/bin/pip install atheris``), which is not among the locked dependencies: 35 MB that one job uses.
Each target runs in a process of its own, with its share of the inputs. What is told of it: inputs, exceptions, and how
much memory grew from a tenth of the inputs to the end. Exits with 1 when anything raised or grew.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

GROWTH_MB = 32  # what caches with a bound may still fill up after a tenth of the inputs
LONGEST = 1400  # bytes of an input
PAGE = os.sysconf("SC_PAGE_SIZE")


def memory_mb() -> float:
    """Return the resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 1e6


def child(name: str, inputs: int, corpus: str, seed: int) -> None:
    """Fuzz one target; ends the process."""
    import atheris

    with atheris.instrument_imports(include=["meshnode"]):
        from tests.fuzz.targets import TARGETS
    target = TARGETS[name]
    for number, data in enumerate(target.seeds):
        Path(corpus, f"seed-{number}").write_bytes(data)
    figures = Path(corpus).parent / "figures"
    done, early = 0, 0.0

    def one(data: bytes) -> None:
        nonlocal done, early
        target.run(data)
        done += 1
        if done == inputs // 10:
            gc.collect()
            early = memory_mb()
        if done % 1000 == 0 or done == inputs:
            figures.write_text(f"{done} {early} {memory_mb()}")

    options = [f"-runs={inputs}", f"-max_len={LONGEST}", f"-seed={seed}", "-print_final_stats=0", "-verbosity=0"]
    atheris.Setup(["fuzz", *options, f"-artifact_prefix={corpus}/", corpus], one)
    atheris.Fuzz()


def said(output: str) -> str:
    """Return the traceback in what a target printed."""
    at = output.find("Uncaught Python exception")
    return output[at:][:3000] if at >= 0 else output[-1000:]


def run(name: str, inputs: int, seed: int) -> dict[str, Any]:
    """Fuzz one target in a process of its own and return its figures."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        command = [sys.executable, "-m", "tests.fuzz", "--child", name, str(inputs), str(corpus), str(seed)]
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace")
        figures = Path(folder, "figures")
        done, early, late = map(float, figures.read_text().split()) if figures.exists() else (0.0, 0.0, 0.0)
        bad = [
            path.read_bytes().hex() for path in corpus.iterdir() if path.name.startswith(("crash", "timeout", "oom"))
        ]
    return {
        "target": name,
        "inputs": int(done),
        "exceptions": int(ended.returncode != 0),
        "grew_MB": round(late - early, 1) if early else None,
        "input": bad,
        "said": said(ended.stdout + ended.stderr) if ended.returncode else "",
    }


def line(row: dict[str, Any]) -> str:
    """Return the figures of a target for people."""
    text = f"{row['target']:22} {row['inputs']:>10,} inputs, {row['exceptions']} exceptions, {row['grew_MB']} MB more"
    return text + (f"\n{row['said']}" if row["said"] else "")


def main() -> int:
    """Fuzz all targets, or those that are named."""
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], int(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
        return 0
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(prog="./dev fuzz", description="inputs led by coverage for all parsers")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(TARGETS))
    parser.add_argument("--inputs", type=int, default=10_000_000, help="in all (10 million)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    try:
        import atheris  # noqa: F401
    except ImportError:
        print("fuzz: needs atheris: .venv/bin/pip install atheris", file=sys.stderr)
        return 2
    names = given.names or list(TARGETS)
    unknown = [name for name in names if name not in TARGETS]
    if unknown:
        parser.error(f"no target is called {unknown[0]}")
    shares = sum(TARGETS[name].share for name in names)
    found = []
    for name in names:
        row = run(name, -(-given.inputs * TARGETS[name].share // shares), given.seed)
        found.append(row)
        print(json.dumps(row) if given.json else line(row), flush=True)
    bad = [row for row in found if row["exceptions"] or (row["grew_MB"] or 0) > GROWTH_MB]
    total = sum(row["inputs"] for row in found)
    print(json.dumps({"inputs": total, "bad": len(bad)}) if given.json else f"{total:,} inputs, {len(bad)} targets bad")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
