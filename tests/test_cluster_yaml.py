"""Would Ray's cluster launcher accept cluster.yaml?"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "cluster.yaml").read_text()))


def validated(config: dict[str, Any]) -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def test_does_ray_accept_the_cluster_file(config: dict[str, Any]) -> None:
    prepared = validated(config)
    assert prepared["head_node_type"] in prepared["available_node_types"]
    for name, node in prepared["available_node_types"].items():
        assert node.get("min_workers", 0) <= node.get("max_workers", 0) or name == prepared["head_node_type"]


def test_would_ray_refuse_a_file_with_a_mistake(config: dict[str, Any]) -> None:
    wrong = copy.deepcopy(config)
    wrong["max_wrokers"] = wrong.pop("max_workers")
    with pytest.raises(Exception, match="max_wrokers"):
        validated(wrong)
    wrong = copy.deepcopy(config)
    wrong["head_node_type"] = "nowhere"
    with pytest.raises(Exception, match="head_node_type"):
        validated(wrong)


def test_does_the_head_keep_its_cpus_from_work(config: dict[str, Any]) -> None:
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"] == {"CPU": 0}


def test_are_the_files_that_a_node_needs_where_the_file_says(config: dict[str, Any]) -> None:
    (target,) = config["file_mounts"]
    assert config["file_mounts"][target] == "."
    commands = " ".join(config["setup_commands"])
    assert f"{target}/constraints.txt" in commands
    assert (ROOT / "constraints.txt").is_file()
