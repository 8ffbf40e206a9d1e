"""The files that start clusters: well-formed, true to the schema, and in step with configs and pins."""

import json
import math
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from museg_ray.config.load import load_config
from museg_ray.config.schema import Config
from museg_ray.fleet.places import needs

ROOT = Path(__file__).resolve().parents[2]
IMAGE_ROOT = "/opt/museg_ray/"


@pytest.fixture(scope="module")
def rayjob() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster" / "rayjob.yaml").read_text())


@pytest.fixture(scope="module")
def kuberay(shared_dir: Path) -> jsonschema.Draft7Validator:
    """Checks what KubeRay's API server checks, and refuses unknown keys too."""
    with (shared_dir / "crd" / "ray.io_rayjobs.yaml").open() as file:
        definition = yaml.load(file, Loader=yaml.CSafeLoader)
    (version,) = (version for version in definition["spec"]["versions"] if version["name"] == "v1")
    return jsonschema.Draft7Validator(refuse_unknown_keys(version["schema"]["openAPIV3Schema"]))


def refuse_unknown_keys(schema: Any) -> Any:
    """Kubernetes drops keys it does not know without a word; a test must not."""
    if isinstance(schema, list):
        return [refuse_unknown_keys(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: refuse_unknown_keys(part) for key, part in schema.items()}
    closed = isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields")
    return {**strict, "additionalProperties": False} if closed else strict


def worker_groups(rayjob: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {group["groupName"]: group for group in rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"]}


def container(group: dict[str, Any]) -> dict[str, Any]:
    (only,) = group["template"]["spec"]["containers"]
    return only


def limits(group: dict[str, Any]) -> dict[str, Any]:
    return container(group)["resources"]["limits"]


def entrypoint_config(rayjob: dict[str, Any]) -> tuple[Path, list[str]]:
    """Config file (in the clone) and overrides of `cd VOLUME && museg train --resume -c CONFIG key=value ...`."""
    words = shlex.split(rayjob["spec"]["entrypoint"])
    change, folder, _, program, command, resume, flag, config, *overrides = words
    assert (change, program, command, resume, flag) == ("cd", "museg", "train", "--resume", "-c")
    assert any(override.startswith("run.name=") for override in overrides), "a run without a name cannot be resumed"
    groups = worker_groups(rayjob).values()
    assert all(folder in {mount["mountPath"] for mount in container(group)["volumeMounts"]} for group in groups)
    assert config.startswith(IMAGE_ROOT)
    return ROOT / config.removeprefix(IMAGE_ROOT), overrides


def test_rayjob_is_valid_for_kuberay(rayjob: dict[str, Any], kuberay: jsonschema.Draft7Validator) -> None:
    kuberay.validate(rayjob)


def test_a_misspelt_key_would_be_noticed(rayjob: dict[str, Any], kuberay: jsonschema.Draft7Validator) -> None:
    misspelt = {**rayjob, "spec": {**rayjob["spec"], "shutdownAfterJobFinish": True}}
    with pytest.raises(jsonschema.ValidationError, match="shutdownAfterJobFinish"):
        kuberay.validate(misspelt)


def test_rayjob_offers_what_its_config_reserves(rayjob: dict[str, Any]) -> None:
    config = load_config(*entrypoint_config(rayjob))
    groups = worker_groups(rayjob)
    assert groups["rollout"]["replicas"] == config.rollout.num_actors
    assert int(limits(groups["rollout"])["nvidia.com/gpu"]) == math.ceil(config.rollout.num_gpus)
    assert int(limits(groups["rollout"])["cpu"]) >= config.rollout.num_cpus
    learner = config.learner
    assert int(limits(groups["learner"])["nvidia.com/gpu"]) == learner.num_ranks * math.ceil(learner.num_gpus)
    assert int(limits(groups["learner"])["cpu"]) >= learner.num_ranks * learner.num_cpus
    pooled = config.rewards.num_actors * config.rewards.num_cpus + config.video.num_actors * config.video.num_cpus
    assert int(limits(groups["reward"])["cpu"]) >= pooled


def test_a_rollout_pod_has_memory_for_two_versions_of_the_weights_beside_rays_objects(rayjob: dict[str, Any]) -> None:
    memory_gib, weights_gib, engine_gib = int(limits(worker_groups(rayjob)["rollout"])["memory"][:-2]), 16.6 / 1.074, 16
    assert memory_gib > 2 * weights_gib + 0.3 * memory_gib + engine_gib


def test_images_have_what_the_probes_of_kuberay_call() -> None:
    (install,) = re.findall(r"AS gpu\nRUN apt-get .*?\n\n?ENV", (ROOT / "docker/Dockerfile").read_text(), re.DOTALL)
    assert " wget " in install


def test_rayjob_runs_the_pinned_ray(rayjob: dict[str, Any]) -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert f"ray[default]=={rayjob['spec']['rayClusterSpec']['rayVersion']}" in dependencies


def test_every_pod_has_the_same_image_and_a_metrics_port(rayjob: dict[str, Any]) -> None:
    head = rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]
    containers = [container(group) for group in (head, *worker_groups(rayjob).values())]
    assert len({pod["image"] for pod in containers}) == 1
    assert all({"name": "metrics", "containerPort": 8080} in pod["ports"] for pod in containers)


def test_each_group_offers_a_resource_of_its_roles(rayjob: dict[str, Any]) -> None:
    offered = {
        name: json.loads(json.loads(group["rayStartParams"]["resources"]))
        for name, group in worker_groups(rayjob).items()
    }
    assert offered == {"learner": {"learner": 1}, "rollout": {"rollout": 1}, "reward": {"reward": 1, "clips": 1}}
    assert {role for group in offered.values() for role in group} == set(needs(Config())), "as they are asked for"


def test_dockerfile_copies_files_that_exist_and_builds_the_named_targets() -> None:
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    sources = re.findall(r"^COPY (\S+) \S+$", dockerfile, re.MULTILINE)
    assert sources
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert re.findall(r"^FROM \S+ AS (\w+)$", dockerfile, re.MULTILINE) == ["cpu", "gpu"]


@pytest.mark.parametrize("script", ["cluster/slurm.sh", "scripts/setup.sh", ".ci/run"])
def test_shell_scripts_parse(script: str) -> None:
    subprocess.run(["bash", "-n", ROOT / script], check=True)


def test_slurm_script_without_a_config_explains_itself() -> None:
    result = subprocess.run(["bash", ROOT / "cluster/slurm.sh"], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("usage: sbatch cluster/slurm.sh CONFIG.yaml")


def test_slurm_script_outside_an_allocation_says_how_to_start_it() -> None:
    command = ["bash", ROOT / "cluster/slurm.sh", "configs/museg_7b.yaml"]
    result = subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    assert result.returncode != 0
    assert "start it with sbatch" in result.stderr
