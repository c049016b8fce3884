"""`compose.yaml` follows the Compose specification, and its parts fit together."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from compose_spec import PyCompose

from tests.deploy.files import DEPLOY, check_command, check_spec, documents


@pytest.fixture(scope="module")
def services() -> dict[str, dict]:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]


def test_specification() -> None:
    """The file is valid by the rules of the specification for keys, ports, durations and paths."""
    merged = yaml.safe_dump(yaml.safe_load((DEPLOY / "compose.yaml").read_text()))  # the parser knows no merge keys
    parsed = PyCompose.from_yaml(merged)
    assert {"kafka", "jobmanager", "jobserver", "workers-1", "workers-2", "prometheus", "grafana"} <= set(
        parsed.service_names()
    )
    with pytest.raises(ValueError, match="bogus"):
        PyCompose.from_yaml("services: {a: {image: x, bogus: 1}}")


def test_services_fit_together(services: dict[str, dict]) -> None:
    """Every service that another one waits for exists, and so does every folder that is mounted or built."""
    volumes = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["volumes"]
    for service in services.values():
        assert set(service.get("depends_on", ())) <= set(services)
        if "network_mode" in service:
            assert service["network_mode"].removeprefix("service:") in services
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in volumes, volume
        if "build" in service:
            assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


def test_every_task_manager_has_its_workers(services: dict[str, dict]) -> None:
    """Each has a worker pool in its network, at the job's port. The network outlives the death of either."""
    managers = [service for name, service in services.items() if name.startswith("taskmanager")]
    pools = [service for name, service in services.items() if name.startswith("workers")]
    networks = [pool["network_mode"] for pool in pools]
    assert networks == [manager["network_mode"] for manager in managers]
    assert all(services[name.removeprefix("service:")]["entrypoint"] == ["sleep", "infinity"] for name in networks)
    port = documents("jobs/stream.yaml")[0]["runner"]["environment"]["config"].rpartition(":")[2]
    assert all(pool["command"][pool["command"].index("--port") + 1] == port for pool in pools)


def test_commands_and_job(services: dict[str, dict], tmp_path: Path, monkeypatch) -> None:
    """Every command of our image exists with its options, and the job is valid and uses topics that are created."""
    ours = [service["command"] for service in services.values() if service["image"].startswith("tagstream:")]
    assert [check_command(command) for command in ours] == ["workers", "workers", "run"]
    spec = check_spec((DEPLOY / "jobs/stream.yaml").read_text(), tmp_path, monkeypatch)
    created = services["topics"]["command"][0]
    assert all(topic in created for topic in (*spec.source.topics, spec.sink.topic, spec.dead_letters.topic))


def test_prometheus_asks_every_process(services: dict[str, dict]) -> None:
    """Prometheus' targets are the services and their networks, at the ports on which they serve metrics."""
    (config,) = documents("prometheus/prometheus.yml")
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in config["scrape_configs"]}
    managers = sorted(
        service["network_mode"].removeprefix("service:")
        for name, service in services.items()
        if name.startswith("taskmanager")
    )
    assert targets["tagstream"] == [f"{name}:9400" for name in managers]
    assert targets["flink"] == [f"{name}:9249" for name in ("jobmanager", *managers)]
    assert all(name in services["jobmanager"]["environment"]["FLINK_PROPERTIES"] for name in ("9249", "Prometheus"))
