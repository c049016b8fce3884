"""Every Kubernetes resource is valid by the schema of its kind, and uses commands and jobs that exist."""

from __future__ import annotations

import copy
import zipfile
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.deploy.files import check_command, check_spec, documents
from tests.services.java import jars

VERSION = "1.31"
RESOURCES = [
    pytest.param(document, id=f"{file}-{document['kind']}-{document['metadata']['name']}")
    for file in ("stream", "bulk", "flink")
    for document in documents(f"kubernetes/{file}.yaml")
]


@pytest.fixture(scope="module")
def flink_deployment() -> dict:
    """The schema of the operator's own resource, from the operator's jar. It refuses unknown fields."""
    (jar,) = jars("flink-operator").glob("*.jar")
    with zipfile.ZipFile(jar) as opened:
        text = opened.read("META-INF/fabric8/flinkdeployments.flink.apache.org-v1.yml")
    crd = yaml.load(text, yaml.CSafeLoader)
    (version,) = [v for v in crd["spec"]["versions"] if v["name"] == "v1beta1"]
    schema = version["schema"]["openAPIV3Schema"]
    schema["properties"] |= {"apiVersion": {}, "kind": {}, "metadata": {}}
    return strict(schema)


def strict(schema: object) -> object:
    """The schema with every unnamed field refused, as by the API server with strict field validation."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    result = {key: strict(value) for key, value in schema.items()}
    if isinstance(result.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    return result


@pytest.mark.parametrize("resource", RESOURCES)
def test_schema(resource: dict, request) -> None:
    """No field is unknown, missing or of a wrong type. For Flink's resource, a mistake is refused as a proof."""
    if resource["kind"] != "FlinkDeployment":
        kubernetes_validate.validate(resource, VERSION, strict=True)
        return
    schema = request.getfixturevalue("flink_deployment")
    jsonschema.validate(resource, schema)
    broken = copy.deepcopy(resource)
    broken["spec"]["taskManager"]["podTemplate"]["spec"]["containers"][1]["imagee"] = "x"
    with pytest.raises(jsonschema.ValidationError, match="imagee"):
        jsonschema.validate(broken, schema)


def containers(resource: dict) -> list[dict]:
    """The containers of a resource with pods, the operator's task managers included."""
    spec = resource.get("spec", {})
    spec = spec.get("jobTemplate", {}).get("spec", spec)
    pod = spec.get("taskManager", {}).get("podTemplate") or spec.get("template") or {"spec": {"containers": []}}
    return pod["spec"]["containers"]


@pytest.mark.parametrize("resource", RESOURCES)
def test_containers(resource: dict) -> None:
    """Our commands exist with their options. Our containers run without root, and with a limit for memory."""
    for container in containers(resource):
        if not container.get("image", "").startswith("tagstream:"):
            continue
        check_command(container["args"])
        assert container["resources"]["limits"]["memory"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        served = "--metrics-port" in container["args"]
        assert served == any(port["name"] == "metrics" for port in container.get("ports", ()))


@pytest.mark.parametrize("resource", [r for r in RESOURCES if r.values[0]["kind"] == "ConfigMap"])
def test_job_specifications(resource: dict, tmp_path: Path, monkeypatch) -> None:
    """Every job specification in a resource is valid."""
    assert check_spec(resource["data"]["job.yaml"], tmp_path, monkeypatch).name == resource["metadata"]["name"]


def test_flink_addresses(tmp_path: Path, monkeypatch) -> None:
    """The job uses the services of the cluster, all of its slots, and the pool beside each slot."""
    found = {(d["kind"], d["metadata"]["name"]): d for d in documents("kubernetes/flink.yaml")}
    cluster, service = found["FlinkDeployment", "tagstream"], found["Service", "flink-job-server"]
    runner = check_spec(found["ConfigMap", "messages-live"]["data"]["job.yaml"], tmp_path, monkeypatch).runner
    assert runner.rest == "http://tagstream-rest:8081"  # the operator's name for this service
    assert runner.job_server == f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    slots = int(cluster["spec"]["flinkConfiguration"]["taskmanager.numberOfTaskSlots"])
    assert cluster["spec"]["mode"] == "standalone", "slots are counted before the job asks for them"
    assert runner.parallelism == slots * cluster["spec"]["taskManager"]["replicas"]
    pool = containers(cluster)[1]["args"]
    assert runner.environment.config == f"localhost:{pool[pool.index('--port') + 1]}"
