"""Would Ray's cluster launcher and Kubernetes accept the cluster files, and do these leave no door open?"""

from __future__ import annotations

import copy
import importlib
import re
import shlex
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from jobs.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
KUBERAY = ROOT / "deploy" / "kuberay"
LOCAL = ROOT / "deploy" / "local" / "autoscaling.yaml"
DOCS = ROOT / "docs" / "cluster.md"


def load(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text()))


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return load(ROOT / "cluster.yaml")


def validated(config: dict[str, Any]) -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


@pytest.mark.parametrize("path", [ROOT / "cluster.yaml", LOCAL], ids=lambda path: path.name)
def test_does_ray_accept_the_cluster_file(path: Path) -> None:
    prepared = validated(load(path))
    assert prepared["head_node_type"] in prepared["available_node_types"]
    for node in prepared["available_node_types"].values():
        assert node.get("min_workers", 0) <= node.get("max_workers", 0)


def test_would_ray_refuse_a_file_with_a_mistake(config: dict[str, Any]) -> None:
    wrong = copy.deepcopy(config)
    wrong["max_wrokers"] = wrong.pop("max_workers")
    with pytest.raises(Exception, match="max_wrokers"):
        validated(wrong)
    wrong = copy.deepcopy(config)
    wrong["head_node_type"] = "nowhere"
    with pytest.raises(Exception, match="head_node_type"):
        validated(wrong)


def test_does_the_head_keep_its_cpus_from_work_and_do_workers_start_on_demand(config: dict[str, Any]) -> None:
    types = config["available_node_types"]
    head = types.pop(config["head_node_type"])
    assert head["resources"]["CPU"] == 0
    assert all(node["min_workers"] == 0 < node["max_workers"] for node in types.values())
    assert any(node["resources"].get("GPU") for node in types.values())
    spot = [n for n in types.values() if n["node_config"].get("InstanceMarketOptions") == {"MarketType": "spot"}]
    assert spot
    assert not any("GPU" in node["resources"] for node in spot)
    types["head"] = head


def test_does_the_aws_file_open_no_door_and_hold_no_secret(config: dict[str, Any]) -> None:
    text = (ROOT / "cluster.yaml").read_text()
    assert not re.search(r"AKIA|aws_secret|access_key|password", text, re.IGNORECASE)
    assert "security_group" not in config["provider"], "the launcher's own group opens SSH alone"
    assert "0.0.0.0" not in text
    for command in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
        if "ray start" in command:
            assert "RAY_AUTH_MODE=token" in command
    assert "--dashboard-host=127.0.0.1" in " ".join(config["head_start_ray_commands"])
    assert config["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    profiles = {}
    for name, node in config["available_node_types"].items():
        machine = node["node_config"]
        assert machine["MetadataOptions"]["HttpTokens"] == "required", f"{name}: IMDSv2"
        assert all(disk["Ebs"]["Encrypted"] for disk in machine["BlockDeviceMappings"])
        profiles[name] = machine["IamInstanceProfile"]["Name"]
    head = profiles.pop(config["head_node_type"])
    assert head not in profiles.values(), "workers need not start machines"


def test_are_the_files_that_a_node_needs_where_the_file_says(config: dict[str, Any]) -> None:
    (target,) = [there for there, here in config["file_mounts"].items() if here == "."]
    home = f"/home/{config['auth']['ssh_user']}/"
    commands = " ".join(config["setup_commands"]).replace("~/", home).replace("$HOME/", home)
    assert f"{target}/constraints.txt" in commands
    assert f"{target}[s3]" in commands
    assert (ROOT / "constraints.txt").is_file()


RAY_JOBS = [KUBERAY / "train.yaml", KUBERAY / "encode.yaml"]
RAY_JOB_FIELDS = {
    "entrypoint",
    "shutdownAfterJobFinishes",
    "ttlSecondsAfterFinished",
    "backoffLimit",
    "submitterPodTemplate",
    "rayClusterSpec",
}
CLUSTER_FIELDS = {
    "rayVersion",
    "authOptions",
    "enableInTreeAutoscaling",
    "autoscalerOptions",
    "headGroupSpec",
    "workerGroupSpecs",
}
GROUP_FIELDS = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
"""Those fields of KubeRay 1.5.1's RayJob that the manifests may use; another one is a slip of the pen."""


@pytest.fixture(params=RAY_JOBS, ids=lambda path: path.stem)
def job(request: pytest.FixtureRequest) -> dict[str, Any]:
    return load(request.param)


def pods(job: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    spec = job["spec"]
    yield "submitter", spec["submitterPodTemplate"]["spec"]
    yield "head", spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    for group in spec["rayClusterSpec"]["workerGroupSpecs"]:
        yield group["groupName"], group["template"]["spec"]


def test_are_the_manifests_ray_jobs_with_known_fields(job: dict[str, Any]) -> None:
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    assert set(job["spec"]) == RAY_JOB_FIELDS
    assert set(cluster) == CLUSTER_FIELDS
    assert all(set(group) == GROUP_FIELDS for group in cluster["workerGroupSpecs"])
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    assert job["spec"]["backoffLimit"] > 0
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"]


def test_does_every_pod_run_as_nobody_special_within_what_it_asked_for(job: dict[str, Any]) -> None:
    for name, pod in pods(job):
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            inside = container["securityContext"]
            assert inside == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
            assert container["resources"]["requests"] == container["resources"]["limits"]
            assert {"cpu", "memory"} <= set(container["resources"]["limits"])
            mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
            assert mounted == {volume["name"] for volume in pod.get("volumes", [])}


def test_do_credentials_come_from_an_account_or_a_secret_alone(job: dict[str, Any]) -> None:
    accounts = {item["metadata"]["name"] for item in storage() if item["kind"] == "ServiceAccount"}
    for name, pod in pods(job):
        for container in pod["containers"]:
            assert "env" not in container
        if name != "submitter":
            assert pod["serviceAccountName"] in accounts
            assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "parvae-s3", "optional": True}}]
    assert pods(job).__next__()[1]["automountServiceAccountToken"] is False


def storage() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((KUBERAY / "storage.yaml").read_text()))


def test_do_only_the_cluster_the_submitter_and_the_operator_reach_the_pods(job: dict[str, Any]) -> None:
    (policy,) = [item["spec"] for item in storage() if item["kind"] == "NetworkPolicy"]
    assert policy["policyTypes"] == ["Ingress"]
    inner, outer = policy["ingress"]
    assert inner["from"] == [{"podSelector": policy["podSelector"]}]
    assert outer["ports"] == [{"protocol": "TCP", "port": 8265}]
    labels = job["spec"]["submitterPodTemplate"]["metadata"]["labels"]
    assert {"podSelector": {"matchLabels": labels}} in outer["from"]


def parse(words: list[str]) -> Namespace:
    """What parvae's own parser makes of a command line."""
    assert words[0] == "parvae"
    assert words[1] in COMMANDS, words
    parser = ArgumentParser(allow_abbrev=False, exit_on_error=False)
    importlib.import_module(f"jobs.{words[1]}").add_arguments(parser)
    parser.add_argument("--log-json", action="store_true")
    return parser.parse_args(words[2:])


def test_do_the_entrypoints_parse_and_ask_for_what_the_workers_have(job: dict[str, Any]) -> None:
    options = parse(shlex.split(job["spec"]["entrypoint"]))
    kind = "nvidia.com/gpu" if options.gpu else "cpu"
    room = sum(
        int(group["template"]["spec"]["containers"][0]["resources"]["limits"].get(kind, 0)) * group["maxReplicas"]
        for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    )
    assert 0 < options.workers <= room
    for text in (options.data, options.model):
        assert text.startswith("s3://")


def commands() -> list[str]:
    """The shell lines of the guide, continuation lines joined."""
    blocks = re.findall(r"```sh\n(.*?)```", DOCS.read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.partition("  #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


def test_do_the_commands_of_the_guide_parse() -> None:
    seen = set()
    for line in commands():
        words = [word for word in shlex.split(line) if not re.match(r"[A-Z_]+=", word)]
        if words[:1] == ["parvae"]:
            options = parse(words)
            if words[1] == "submit":
                inner = options.job[1:]
                assert options.job[0] == "--", line
                parse(["parvae", *inner])
            seen.add(words[1])
    assert {"submit", "encode"} <= seen


def test_are_the_files_that_the_guide_names_there() -> None:
    text = DOCS.read_text()
    named = set(re.findall(r"(?:deploy|docs|tests)/[\w./-]+\.\w+|deploy/kuberay/Dockerfile|cluster\.yaml", text))
    assert {"cluster.yaml", "deploy/kuberay/encode.yaml", "deploy/local/autoscaling.yaml"} <= named
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_does_the_image_hold_what_the_package_is_made_of() -> None:
    text = (KUBERAY / "Dockerfile").read_text()
    copied = {source for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for source in line.split()[:-1]}
    assert all((ROOT / source).exists() for source in copied)
    assert {"jobs", "pipeline", "vae_model", "constraints.txt", "pyproject.toml"} <= copied
    assert re.search(r"^USER 1000$", text, re.MULTILINE)
