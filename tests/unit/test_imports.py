"""What a program loads with a node: nothing that it does not use. Each module costs start time and memory."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest

from meshnode.quic.engines import VARIABLE

ROOT = Path(__file__).resolve().parents[2]
LOADED = """
import json, sys
print(json.dumps(sorted(sys.modules)))
"""
NODE = "from meshnode import Config, Node\n"
IDLE = (
    NODE
    + """
import asyncio, tempfile
async def main():
    with tempfile.TemporaryDirectory() as home:
        async with Node(Config(home=home, listen="127.0.0.1:0", mdns={mdns}, engine="{engine}")):
            await asyncio.sleep(0.1)
asyncio.run(main())
"""
)
OF_A_NODE = {"_cffi_backend", "_sodium", "cbor2", "kademlia", "nacl"}
MDNS = {"_cython", "cython_runtime", "ifaddr", "zeroconf"}
OURS = 306  # modules of meshnode that an idle node may load: raise it for a new core, not for what few nodes use
OURS_UP = 358  # the same of `meshnode up`, which has all requests of the control socket
OF_A_FUNCTION = 233  # the same of a node without gossip: each is 0.3 ms of a cold start
UNUSED = {
    "ctypes",
    "meshnode.cli",
    "meshnode.daemon",
    "meshnode.diagnosis",
    "meshnode.identity.passphrase",
    "meshnode.nat.portmap.client",
    "meshnode.runtime.mdns",
    "meshnode.runtime.port_mapping",
    "meshnode.runtime.tunnel_tls",
    "meshnode.sim",
    "difflib",
    "http",
    "platform",
    "unittest",
    "urllib.request",
}


@cache
def _loaded(code: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", code + LOADED], capture_output=True, text=True, check=True)
    found: set[str] = set(json.loads(done.stdout.splitlines()[-1]))
    return found


def _packages(loaded: set[str]) -> set[str]:
    """The packages of others among them, without what every process of this environment loads."""
    roots = {name.partition(".")[0] for name in loaded - _loaded("")}
    return {"_cython" if root.startswith("_cython_") else root for root in roots - sys.stdlib_module_names} - {
        "meshnode"
    }


def test_the_package_alone_loads_none_of_its_modules() -> None:
    loaded = _loaded("import meshnode\n")
    assert {name for name in loaded if name.startswith("meshnode")} == {"meshnode"}
    assert _packages(loaded) == set()


def test_the_node_class_loads_no_engine_and_nothing_that_few_nodes_use() -> None:
    loaded = _loaded(NODE)
    assert _packages(loaded) == OF_A_NODE
    assert loaded & UNUSED == set()


@pytest.mark.parametrize(
    ("engine", "packages"),
    [("qh3", {"qh3"}), ("aioquic", {"_openssl", "aioquic", "certifi", "cryptography"})],
)
def test_an_idle_node_loads_one_engine_and_nothing_that_it_does_not_use(engine: str, packages: set[str]) -> None:
    loaded = _loaded(IDLE.format(engine=engine, mdns=False))
    assert _packages(loaded) == OF_A_NODE | packages
    assert loaded & UNUSED == set()
    assert len([name for name in loaded if name.startswith("meshnode")]) <= OURS


def test_a_function_loads_no_gossip_and_nothing_that_stands_on_it() -> None:
    code = IDLE.replace('Config(home=home, listen="127.0.0.1:0", mdns={mdns}, engine="{engine}")', "CONFIG")
    assert code != IDLE
    loaded = _loaded(code.replace("CONFIG", 'Config.for_function(listen="127.0.0.1:0")'))
    assert {name for name in loaded if name.startswith("meshnode.topics")} == set()
    assert {name for name in loaded if name.startswith("meshnode.gossip.")} == {"meshnode.gossip.entry"}
    assert loaded & (UNUSED | {"tomllib", "meshnode.directory.services", "meshnode.stack.gossip_link"}) == set()
    assert len([name for name in loaded if name.startswith("meshnode")]) <= OF_A_FUNCTION


GENERATED = """
import inspect, json, sys
from dataclasses import is_dataclass
print(json.dumps(sorted({
    f"{name}.{kind.__name__}"
    for name, module in sys.modules.items() if name.partition(".")[0] in ("meshnode", "qh3")
    for kind in vars(module).values() if inspect.isclass(kind) and kind.__module__ == name and is_dataclass(kind)
    for method in vars(kind).values() if inspect.isfunction(method) and method.__code__.co_filename == "<string>"
})))
"""


def test_no_class_of_fields_compiles_methods_of_its_own_when_a_node_starts() -> None:
    """A dataclass compiles up to six at each start, 0.1 ms each: ``value``, ``frozen`` and ``state`` do not.

    Nor do the classes of qh3, while our engine loads it.
    """
    code = IDLE.format(engine="qh3", mdns=False) + "import meshnode.daemon.server as s; s.known_requests()\n"
    done = subprocess.run([sys.executable, "-c", code + GENERATED], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []


FUNCTION = """
import dataclasses, gc
calls, kept, real = [], [], dataclasses._process_class
def process(cls, *named):
    calls.append(cls.__qualname__)
    return real(cls, *named)
dataclasses._process_class = process
gc.callbacks.append(lambda phase, info: kept.append(phase))
from meshnode import Config, Node
"""
OPENED = """
import asyncio, sys
from meshnode.runtime.host_names import look_up
async def main():
    config = Config.for_function(listen="127.0.0.1:0", seeds=["a" * 52 + "@127.0.0.1:9"], engine="qh3")
    at_import = len(kept)
    async with Node(config):
        at_start = len(kept)
        assert await look_up("127.0.0.1") == ["127.0.0.1"]
        tables = sorted({"encodings.idna", "stringprep"} & set(sys.modules))
        print(json.dumps([calls, at_import, at_start - at_import, tables]))
asyncio.run(main())
"""


def test_a_function_looks_at_no_class_by_dataclass_and_for_no_garbage_while_it_loads() -> None:
    code = FUNCTION + "import json\n" + OPENED
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    calls, at_import, at_start, names = json.loads(done.stdout)
    assert set(calls) <= {"_Model", "Config"}, "0.2 ms each; ours are made by meshnode.base.class_fields"
    assert at_import <= 8, "of modules that are loaded nothing is garbage, and there is more to look at each time"
    assert at_start <= 4, "an engine is loaded then"
    assert names == [], "tables of names with other letters than ASCII, 3 ms; an address is no name"


STARTED = """
import gc, json, os, signal, sys
import meshnode.cli.commands.run as command
import meshnode.daemon.server as server
from meshnode.cli.front import group
seen = []
command.emit = lambda *_: seen.append(gc.isenabled())
async def running():
    seen.append((gc.isenabled(), gc.get_freeze_count() > 10_000))
    seen.append(sorted(sys.modules))
    os.kill(os.getpid(), signal.SIGTERM)
server.stay_alive = running
group(["up", "--home", sys.argv[1], "--listen", "127.0.0.1:0", "--no-mdns", "--no-port-mapping"], standalone_mode=False)
print(json.dumps(seen))
"""


def test_the_command_starts_without_the_collector_and_loads_what_a_node_uses(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STARTED, str(tmp_path)]
    env = os.environ | {VARIABLE: "qh3"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    while_starting, running, loaded = json.loads(done.stdout)
    assert while_starting is False, "before it runs there is no garbage"
    assert running == [True, True]
    assert set(loaded) & {"bz2", "ctypes", "difflib", "lzma", "qh3.asyncio", "qh3.h3.connection", "tempfile"} == set()
    assert len([name for name in loaded if name.startswith("meshnode")]) <= OURS_UP


def test_mdns_is_loaded_by_a_node_that_has_it() -> None:
    loaded = _loaded(IDLE.format(engine="qh3", mdns=True))
    assert _packages(loaded) == OF_A_NODE | MDNS | {"qh3"}
    assert "meshnode.runtime.mdns" in loaded


def _is_for_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _imported(nodes: Iterable[ast.AST]) -> set[str]:
    found = [inner for node in nodes for inner in ast.walk(node) if isinstance(inner, ast.Import | ast.ImportFrom)]
    return {(alias.asname or alias.name).partition(".")[0] for node in found for alias in node.names}


class _Uses(ast.NodeVisitor):
    """Names that are looked up when the code runs, and not in annotations; those a function imports itself are not."""

    def __init__(self) -> None:
        self.found: list[ast.Name] = []
        self._own: list[set[str]] = []

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.visit(node.target)
        if node.value is not None:
            self.visit(node.value)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._own.append(_imported(node.body))
        given = [default for default in node.args.kw_defaults if default is not None]
        for part in (*node.decorator_list, *node.args.defaults, *given, *node.body):
            self.visit(part)
        self._own.pop()

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load) and not any(node.id in own for own in self._own):
            self.found.append(node)


def test_what_is_imported_for_checkers_alone_is_not_used_when_the_code_runs() -> None:
    """A checker takes it for there; the code that uses it raises NameError."""
    wrong = []
    for path in sorted((ROOT / "meshnode").rglob("*.py")):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        names = _imported(part for node in body if _is_for_checkers(node) for part in node.body)  # type: ignore[attr-defined]
        uses = _Uses()
        for node in body:
            for part in node.orelse if _is_for_checkers(node) else [node]:  # type: ignore[attr-defined]
                uses.visit(part)
        wrong += [f"{path.name}:{use.lineno}: {use.id}" for use in uses.found if use.id in names]
    assert wrong == []
