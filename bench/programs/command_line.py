"""Programs of the command line, with their real servers."""

from __future__ import annotations

import getpass
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

from bench.programs.stage import NOT_ROOT, TALK, Client, Done, Outcome, Play, Stage, which

MB = 1_000_000
SSH = ("UserKnownHostsFile=/dev/null", "StrictHostKeyChecking=no", "LogLevel=ERROR", "IdentitiesOnly=yes")
USER = "postgres"
LOOPBACK = "127.0.0.1"


# ---- files


def _noise(path: Path, megabytes: int) -> str:
    """Write so many MB of noise, and return their digest."""
    digest = hashlib.blake2b()
    with path.open("wb") as file:
        for _ in range(megabytes):
            block = os.urandom(MB)
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def _missing(path: Path, megabytes: int, digest: str) -> int:
    """Return how many bytes a copy lacks; all of them when as many are there and differ."""
    whole = megabytes * MB
    if not path.exists():
        return whole
    if path.stat().st_size != whole:
        return abs(whole - path.stat().st_size)
    with path.open("rb") as file:
        return 0 if hashlib.file_digest(file, hashlib.blake2b).hexdigest() == digest else whole


def _speed(done: Done, megabytes: float) -> str:
    return f"{megabytes:.0f} MB at {megabytes / done.seconds:.0f} MB/s"


def _rate(stage: Stage, megabytes: int) -> float:
    """Return the MB/s at which so many outlast the moves, and one more, were the machine ever so fast."""
    return megabytes / ((stage.work.moves + 1) * stage.work.every_s)


def curl(stage: Stage) -> Play:
    """Download a file by HTTP."""
    folder, copy, size = stage.folder("web"), stage.scratch / "curl.copy", stage.work.megabytes
    digest = _noise(folder / "file", size)
    port = stage.serve("web", *TALK, "files", "{port}", str(folder))
    limit = f"{_rate(stage, size):.0f}M"
    url = f"http://{LOOPBACK}:{port}/file"
    done = yield Client(["curl", "-sSf", "--limit-rate", limit, "-o", str(copy), url], "web", 1)
    return Outcome(_missing(copy, size, digest), f"{_speed(done, size)}, {limit}B at most")


def _repository(stage: Stage) -> tuple[Path, str, int]:
    """Make a repository that git cannot make smaller; its path, its head and the MB in it."""
    path, size = stage.folder("git") / "project.git", stage.work.megabytes // 2
    work = stage.folder("git-work")
    git = ["git", "-c", "core.compression=0", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(work)]
    _git(*git, "init", "-q")
    for number in range(size):
        _noise(work / f"file-{number}", 1)
    _git(*git, "add", ".")
    _git(*git, "commit", "-qm", "files")
    _git("git", "clone", "-q", "--bare", "--no-hardlinks", str(work), str(path))
    for setting in ("core.compression=0", "pack.compression=0", "pack.window=0", "core.bigFileThreshold=512k"):
        _git("git", "-C", str(path), "config", *setting.split("="))
    return path, _git("git", "-C", str(path), "rev-parse", "HEAD"), size


def _git(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _cloned(copy: Path, head: str, size: int, done: Done) -> Outcome:
    """Return whether a clone is whole: git verifies every object."""
    here = ["git", "-C", str(copy)]
    checked = subprocess.run([*here, "fsck", "--full"], capture_output=True, text=True, check=False)
    is_whole = checked.returncode == 0 and _git(*here, "rev-parse", "HEAD") == head
    return Outcome(0 if is_whole else size * MB, _speed(done, size))


def git_http(stage: Stage) -> Play:
    """Clone by HTTP, from git's own backend."""
    path, head, size = stage.once(_repository)
    port = stage.serve("git", *TALK, "git", "{port}", str(path.parent))
    copy = stage.scratch / "git-http.copy"
    command = ["git", "clone", "-q", "--no-checkout", f"http://{LOOPBACK}:{port}/project.git", str(copy)]
    done = yield Client(command, "git", 1, every_s=stage.work.every_s / 2)
    return _cloned(copy, head, size, done)


def _sshd(stage: Stage) -> tuple[str, list[str]]:
    """Start an sshd that lets this user in by a key; its port, and the options of its clients."""
    folder = stage.folder("ssh")
    for name in ("host", "user"):
        _git("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
    (folder / "sshd_config").write_text(
        f"ListenAddress {LOOPBACK}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\nStrictModes no\n"
        f"UsePAM no\nPermitRootLogin yes\nPasswordAuthentication no\nPidFile none\nSubsystem sftp internal-sftp\n"
    )
    line = f"exec {which('sshd')} -D -e -f {folder}/sshd_config -p {{port}}"
    if os.geteuid() == 0:  # it wants /run/sshd then
        line = f"mount -t tmpfs tmpfs /run && mkdir /run/sshd && {line}"
    port = stage.serve("ssh", "unshare", "--mount", "sh", "-c", line)
    return port, [word for option in (*SSH, f"IdentityFile={folder}/user") for word in ("-o", option)]


def git_ssh(stage: Stage) -> Play:
    """Clone by ssh."""
    path, head, size = stage.once(_repository)
    port, options = stage.once(_sshd)
    copy = stage.scratch / "git-ssh.copy"
    url = f"ssh://{getpass.getuser()}@{LOOPBACK}:{port}{path}"
    ssh = {"GIT_SSH_COMMAND": " ".join(["ssh", *options])}
    done = yield Client(
        ["git", "clone", "-q", "--no-checkout", url, str(copy)], "ssh", 1, every_s=stage.work.every_s / 2, env=ssh
    )
    return _cloned(copy, head, size, done)


def scp(stage: Stage) -> Play:
    """Copy 100 MB by scp (a tenth of it in the short form)."""
    port, options = stage.once(_sshd)
    size = 10 if stage.work.short else 100
    file, copy = stage.folder("scp") / "file", stage.scratch / "scp.copy"
    digest = _noise(file, size)
    limit = f"{_rate(stage, size) * 8_000:.0f}"  # kbit/s
    source = f"{getpass.getuser()}@{LOOPBACK}:{file}"
    done = yield Client(["scp", "-q", *options, "-P", port, "-l", limit, source, str(copy)], "ssh", 1)
    return Outcome(_missing(copy, size, digest), f"{_speed(done, size)}, {_rate(stage, size):.0f} MB/s at most")


# ---- databases


def _postgres(stage: Stage) -> str:
    """Start PostgreSQL, which refuses to be root; its port."""
    data = stage.folder("postgres") / "data"
    user = NOT_ROOT if os.geteuid() == 0 else []
    _git(*user, str(which("initdb")), "-D", str(data), "-U", USER, "-A", "trust", "--no-sync")
    options = ["-c", f"listen_addresses={LOOPBACK}", "-c", "fsync=off", "-k", str(data)]
    return stage.serve("postgres", *user, str(which("postgres")), "-D", str(data), "-p", "{port}", *options)


def _psql(port: str, *rest: str) -> list[str]:
    return ["psql", "-h", LOOPBACK, "-p", port, "-U", USER, "-d", USER, "-XqtA", "-v", "ON_ERROR_STOP=1", *rest]


def psql(stage: Stage) -> Play:
    """Fill a table of the session, row by row, and read it with much else: a new session would not have it."""
    port, rows = stage.once(_postgres), stage.work.steps
    script = stage.scratch / "rows.sql"
    inserts = "".join(f"insert into t values ({n}); select pg_sleep(0.02);\n" for n in range(rows))
    more = "copy (select md5(i::text) from generate_series(1, 300000) i) to stdout;\n"
    script.write_text(f"create temp table t (n int);\n{inserts}{more}select 'rows', count(distinct n) from t;\n")
    done = yield Client(_psql(port, "-f", str(script)), "postgres", 1)
    lines = [line for line in done.out.splitlines() if line]
    found = int(lines[-1].partition("|")[2] or 0) if lines else 0
    copied = sum(len(line) == 32 for line in lines)
    return Outcome(
        rows - found + 33 * (300_000 - copied), f"{found} rows in one session, {copied * 33 / MB:.0f} MB read"
    )


def pgbench(stage: Stage) -> Play:
    """Run the transactions of TPC-B with ten clients; then the books must balance."""
    port, seconds = stage.once(_postgres), stage.work.steps * 0.02
    base = ["pgbench", "-h", LOOPBACK, "-p", port, "-U", USER]
    made = subprocess.run(stage.client.command(*base, "-iqs", "2", USER), capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise RuntimeError(f"pgbench -i: {made.stderr[-500:]}")
    done = yield Client([*base, "-n", "-c", "10", "-j", "2", "-T", f"{seconds:.0f}", USER], "postgres", 11)
    said = re.search(r"transactions actually processed: (\d+)", done.out)
    failed = re.search(r"failed transactions: (\d+)", done.out)
    count = int(said[1]) if said else 0
    books = "select count(*), sum(delta) = (select sum(abalance) from pgbench_accounts) from pgbench_history"
    kept, _, balanced = stage.client.exec(*_psql(port, "-c", books)).strip().partition("|")
    lost = abs(int(kept) - count) + (int(failed[1]) if failed else 1) + (balanced != "t")
    return Outcome(lost, f"{count / done.seconds:.0f} transactions/s of 10 clients")


def _redis(stage: Stage) -> str:
    return stage.serve("redis", "redis-server", "--port", "{port}", "--bind", LOOPBACK, "--save", "")


def redis_cli(stage: Stage) -> Play:
    """Increment a counter each 20 ms: each number has to come once."""
    port, count = stage.once(_redis), stage.work.steps
    done = yield Client(["redis-cli", "-p", port, "-r", str(count), "-i", "0.02", "incr", "n"], "redis", 1)
    got = [int(line) for line in done.out.split() if line.isdigit()]
    return Outcome(0 if got == list(range(1, count + 1)) else count - len(set(got)) or 1, f"{len(got)} increments")


def redis_benchmark(stage: Stage) -> Play:
    """Run redis-benchmark with 200 connections."""
    port, count = stage.once(_redis), 5_000 if stage.work.short else 180_000
    command = ["redis-benchmark", "-p", port, "-c", "200", "-n", str(count), "-t", "set", "--csv"]
    done = yield Client(command, "redis", 201)  # one more asks for the server's settings
    rows = re.findall(r'"SET","([0-9.]+)"', done.out)
    return Outcome(0 if rows else count, f"{float(rows[0]) if rows else 0:.0f} requests/s on 200 connections")


# ---- messages and names


def mosquitto(stage: Stage) -> Play:
    """Publish each 20 ms and subscribe: each message has to come once, in order."""
    config = stage.scratch / "mosquitto.conf"
    count = stage.work.steps
    port = stage.serve("mqtt", "sh", "-c", f"echo listener {{port}} {LOOPBACK} > {config}; "
        f"echo allow_anonymous true >> {config}; exec {which('mosquitto')} -c {config}")  # fmt: skip
    to = f"-h {LOOPBACK} -p {port} -t numbers -q 1"
    numbers = f"{sys.executable} -uc 'import time\nfor n in range({count}): print(n), time.sleep(0.02)'"
    line = f"mosquitto_sub {to} -C {count} -W 120 & sleep 0.5; {numbers} | mosquitto_pub {to} -l && wait $!"
    done = yield Client(["sh", "-c", line], "mqtt", 2)
    got = done.out.split()
    lost = 0 if got == [str(n) for n in range(count)] else count - len(set(got)) or 1
    return Outcome(lost, f"{len(got)} messages of QoS 1")


def dig(stage: Stage) -> Play:
    """Ask a name server over UDP, one question after the other; UDP may lose one, and then dig asks again by itself."""
    count = stage.work.steps
    port = stage.serve("names", *TALK, "names", "{port}", str(stage.scratch / "questions"), udp=True)
    command = f"for n in $(seq {count}); do dig @{LOOPBACK} -p {port} +short +time=1 +tries=3 n$n.test TXT; done"
    done = yield Client(["sh", "-c", command], "names", count)
    got = [line.strip('"') for line in done.out.splitlines() if line.startswith('"')]
    asked = len((stage.scratch / "questions").read_text().splitlines())
    lost = count - len({*got} & {f"n{n}.test." for n in range(1, count + 1)})
    told = f"{len(got)} answers, {asked - count} asked twice, {done.seconds / count * 1000:.0f} ms each"
    return Outcome(lost, told, reconnects=0)
