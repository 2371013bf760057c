"""Commands of the tutorial and of how-to pages, run as they are written: each prints what the page says."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.given_time import wait_for, within

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {
    "/tmp/function": "how-to/functions.md",
    "/tmp/first-mesh": "tutorial/first-mesh.md",
    "/tmp/private-mesh": "how-to/private-mesh.md",
    "/tmp/field": "how-to/roles.md",
    "/tmp/ways": "how-to/unmodified-programs.md",
    "/tmp/fastapi": "tutorial/fastapi.md",
    "/tmp/agents": "tutorial/agent-tools.md",
    "/tmp/rules": "how-to/policy.md",
    "/tmp/ten-minutes": "how-to/ten-minutes.md",
    "/tmp/stolen": "how-to/revoke.md",
}
# the folder that a page uses, which is another one here: the page
PORTS = ("4242", "8000", "8080", "1080", "1081", "5353")  # in the page; free ones here
ANSWER_S = 30.0
FOREGROUND = "stop with Ctrl-C"  # the last line of a command that goes on until it is stopped
BLOCK = re.compile(r"^```console ?(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(
    r"^`(\w+\.py)`(?:[^\n]+\n)+\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL
)  # a program of the page
VARIABLE = re.compile(  # what differs from run to run, and what it must look like
    r"(?P<id>[a-z2-7]{52})"
    r"|(?P<overlay>\bfd[0-9a-f]{0,2}(?::[0-9a-f]{1,4})+)"
    r"|(?P<times>[\d.]+ / [\d.]+ / [\d.]+ ms)"
    r"|(?P<time>\b\d+\.\d+ m?s)"
    r"|(?P<port>:(?:58066|43626)\b)"
    r"|(?P<grant>\b[0-9a-f]{16}\b)"
    r"|(?P<count>\b\d+ (?:entries|facts))"
    r"|(?P<spaces> +)"
)
LOG_LINE = re.compile(
    r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO .*\n", re.MULTILINE
)  # on stderr; the pages leave it out
LOOKS = {
    "id": r"[a-z2-7]{52}",
    "overlay": r"fd[0-9a-f:]+",
    "times": r"[\d.]+ / [\d.]+ / [\d.]+ ms",
    "time": r"\d+(\.\d+)? m?s",
    "port": r":\d+",
    "grant": r"[0-9a-f]{16}",
    "count": r"\d+ (entries|facts?)",
    "spaces": r" +",
}


@dataclass
class Step:
    """One command, and the lines that the page shows below it."""

    terminal: str
    command: str
    output: list[str] = field(default_factory=list)

    @property
    def is_foreground(self) -> bool:
        """Return whether it goes on until it is stopped."""
        return bool(self.output) and FOREGROUND in self.output[-1]

    @property
    def expected(self) -> re.Pattern[str]:
        """Return what the command prints, as a regular expression."""
        return re.compile("".join(pattern(line) + "\n" for line in self.output))


def steps(page: str) -> list[Step]:
    """Return the page's commands in their order; a block that names no terminal belongs to the first."""
    found: list[Step] = []
    for terminal, block in BLOCK.findall(page):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append(Step(terminal or "first", line[2:]))
            elif line.startswith(">") and not found[-1].output:  # the command goes on
                found[-1].command += f"\n{line[2:]}"
            else:
                found[-1].output.append(line)
    return found


def pattern(line: str) -> str:
    """Return a regular expression for one line of output."""
    text, at = "", 0
    for match in VARIABLE.finditer(line):
        text += re.escape(line[at : match.start()]) + LOOKS[match.lastgroup or ""]
        at = match.end()
    return text + re.escape(line[at:])


class Terminal:
    """A shell that is given commands one after the other."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self._shell: asyncio.subprocess.Process
        self._printed = ""

    async def start(self) -> None:
        """Start the shell, in a session of its own."""
        self._shell = await asyncio.create_subprocess_exec(
            "bash",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self._environment,
            start_new_session=True,
        )

    async def run(self, step: Step) -> None:
        """Run the command and hold what it prints against the page; a command in the foreground is left running."""
        assert self._shell.stdin is not None
        foreground = step.is_foreground
        end = "" if foreground else "echo end of command\n"
        self._shell.stdin.write(f"{step.command}\n{end}".encode())
        try:
            async with within(ANSWER_S):
                while not self._printed.endswith(f"{FOREGROUND}\n" if foreground else "end of command\n"):
                    await self._read()
        except TimeoutError:
            pytest.fail(f"$ {step.command}\nprinted within {ANSWER_S} s only: {self._printed}")
        printed, self._printed = self._printed.removesuffix("end of command\n"), ""
        assert step.expected.fullmatch(printed), f"$ {step.command}\nprinted: {printed}\nthe page: {step.output}"

    async def _read(self) -> None:
        assert self._shell.stdout is not None
        some = await self._shell.stdout.read(65536)
        assert some, f"the shell ended: {self._printed}"
        self._printed = LOG_LINE.sub("", self._printed + some.decode())

    async def interrupt(self) -> None:
        """Press Ctrl-C, and leave the terminal when the command has ended."""
        assert self._shell.stdin is not None
        os.killpg(self._shell.pid, signal.SIGINT)
        self._shell.stdin.close()
        await wait_for(self._shell.wait(), ANSWER_S)

    async def close(self) -> None:
        """End the shell and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._shell.pid, signal.SIGKILL)
        await self._shell.wait()


def _free_ports(count: int) -> list[str]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [str(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("dig")), reason="the pages use curl and dig")
@pytest.mark.parametrize("home", PAGES)
async def test_a_page_prints_what_it_says(tmp_path: Path, home: str) -> None:
    page = (DOCS / PAGES[home]).read_text(encoding="utf-8").replace(home, str(tmp_path / "m"))
    for written, free in zip(PORTS, _free_ports(len(PORTS)), strict=True):
        page = re.sub(rf"\b{written}\b", free, page)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MESHNODE_")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    todo = steps(page)
    assert len(todo) > 5
    for name, program in FILE.findall(page):
        (tmp_path / "m").mkdir(exist_ok=True)
        (tmp_path / "m" / name).write_text(program, encoding="utf-8")
    terminals = {name: Terminal(environment) for name in dict.fromkeys(step.terminal for step in todo)}
    try:
        for terminal in terminals.values():
            await terminal.start()
        for step in todo:
            if step.command.startswith("rm "):  # "Stop the nodes with Ctrl-C"
                busy = dict.fromkeys(step.terminal for step in todo if step.is_foreground)
                await asyncio.gather(*(terminals[name].interrupt() for name in busy))
            await terminals[step.terminal].run(step)
    finally:
        for terminal in terminals.values():
            await terminal.close()


def test_an_output_line_is_held_to_its_form_and_its_words() -> None:
    line = "   0    0.65 ms  lan  127.0.0.1:4242"
    assert re.fullmatch(pattern(line), "   0   12.30 ms  lan  127.0.0.1:4242")
    assert not re.fullmatch(pattern(line), "   0    0.65 ms  relay  127.0.0.1:4242")
    assert not re.fullmatch(pattern(line), "   1    0.65 ms  lan  127.0.0.1:4242")
