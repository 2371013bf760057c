"""``./dev mutate [--list] [--only NAME] [PATTERN]``: changes the code of the cores and says what no test notices.

Two kinds of change: those of ``tests/mutation/changes.toml``, each of which once went unnoticed, and a sample of small
ones in each core (``bench/mutations.py``), drawn by a seed. Each is made in a copy of the tree and run against that
core's own quick tests; one that breaks off, or takes ten times as long as without the change, counts as noticed.
``tests/mutation/survivors.toml`` has those that no test notices, and why. Exit code 1 when a named change, or a sampled
one without a reason there, is not noticed, or a core has less than 85 % noticed.
"""

from __future__ import annotations

import argparse
import ast
import fnmatch
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bench.mutations import Mutation, mutations, sample
from tools.children import ended_together

ROOT = Path(__file__).parent.parent
DATA = ROOT / "tests" / "mutation"
COPIED = ("meshnode", "tests", "tools", "bench", "docs", "README.md", "pyproject.toml")
SHARE = 0.85
SLOWER, AT_LEAST_S = 10.0, 30.0  # a run that takes longer than this has come to no end


@dataclass(frozen=True, slots=True)
class Core:
    """Files (patterns) and the tests that are to notice changes in them, the quickest first."""

    files: tuple[str, ...]
    tests: tuple[str, ...]


CORES = {
    "paths": Core(
        ("meshnode/paths/*.py",),
        (
            "tests/unit/test_selection.py",
            "tests/unit/test_paths.py",
            "tests/unit/test_path_mtu.py",
            "tests/unit/test_path_candidates.py",
            "tests/unit/test_relayed_paths.py",
            "tests/unit/test_path_views.py",
            "tests/unit/test_path_history.py",
            "tests/unit/test_liveness.py",
            "tests/unit/test_liars.py",
            "tests/property/test_paths_invariants.py",
        ),
    ),
    "gossip": Core(
        ("meshnode/gossip/membership/*.py", "meshnode/gossip/dissemination/*.py"),
        (
            "tests/unit/test_hyparview.py",
            "tests/unit/test_anti_entropy.py",
            "tests/unit/test_intake.py",
            "tests/unit/test_swim.py",
            "tests/unit/test_accusations.py",
            "tests/unit/test_reputation.py",
            "tests/unit/test_entry_store.py",
            "tests/property/test_gossip.py",
        ),
    ),
    "dht": Core(
        ("meshnode/discovery/dht/*.py",),
        (
            "tests/unit/test_dht_lookup.py",
            "tests/unit/test_dht_parts.py",
            "tests/unit/test_dht_shares.py",
            "tests/vectors/test_vectors.py",
            "tests/unit/test_dht_mesh.py::test_a_small_mesh_outlives_its_only_seed[5]",
        ),
    ),
    "sealing": Core(
        ("meshnode/identity/sealing.py", "meshnode/identity/record.py"),
        ("tests/unit/test_sealing.py", "tests/unit/test_record.py", "tests/vectors/test_vectors.py"),
    ),
    "relay": Core(("meshnode/relay/*.py",), ("tests/unit/test_relay.py", "tests/vectors/test_vectors.py")),
    "quic": Core(
        tuple(f"meshnode/quic/{name}.py" for name in ("connection", "stream", "preface", "hello", "packets")),
        (
            "tests/unit/test_hello.py",
            "tests/unit/test_packets.py",
            "tests/unit/test_stream.py",
            "tests/sim/test_unread.py::test_a_dialler_that_sends_much_and_never_says_hello_is_cut_off",
            "tests/vectors/test_vectors.py",
        ),
    ),
    "directory": Core(
        ("meshnode/directory/*.py",),
        ("tests/unit/test_directory.py", "tests/unit/test_names.py", "tests/unit/test_providers.py"),
    ),
    "dialing": Core(
        ("meshnode/stack/admission.py", "meshnode/stack/dialing.py"),
        (
            "tests/sim/test_dialing.py",
            "tests/sim/test_key_twins.py",
            "tests/sim/test_access.py",
            "tests/sim/test_meeting.py::test_throw_away_ids_take_neither_a_newcomers_place_nor_a_connected_peers",
            "tests/sim/test_meeting.py::test_a_peer_that_begins_after_the_dial_did_is_dialled_again",
            "tests/sim/test_meeting.py::test_a_peer_that_restarts_in_the_middle_of_a_dial_is_dialled_again",
            "tests/sim/test_meeting.py::test_a_dial_that_may_not_watch_looks_its_peer_up_again",
        ),
    ),
}


@dataclass(frozen=True, slots=True)
class Change:
    """One change to be noticed: its name, its core (or "named"), the file's new text, and the tests."""

    name: str
    core: str
    file: str
    text: bytes
    tests: tuple[str, ...]


def _span(source: str, name: str) -> tuple[int, int]:
    """First and last line (from 1) of the function or class with this dotted name, (0, 0) where there is none."""
    node: ast.AST = ast.parse(source)
    for part in name.split("."):
        found = [n for n in ast.iter_child_nodes(node) if getattr(n, "name", None) == part]
        if len(found) != 1:
            return 0, 0
        node = found[0]
    assert isinstance(node, ast.stmt)
    return node.lineno, node.end_lineno or node.lineno


def changed(source: str, where: str | None, pairs: list[list[str]]) -> str:
    """``source`` with each old text replaced by its new one, within the function or class ``where`` if one is named.

    Raises ValueError unless each old text occurs there once.
    """
    first, last = _span(source, where) if where else (1, source.count("\n") + 1)
    lines = source.splitlines(keepends=True)
    part = "".join(lines[max(0, first - 1) : last])
    for old, new in pairs:
        if part.count(old) != 1:
            raise ValueError(f"{old!r} occurs {part.count(old)} times in {where or 'the file'}")
        part = part.replace(old, new)
    return "".join((*lines[: first - 1], part, *lines[last:]))


def named() -> list[Change]:
    """The changes of ``changes.toml``. Raises ValueError when the code has moved away from one of them."""
    found = []
    for name, change in tomllib.loads((DATA / "changes.toml").read_text()).items():
        try:
            text = changed((ROOT / change["file"]).read_text(), change.get("where"), change["replace"])
        except ValueError as error:
            raise ValueError(f"{name}: {change['file']}: {error}") from None
        found.append(Change(name, "named", change["file"], text.encode(), tuple(change["tests"])))
    return found


def sampled(core: str, count: int, seed: str) -> list[Change]:
    """So many small changes of one core."""
    every: list[Mutation] = []
    sources = {}
    for pattern in CORES[core].files:
        for path in sorted(ROOT.glob(pattern)):
            file = str(path.relative_to(ROOT))
            sources[file] = path.read_bytes()
            every += mutations(file, sources[file])
    drawn = sample(every, count, seed)
    return [Change(m.key, core, m.file, m.applied(sources[m.file]), CORES[core].tests) for m in drawn]


class Tree:
    """A copy of the tree in which changes are made."""

    def __init__(self, root: Path) -> None:
        self._root = root
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(ROOT / name, root / name)

    def run(self, tests: tuple[str, ...], limit: float, *, keep_bytecode: bool = False) -> tuple[int | None, float]:
        """Exit code of the tests (None: no end within ``limit`` seconds) and how long they took."""
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *tests]
        env = {**os.environ, "PYTHONPATH": str(self._root)}
        if not keep_bytecode:
            env["PYTHONDONTWRITEBYTECODE"] = "1"
        began = time.monotonic()
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(command, cwd=self._root, env=env, stdout=quiet, stderr=quiet, start_new_session=True)
        try:
            return process.wait(limit), time.monotonic() - began
        except subprocess.TimeoutExpired:
            return None, time.monotonic() - began
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def notices(self, change: Change, limit: float) -> tuple[bool, float]:
        """True when a test turns red with the change."""
        path = self._root / change.file
        before, stat = path.read_bytes(), path.stat()
        path.write_bytes(change.text)
        os.utime(path, (stat.st_atime, stat.st_mtime + 60))  # the bytecode is of another version
        try:
            code, took = self.run(change.tests, limit)
        finally:
            path.write_bytes(before)
            os.utime(path, (stat.st_atime, stat.st_mtime))
        if code in (3, 4, 5):
            raise RuntimeError(f"pytest could not run {' '.join(change.tests)}: exit code {code}")
        return code != 0, took


class Runner:
    """Runs changes in as many trees as there are workers."""

    def __init__(self, folder: Path, workers: int) -> None:
        self._trees: queue.Queue[Tree] = queue.Queue()
        self._limits: dict[tuple[str, ...], float] = {}
        self._workers = workers
        self._done = self._total = 0
        for number in range(workers):
            self._trees.put(Tree(folder / str(number)))

    def run(self, changes: list[Change]) -> list[bool]:
        """Which of them are noticed."""
        with ThreadPoolExecutor(self._workers) as pool:
            self._limits = dict(pool.map(self._limit, dict.fromkeys(change.tests for change in changes)))
            self._done, self._total = 0, len(changes)
            return list(pool.map(self._one, changes))

    def _limit(self, tests: tuple[str, ...]) -> tuple[tuple[str, ...], float]:
        tree = self._trees.get()
        try:
            code, took = tree.run(tests, 600.0, keep_bytecode=True)
        finally:
            self._trees.put(tree)
        if code != 0:
            raise RuntimeError(f"without any change: pytest {' '.join(tests)} ends with {code}")
        return tests, max(AT_LEAST_S, SLOWER * took)

    def _one(self, change: Change) -> bool:
        tree = self._trees.get()
        try:
            noticed, took = tree.notices(change, self._limits[change.tests])
        finally:
            self._trees.put(tree)
        self._done += 1
        word = "noticed" if noticed else "SURVIVED"
        print(
            f"{self._done:4}/{self._total} {word:8} {took:5.1f} s  {change.core}: {change.name}",
            file=sys.stderr,
            flush=True,
        )
        return noticed


def report(changes: list[Change], noticed: list[bool], as_json: bool) -> bool:
    """Print the table; True when enough was noticed and every survivor has a reason."""
    reasons: dict[str, str] = tomllib.loads((DATA / "survivors.toml").read_text()).get("survivors", {})
    survivors = [change for change, was in zip(changes, noticed, strict=True) if not was]
    rows = []
    for core in dict.fromkeys(change.core for change in changes):
        ours = [was for change, was in zip(changes, noticed, strict=True) if change.core == core]
        rows.append(
            {"core": core, "changes": len(ours), "noticed": sum(ours), "share": round(sum(ours) / len(ours), 3)}
        )
    unexplained = [change for change in survivors if change.core == "named" or change.name not in reasons]
    good = not unexplained and all(row["share"] >= (1.0 if row["core"] == "named" else SHARE) for row in rows)
    if as_json:
        print(json.dumps({"cores": rows, "survivors": [c.name for c in survivors], "good": good}))
        return good
    print(f"{'core':12} {'changes':>8} {'noticed':>8}")
    for row in rows:
        print(f"{row['core']:12} {row['changes']:8} {row['noticed']:8} {row['share']:7.0%}")
    for change in survivors:
        reason = reasons.get(change.name, "no reason is given in survivors.toml")
        print(f"survived: {change.core}: {change.name}\n    {reason}")
    return good


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(
        prog="./dev mutate", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "pattern", nargs="?", default="*", help="changes whose name matches, e.g. 'meshnode/paths/mtu*'"
    )
    parser.add_argument("--list", action="store_true", help="say what would be changed, and change nothing")
    parser.add_argument("--only", metavar="NAME", help=f"named, or one core: {', '.join(CORES)}; or one named change")
    parser.add_argument("--count", type=int, default=25, help="changes drawn from each core (25)")
    parser.add_argument("--seed", default="1", help="what the draw depends on (1)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="tests at once (one on each core)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    changes = [] if args.only in CORES else named()
    changes += [change for core in CORES for change in sampled(core, args.count, args.seed)]
    changes = [c for c in changes if args.only in (None, c.core, c.name) and fnmatch.fnmatch(c.name, args.pattern)]
    if args.list:
        print("\n".join(f"{change.core}: {change.name}" for change in changes))
        return 0
    if not changes:
        print("mutate: no change has that name", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        noticed = Runner(Path(folder), args.workers).run(changes)
    return 0 if report(changes, noticed, args.json) else 1


if __name__ == "__main__":
    with ended_together():
        sys.exit(main())
