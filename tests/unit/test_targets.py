"""The targets of a service: ranges of ports, which of them is tried when, and what checks say of them."""

from __future__ import annotations

import asyncio
import random
import socket
from pathlib import Path

import pytest

from meshnode.errors import ConfigError
from meshnode.services import health
from meshnode.services.ends import End, expanded
from meshnode.services.health import accepts, check_of, listens, parse_health
from meshnode.services.pool import CHECK_JITTER, CHECK_S, NO_ANSWER, Pool
from meshnode.services.setting import MAX_TARGETS, Setting

ENDS = [End("127.0.0.1", port) for port in (1, 2, 3)]


def pool(*, strict: bool = False) -> Pool:
    return Pool(ENDS, random.Random(1), strict=strict)


# ---- ranges


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (["8000"], [(0, ("8000",))]),
        (["8000-8001"], [(8000, ("8000",)), (8001, ("8001",))]),
        (["tcp://h:1-2"], [(1, ("tcp://h:1",)), (2, ("tcp://h:2",))]),
        (["[::1]:7-7"], [(7, ("[::1]:7",))]),
        (["a:1-2", "b:11-12"], [(1, ("a:1", "b:11")), (2, ("a:2", "b:12"))]),
        (["unix:/run/a:1-2"], [(0, ("unix:/run/a:1-2",))]),
    ],
)
def test_a_range_is_one_service_a_port(texts: list[str], found: list[tuple[int, tuple[str, ...]]]) -> None:
    assert expanded(texts) == found


@pytest.mark.parametrize("texts", [["9-8"], ["1-257"], ["1-2", "3"], ["1-2", "3-5"]])
def test_ranges_that_do_not_fit_are_an_error(texts: list[str]) -> None:
    with pytest.raises(ConfigError, match="no ranges"):
        expanded(texts)
    assert len(expanded(["1-256"])) == 256


def test_the_services_of_a_range_have_its_ports_in_their_names() -> None:
    first, second = Setting("game", ("h:1-2",), ("any",), limit=3).expanded()
    assert (first.name, first.targets, first.group, first.limit) == ("game-1", ("tcp://h:1",), "game", 3)
    assert second.name == "game-2"
    with pytest.raises(ConfigError, match="not a target"):
        Setting("game", ("h:65535-65536",)).expanded()


def test_a_setting_is_the_same_after_it_was_saved() -> None:
    setting = Setting("a", ("1", "unix:/x"), ("any",), False, {"k": "v"}, 5, "http:/up", "g").checked()
    assert Setting.from_json(setting.to_json()) == setting
    old = {"name": "a", "target": "80", "allow": [], "announce": None, "meta": None, "limit": None}
    assert Setting.from_json(old) == Setting("a", ("80",))


def test_a_setting_has_one_to_sixteen_different_targets() -> None:
    assert Setting("a", ("80", "tcp://127.0.0.1:80")).checked().targets == ("tcp://127.0.0.1:80",)
    for count in (0, MAX_TARGETS + 1):
        with pytest.raises(ConfigError, match="1 to 16 targets"):
            Setting("a", tuple(str(port + 1) for port in range(count))).checked()


# ---- which target


def test_a_caller_gets_the_target_with_the_fewest_connections_and_equal_ones_by_turns() -> None:
    several = pool()
    first = several.order()[0]
    with several.use(first):
        second = several.order()[0]
        assert second is not first
        with several.use(second):
            third = several.order()[0]
            assert third not in (first, second)
    assert several.order()[0] is third, "which was never used"
    with several.use(third):
        pass
    assert several.order()[0] is first


def test_what_fails_is_tried_last_and_where_checks_judge_not_at_all() -> None:
    loose, strict = pool(), pool(strict=True)
    for each in (loose, strict):
        assert each.on_failed(each.members[0], "refused")
        assert not each.on_failed(each.members[0], "refused again")
        assert each.healthy
    assert loose.order()[-1] is loose.members[0]
    assert strict.members[0] not in strict.order()
    assert loose.on_connected(loose.members[0])
    assert not strict.on_connected(strict.members[0])
    assert (loose.members[0].error, strict.members[0].error) == ("", "refused again")


def test_a_service_fails_when_no_target_works() -> None:
    several = pool()
    for member in several.members:
        assert several.healthy
        assert several.error == ""
        several.on_failed(member, f"down {member.end.port}")
    assert not several.healthy
    assert several.error == "down 1"


def test_a_refusal_counts_at_once_and_a_late_answer_when_it_is_the_second() -> None:
    several = pool()
    first, second, third = several.members
    assert several.on_check(first, "connection refused")
    assert not several.on_check(second, NO_ANSWER)
    assert not several.on_check(second, "")
    assert not several.on_check(second, NO_ANSWER)
    assert several.on_check(second, NO_ANSWER)
    assert several.on_failed(third, "refused")
    assert not several.on_check(third, NO_ANSWER), "it fails already"
    assert third.error == NO_ANSWER


def test_a_target_is_well_again_after_two_good_checks_in_a_row() -> None:
    several = pool()
    first = several.members[0]
    several.on_check(first, "refused")
    assert not several.on_check(first, "")
    assert not several.on_check(first, "refused")
    assert not several.on_check(first, "")
    assert first.error
    assert several.on_check(first, "")
    assert not several.on_check(first, "")
    assert not first.error


def test_checks_of_many_targets_are_spread_and_soon_enough() -> None:
    several = pool()
    pauses = {several.pause(several.members[0]) for _ in range(1000)}
    assert len(pauses) > 900
    assert CHECK_S * (1 - CHECK_JITTER) <= min(pauses) < max(pauses) <= CHECK_S * (1 + CHECK_JITTER)
    assert max(pauses) + health.CHECK_TIMEOUT_S < 2


# ---- checks


@pytest.mark.parametrize("text", ["", "http", "http:", "http:x", "http:/a b", "http:/a\r\nX: y", "http:/ä", "tcp"])
def test_another_check_is_told_with_those_that_there_are(text: str) -> None:
    with pytest.raises(ConfigError, match="no check") as caught:
        parse_health(text)
    assert "http:/PATH" in caught.value.hint


def test_only_where_the_kernel_can_tell_is_a_target_checked_unasked() -> None:
    assert check_of("auto", End("127.0.0.1", 80)) is listens
    assert check_of("auto", End("::1", 80)) is listens
    assert check_of("auto", End(path="/run/x")) is listens
    assert check_of("auto", End("192.0.2.1", 80)) is None
    assert check_of("auto", End("name.example", 80)) is None
    assert check_of("connect", End("192.0.2.1", 80)) is accepts
    assert check_of("none", End("127.0.0.1", 80)) is None


async def test_the_kernel_tells_what_listens_without_a_connection() -> None:
    met = 0

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal met
        met += 1
        writer.close()

    for at, asked in (("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::1", "::1"), ("::1", "127.0.0.1")):
        said = ""
        for _ in range(5):  # another program may be given the port as soon as it is free
            server = await asyncio.start_server(meet, at, 0)
            end = End(asked, server.sockets[0].getsockname()[1])
            assert await listens(end) == ""
            server.close()
            await server.wait_closed()
            said = said or await listens(end)
        assert said == "connection refused"
    assert met == 0


async def test_a_unix_socket_is_looked_up_without_a_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    met = 0

    def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal met
        met += 1
        writer.close()

    monkeypatch.chdir(tmp_path)
    end = End(path=str(tmp_path / "a s"))
    assert await listens(end) == "no such file or directory"
    server = await asyncio.start_unix_server(meet, end.path)
    assert (await listens(end), met) == ("", 0)
    server.close()
    await server.wait_closed()
    (tmp_path / "a s").unlink(missing_ok=True)  # Python 3.13 does so by itself
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(end.path)
    assert await listens(end) == "connection refused"
    (tmp_path / "a s").unlink()
    server = await asyncio.start_unix_server(meet, "a s")  # known to the kernel by this path alone
    assert await listens(end) == ""
    await asyncio.sleep(0.05)
    assert met == 1
    server.close()


async def test_an_http_check_wants_a_status_that_is_no_error(tmp_path: Path) -> None:
    answers = iter([b"200 OK", b"302 Found", b"404 Not Found", b"503 Busy", b"100 Continue\r\n\r\nHTTP/1.1 204 None"])
    asked = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0])
        writer.write(b"HTTP/1.1 " + next(answers, b"x") + b"\r\nContent-Length: 9000\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(answer, str(tmp_path / "s"))
    end = End(path=str(tmp_path / "s"))
    check = check_of("http:/up?x=1", end)
    assert check is not None
    assert [await check(end) for _ in range(5)] == ["", "", "HTTP status 404", "HTTP status 503", ""]
    assert set(asked) == {b"GET /up?x=1 HTTP/1.1"}
    assert await check(end) == "no answer in HTTP"
    server.close()
    await server.wait_closed()
    assert await check(end) in ("connection refused", "no such file or directory")


async def test_a_target_that_takes_connections_and_says_nothing_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "CHECK_TIMEOUT_S", 0.05)
    held: list[object] = []  # a writer that nothing holds closes its connection
    server = await asyncio.start_server(lambda *both: held.append(both), "127.0.0.1", 0)
    end = End("127.0.0.1", server.sockets[0].getsockname()[1])
    check = check_of("http:/", end)
    assert check is not None
    assert await check(end) == NO_ANSWER
    assert await accepts(end) == ""
    server.close()
