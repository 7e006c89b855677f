"""Compose file and Kubernetes manifests start the same server from the same settings as serve.sh, on pinned images.

They are read here, not run: no container runtime is to be had.
"""

import re

import pytest
from ruamel.yaml import YAML

from tests.team import parts

INFRA = parts.ROOT / "infra"
COMPOSE = YAML(typ="safe").load((INFRA / "compose.yaml").read_text())["services"]
OBJECTS = [one for path in sorted((INFRA / "kubernetes").glob("*.yaml")) for one in YAML(typ="safe").load_all(path)]
SETTINGS = parts.variables("server.env.example")
SECRETS = parts.variables("secrets.env.example")


def objects(kind):
    return {one["metadata"]["name"]: one for one in OBJECTS if one["kind"] == kind}


def pods():
    """Name of the workload: (its pod's spec, containers and init containers)."""
    found = {}
    for one in OBJECTS:
        if "template" in one.get("spec", {}):
            spec = one["spec"]["template"]["spec"]
            found[one["metadata"]["name"]] = (spec, [*spec.get("initContainers", []), *spec["containers"]])
    return found


def port(setting):
    return int(re.search(r":(\d+)", SETTINGS[setting])[1]) if ":" in SETTINGS[setting] else int(SETTINGS[setting])


def test_both_start_the_server_and_make_its_bucket_by_the_same_commands():
    containers = {one["name"]: one for one in pods()["mlflow"][1]}
    for name in ("mlflow", "bucket"):
        assert COMPOSE[name]["command"] == containers[name]["command"]
        assert COMPOSE[name]["image"] == containers[name]["image"]
        assert (parts.ROOT / containers[name]["command"][1]).is_file()


def test_both_take_every_setting_from_the_two_files_and_set_none_themselves():
    for name in ("mlflow", "bucket"):
        assert COMPOSE[name]["env_file"] == ["../mlflow/server.env", "../mlflow/secrets.env"]
        assert "environment" not in COMPOSE[name]
    for container in pods()["mlflow"][1]:
        assert container["envFrom"] == [
            {"configMapRef": {"name": "mlflow-settings"}},
            {"secretRef": {"name": "mlflow-secrets"}},
        ]
        assert "env" not in container
    readme = (INFRA / "README.md").read_text()
    assert "kubectl create configmap mlflow-settings --from-env-file=mlflow/server.env" in readme
    assert "kubectl create secret generic mlflow-secrets --from-env-file=mlflow/secrets.env" in readme


def test_the_example_settings_fit_the_names_and_ports_of_both():
    services = objects("Service")
    for setting, name in (
        ("MLFLOW_BACKEND_STORE_URI", "postgres"),
        ("MLFLOW_AUTH_DATABASE_URI", "postgres"),
        ("MLFLOW_S3_ENDPOINT_URL", "s3"),
        ("MLFLOW_SERVER_ALLOWED_HOSTS", "mlflow"),
    ):
        assert re.search(rf"(^|[/@,]){name}:\d", SETTINGS[setting])
        assert name in COMPOSE
        (open_port,) = services[name]["spec"]["ports"]
        assert re.search(rf"{name}:{open_port['port']}\b", SETTINGS[setting])
        (container,) = pods()[name][0]["containers"]
        assert container["ports"] == [{"name": open_port["targetPort"], "containerPort": open_port["port"]}]
    assert COMPOSE["mlflow"]["ports"] == [f"127.0.0.1:{port('MLFLOW_PORT')}:{port('MLFLOW_PORT')}"]
    (mlflow,) = pods()["mlflow"][0]["containers"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        (header,) = mlflow[probe]["httpGet"]["httpHeaders"]
        assert header["value"] in SETTINGS["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")


def test_the_store_and_the_database_get_their_secrets_from_the_same_file():
    names = {"POSTGRES_PASSWORD": "PGPASSWORD", "ROOT_ACCESS_KEY_ID": "AWS_ACCESS_KEY_ID"}
    names["ROOT_SECRET_ACCESS_KEY"] = "AWS_SECRET_ACCESS_KEY"
    for service in ("postgres", "s3"):
        (container,) = pods()[service][0]["containers"]
        kubernetes = {one["name"]: one for one in container["env"] if one["name"] in names}
        compose = {key: value for key, value in COMPOSE[service]["environment"].items() if key in names}
        assert kubernetes.keys() == compose.keys() != set()
        for key in kubernetes:
            assert names[key] in SECRETS
            reference = kubernetes[key]["valueFrom"]["secretKeyRef"]
            assert reference == {"name": "mlflow-secrets", "key": names[key]}
            assert compose[key].startswith(f"${{{names[key]}:?")
        plain = {one["name"]: one.get("value") for one in container["env"] if one["name"] not in {*names, "PGDATA"}}
        assert plain == {k: v for k, v in COMPOSE[service]["environment"].items() if k not in names}
    assert COMPOSE["s3"]["command"] == pods()["s3"][0]["containers"][0]["args"]
    owner = re.search(r"//(\w+)@[^/]*/(\w+)$", SETTINGS["MLFLOW_AUTH_DATABASE_URI"])
    assert f"CREATE DATABASE {owner[2]} OWNER {owner[1]};" in (INFRA / "postgres-init.sql").read_text()


def test_no_secret_has_a_value_in_a_file():
    text = "\n".join(path.read_text() for path in INFRA.rglob("*") if path.is_file())
    assert not re.search(r"(?i)(password|secret_access_key|access_key_id): *[\w']+$", text, re.MULTILINE)
    assert set(SECRETS.values()) == {""}


@pytest.mark.parametrize("service", ["postgres", "s3", "mlflow"])
def test_images_are_pinned_and_the_same(service):
    assert COMPOSE[service]["image"] in {one["image"] for one in pods()[service][1]}
    for one in pods()[service][1]:
        assert re.search(r":v?\d+\.\d+(\.\d+)?(-\w+)?$", one["image"])
    base = re.findall(r"^FROM (\S+)", (INFRA / "mlflow.Dockerfile").read_text(), re.MULTILINE)
    assert all(re.search(r":\d+\.\d+\.\d+-", image) for image in base)
    assert base


def test_every_package_of_the_image_is_pinned_and_every_client_is_the_database_s():
    text = (INFRA / "mlflow.Dockerfile").read_text()
    names = re.findall(r'[\w-]+(?=\[|"|\s|$)', re.search(r"requirements\.lock \\\n(.*?)&&", text, re.DOTALL)[1])
    locked = {line.partition("==")[0] for line in (parts.ROOT / "requirements.lock").read_text().splitlines()}
    assert {name for name in names if name != "binary"} <= locked
    assert len(names) >= 5
    major = re.search(r"postgres:(\d+)", COMPOSE["postgres"]["image"])[1]
    assert f"postgresql-client-{major} " in text


def test_pods_run_without_privileges():
    for spec, containers in pods().values():
        assert spec["securityContext"]["runAsNonRoot"]
        assert not spec["automountServiceAccountToken"]
        for one in containers:
            assert one["securityContext"]["allowPrivilegeEscalation"] is False
            assert one["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in one["resources"]["limits"]


def test_no_service_of_kubernetes_overrides_a_setting():
    """A service named mlflow sets MLFLOW_PORT=tcp://... in every pod that does not turn that off."""
    assert pods()["mlflow"][0]["enableServiceLinks"] is False
