"""Ids, keys and key files."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.base.address import Addr, pack_addr, parse_addr, unpack_addr
from meshnode.config import Config, parse_seed
from meshnode.errors import ConfigError, InvalidId, KeyFileError
from meshnode.identity.keyfile import load, load_or_create, save
from meshnode.identity.keys import Identity, verify
from meshnode.identity.node_id import NodeId


@given(st.binary(min_size=32, max_size=32))
def test_an_id_survives_its_text(raw: bytes) -> None:
    node_id = NodeId(raw)
    assert len(str(node_id)) == 52
    assert NodeId.parse(str(node_id).upper()) == node_id
    assert node_id.overlay.packed[0] == 0xFD
    assert len(node_id.dht_key) == 20


def test_an_id_goes_to_another_process_and_stays_the_key_of_a_table() -> None:
    id = NodeId(bytes(range(32)))
    assert {id: 1}[copy.deepcopy(id)] == 1
    code = "import pickle, sys; id, table = pickle.load(sys.stdin.buffer); print(id, table[id])"
    given = pickle.dumps((id, {id: "found"}))
    done = subprocess.run([sys.executable, "-c", code], input=given, stdout=subprocess.PIPE, check=True)
    assert done.stdout.decode().split() == [str(id), "found"]


@given(st.text(max_size=60))
def test_other_text_is_an_invalid_id(text: str) -> None:
    try:
        node_id = NodeId.parse(text)
    except InvalidId as error:
        assert error.code == "invalid_id"
    else:
        assert str(node_id) == text.strip().lower().removesuffix(".mesh")


def test_both_sides_compute_the_same_pairwise_key_and_no_third_node_does() -> None:
    a, b, c = (Identity.generate() for _ in range(3))
    assert a.shared_key(b.id) == b.shared_key(a.id) != c.shared_key(a.id)


def test_a_signature_holds_for_its_message_and_signer_alone() -> None:
    a, b = Identity.generate(), Identity.generate()
    signature = a.sign(b"message")
    assert verify(a.id, b"message", signature)
    assert not verify(a.id, b"massage", signature)
    assert not verify(b.id, b"message", signature)
    assert not verify(a.id, b"message", b"")


def test_a_key_file_is_private_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "home" / "key"
    identity = load_or_create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load(path).id == identity.id
    path.chmod(0o644)
    with pytest.raises(KeyFileError, match="others may read"):
        load(path)


def test_a_passphrase_locks_the_key(tmp_path: Path) -> None:
    path = tmp_path / "key"
    identity = Identity.generate()
    save(path, identity, "correct horse")
    assert load(path, "correct horse").id == identity.id
    for wrong in (None, "battery staple"):
        with pytest.raises(KeyFileError):
            load(path, wrong)


@given(st.ip_addresses(), st.integers(0, 65535))
def test_addresses_survive_text_and_bytes(ip: object, port: int) -> None:
    addr = parse_addr(f"[{ip}]:{port}" if ":" in str(ip) else f"{ip}:{port}")
    assert parse_addr(str(addr)) == addr
    assert unpack_addr(pack_addr(addr)) == Addr(addr.host, port)


def test_settings_flags_beat_environment_beats_file(tmp_path: Path) -> None:
    (tmp_path / "meshnode.toml").write_text('listen = "127.0.0.1:1"\nmesh = "file"\nmdns = false\n')
    config = Config.load(tmp_path, {"listen": "127.0.0.1:3"}, {"MESHNODE_LISTEN": "127.0.0.1:2", "MESHNODE_MESH": "e"})
    assert (config.listen, config.mesh, config.mdns) == ("127.0.0.1:3", "e", False)


@pytest.mark.parametrize("text", ['listn = "x"', "listen = 3", "seeds = [1]", 'listen = "nowhere"', "not toml"])
def test_a_wrong_setting_is_a_config_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "meshnode.toml").write_text(text)
    with pytest.raises(ConfigError):
        Config.load(tmp_path, {}, {})


@pytest.mark.parametrize("text", ["", "x", "x@y:1", f"{'a' * 52}@host", f"{'a' * 52}@host:0", f"{'a' * 52}@:1"])
def test_what_is_no_seed_is_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_seed(text)


def test_importing_the_package_loads_no_stack() -> None:
    code = "import sys, meshnode; print([m for m in ('aioquic', 'nacl', 'zeroconf', 'asyncio') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
