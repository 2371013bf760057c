"""Kubernetes manifests and Compose files: what the API takes, the restricted standard, and values that fit together."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from meshnode.cli.index import INDEX
from meshnode.config import Config

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docker" / "kubernetes"
FILES = sorted(FOLDER.glob("*.yaml"))
COMPOSE = [ROOT / "docker" / "compose.yaml", ROOT / "bootstrap" / "compose.yaml"]
SCHEMAS = json.loads((ROOT / "tests" / "data" / "kubernetes-1.34.json").read_text(encoding="utf-8"))
GROUPS = {"v1": "core.v1", "apps/v1": "apps.v1", "networking.k8s.io/v1": "networking.v1", "policy/v1": "policy.v1"}
Json = dict[str, Any]


def objects(path: Path) -> list[Json]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def errors(item: Json) -> list[str]:
    """What the API server would refuse."""
    name = f"io.k8s.api.{GROUPS[item['apiVersion']]}.{item['kind']}"
    schema = {"$ref": f"#/$defs/{name}", "$defs": SCHEMAS["$defs"]}
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(item)]


ALL = [item for path in FILES for item in objects(path)]
PODS = [(item["metadata"]["name"], item["spec"]["template"]) for item in ALL if "template" in item["spec"]]
CONTAINERS = [
    pytest.param(pod["spec"], part, id=f"{name}-{part['name']}")
    for name, pod in PODS
    for part in pod["spec"].get("initContainers", []) + pod["spec"]["containers"]
]


@pytest.mark.parametrize("item", ALL, ids=lambda item: f"{item['kind']}-{item['metadata']['name']}")
def test_the_api_takes_every_manifest(item: Json) -> None:
    assert errors(item) == []


def test_a_misspelt_field_a_wrong_type_and_a_missing_one_are_found() -> None:
    [deployment] = [item for item in ALL if item["kind"] == "Deployment"]
    for change in (
        lambda pod: pod["spec"]["containers"][0].update(comand=["x"]),
        lambda pod: pod["spec"].update(terminationGracePeriodSeconds="30"),
        lambda pod: pod["spec"]["containers"][0].pop("name"),
        lambda pod: pod["spec"]["volumes"][0]["emptyDir"].update(size="1"),
    ):
        wrong = json.loads(json.dumps(deployment))
        change(wrong["spec"]["template"])
        assert errors(wrong) != []


@pytest.mark.parametrize(("pod", "part"), CONTAINERS)
def test_every_container_meets_the_restricted_standard(pod: Json, part: Json) -> None:
    assert part["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    context = pod["securityContext"]
    assert (context["runAsNonRoot"], context["runAsUser"], context["fsGroup"]) == (True, 1000, 1000)
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    written = {mount["mountPath"] for mount in part.get("volumeMounts", []) if not mount.get("readOnly")}
    if part["image"] == "meshnode":
        assert "/home/mesh" in written
    mounted = {mount["name"] for mount in part.get("volumeMounts", [])}
    assert mounted <= {volume["name"] for volume in pod["volumes"]} | {"home"}


@pytest.mark.parametrize(("pod", "part"), CONTAINERS)
def test_commands_and_settings_are_those_of_this_version(pod: Json, part: Json) -> None:
    if part["image"] != "meshnode":
        return
    words = [part["args"][0]]
    probes = [part[name]["exec"]["command"] for name in ("readinessProbe", "livenessProbe") if name in part]
    assert all(probe == ["meshnode", "status", "--check"] for probe in probes)
    words += re.findall(r"meshnode (\w+)", json.dumps(part.get("lifecycle", {})))
    assert set(words) <= set(INDEX)
    settings = {item["name"]: item["value"] for item in part.get("env", [])}
    config = Config.load("/nowhere", env={name: text for name, text in settings.items() if name != "MESHNODE_KEY_FILE"})
    assert config.drain == float(settings.get("MESHNODE_DRAIN", 0))


@pytest.mark.parametrize(("name", "pod"), PODS)
def test_a_pod_is_not_killed_before_its_node_has_drained(name: str, pod: Json) -> None:
    parts = {part["name"]: part for part in pod["spec"]["containers"]}
    settings = {item["name"]: item["value"] for item in parts["node"].get("env", [])}
    drain = float(settings.get("MESHNODE_DRAIN", 8))  # the image's
    grace = pod["spec"]["terminationGracePeriodSeconds"]
    program = [part["lifecycle"]["preStop"]["sleep"]["seconds"] for key, part in parts.items() if key != "node"]
    assert drain + 2 <= grace
    assert all(drain < wait < grace for wait in program)


def test_selectors_ports_and_secrets_fit_together() -> None:
    labels = [pod["metadata"]["labels"] for _, pod in PODS]
    for item in ALL:
        spec = item["spec"]
        chosen = spec.get("podSelector", spec.get("selector", {}))
        wanted = chosen.get("matchLabels", chosen)
        assert any(wanted.items() <= found.items() for found in labels), item["metadata"]["name"]
    page = (ROOT / "docs" / "how-to" / "containers.md").read_text(encoding="utf-8")
    made = set(re.findall(r"create secret generic (\S+)", page))
    assert made == set(re.findall(r"secret(?:: \{|:\s+)name: ([\w-]+)", "".join(path.read_text() for path in FILES)))
    for _, pod in PODS:
        listens = {port["containerPort"] for part in pod["spec"]["containers"] for port in part.get("ports", [])}
        [args] = [part["args"] for part in pod["spec"]["containers"] if part["name"] == "node"]
        assert {int(args[args.index("--listen") + 1].rpartition(":")[2])} == listens


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: str(path.relative_to(ROOT)))
def test_compose_runs_nodes_without_rights(path: Path) -> None:
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    nodes = [service for service in found["services"].values() if service["image"] == "meshnode"]
    assert nodes
    for node in nodes:
        assert node["read_only"] is True
        assert node["cap_drop"] == ["ALL"]
        assert node["security_opt"] == ["no-new-privileges:true"]
        assert (path.parent / node["build"]["context"] / node["build"]["dockerfile"]).exists()
        assert node["command"][0] in INDEX
        assert {volume.split(":")[0] for volume in node["volumes"]} <= set(found["volumes"])
        if isinstance(node.get("networks"), list):
            assert set(node["networks"]) <= set(found["networks"])


def test_what_the_compose_file_says_of_its_use_is_so() -> None:
    text = COMPOSE[0].read_text(encoding="utf-8")
    found = yaml.safe_load(text)
    said = text[: text.index("\nname:")]
    networks = {f"{found['name']}_{network}" for network in found["networks"]}
    assert set(re.findall(r"docker network \w+ (\S+)", said)) == networks, "as compose calls them"
    lines = re.findall(r"docker compose exec (\w+) (.*)", said)
    assert {service for service, _ in lines} <= set(found["services"])
    offered = [line.split()[2] for _, line in lines if line.startswith("meshnode expose")]
    wanted = [line.split()[3] for _, line in lines if line.startswith("meshnode forward")]
    assert offered == wanted
