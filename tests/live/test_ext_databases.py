"""Real databases behind a service, by the Unix sockets that their clients take: PostgreSQL and Redis, through moves."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest
import redis.asyncio
import redis.exceptions

import meshnode
from meshnode.ext.unix_socket import unix_socket
from meshnode.services.health import connect_unix
from meshnode.services.splice import splice
from tests.conftest import MakeNode
from tests.given_time import status_of, wait_for, within
from tests.live.ext_mesh import Pair, pair

POSTGRES, INITDB, REDIS = (shutil.which(name) for name in ("postgres", "initdb", "redis-server"))
needs_postgres = pytest.mark.skipif(POSTGRES is None or INITDB is None, reason="needs postgres and initdb")
needs_redis = pytest.mark.skipif(REDIS is None, reason="needs redis-server")
SOCKET = ".s.PGSQL.5432"
USER = "postgres"


@pytest.fixture
async def nodes(make_node: MakeNode) -> Pair:
    return await pair(make_node)


def expose(nodes: Pair, name: str, path: Path) -> None:
    """Serve the program that listens on a Unix socket, as ``meshnode expose NAME unix:PATH`` does."""

    async def handler(reader: meshnode.MeshReader, writer: meshnode.MeshWriter, peer: meshnode.NodeId) -> None:
        await splice(await connect_unix(str(path)), (reader, writer))

    nodes.there.serve(name, handler, allow=[nodes.here.id])


async def listening(path: Path) -> None:
    async with within(30):
        while True:
            try:
                _, writer = await asyncio.open_unix_connection(str(path))
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return


@pytest.fixture(scope="module")
def cluster() -> Iterator[Path]:
    """The folder of PostgreSQL's socket. It does not run as root, for which pytest's own folders are."""
    with tempfile.TemporaryDirectory(prefix="pg") as made:
        yield from _cluster(Path(made))


def _cluster(folder: Path) -> Iterator[Path]:
    data, sockets = folder / "data", folder / "s"
    sockets.mkdir()
    user: dict[str, Any] = {}
    if os.geteuid() == 0:
        user = {"user": 65534, "group": 65534, "extra_groups": []}
        for path in (folder, sockets):
            os.chown(path, 65534, 65534)
    assert INITDB is not None
    assert POSTGRES is not None
    making = [INITDB, "-D", str(data), "-U", USER, "-A", "trust", "--no-sync"]
    subprocess.run(making, check=True, capture_output=True, cwd=folder, **user)
    line = [POSTGRES, "-D", str(data), "-k", str(sockets), "-c", "listen_addresses=", "-c", "fsync=off"]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder, **user)
    yield sockets
    process.terminate()
    status_of(process, 20)


@needs_postgres
async def test_a_query_of_asyncpg_goes_on_while_both_ends_move(nodes: Pair, cluster: Path) -> None:
    await listening(cluster / SOCKET)
    expose(nodes, "db", cluster / SOCKET)
    async with unix_socket(nodes.here, nodes.there.id, "db", SOCKET) as path:
        assert (os.stat(path).st_mode & 0o777, os.stat(Path(path).parent).st_mode & 0o777) == (0o600, 0o700)
        connection = await asyncpg.connect(host=str(Path(path).parent), user=USER, database="postgres", ssl=False)
        async with nodes.moving():
            rows = await connection.fetch("select n, pg_sleep(0.01) from generate_series(1, 120) n")
            found = await connection.fetchval("select string_agg(n::text, ' ') from generate_series(1, 9999) n")
        assert [row["n"] for row in rows] == list(range(1, 121))
        assert found == " ".join(map(str, range(1, 10_000)))
        await connection.close()
    assert not Path(path).exists()


@needs_postgres
async def test_a_copy_of_psycopg_goes_on_while_both_ends_move(nodes: Pair, cluster: Path) -> None:
    await listening(cluster / SOCKET)
    expose(nodes, "db", cluster / SOCKET)
    async with unix_socket(nodes.here, "there", "db", SOCKET) as path:
        line = f"host={Path(path).parent} user={USER} dbname=postgres sslmode=disable"
        connection = await psycopg.AsyncConnection.connect(line, autocommit=True)
        async with connection, connection.cursor() as cursor:
            await cursor.execute("create temporary table t (n int)")
            async with nodes.moving(), cursor.copy("copy t from stdin") as copy:
                for number in range(120):
                    await copy.write_row((number,))
                    await asyncio.sleep(0.01)
            await cursor.execute("select count(*), sum(n) from t")
            assert await cursor.fetchone() == (120, 7140)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Path]:
    path = tmp_path / "r"
    assert REDIS is not None
    line = [REDIS, "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(tmp_path)]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL)
    await listening(path)
    yield path
    process.terminate()
    status_of(process, 20)


@needs_redis
async def test_commands_of_redis_go_on_while_both_ends_move(nodes: Pair, server: Path) -> None:
    expose(nodes, "redis", server)
    async with (
        unix_socket(nodes.here, "there", "redis") as path,
        redis.asyncio.Redis(unix_socket_path=path, retry_on_error=[]) as client,
        nodes.moving(),
    ):
        for number in range(100):
            assert await client.incr("n") == number + 1
            await asyncio.sleep(0.01)
        assert len(await client.info("clients")) > 0


@needs_redis
async def test_a_service_that_cannot_be_reached_is_a_reset_and_no_hang(nodes: Pair, server: Path) -> None:
    async with (
        unix_socket(nodes.here, "there", "nothing") as path,
        redis.asyncio.Redis(unix_socket_path=path, retry=None) as client,
    ):
        with pytest.raises(redis.exceptions.ConnectionError):
            await wait_for(client.ping(), 10)
