"""Validates infra/: manifests, cluster files and images against their schemas and hadolint.

Each check is also run on copies with one error each, which it must refuse.
"""

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml
from compose_spec import PyCompose

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
KUBERNETES = "1.36"
KUBERAY = json.loads((INFRA / "schemas" / "kuberay.json").read_text(encoding="utf-8"))
RAY_SCHEMA = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
RAY_UP = json.loads(RAY_SCHEMA.read_text(encoding="utf-8"))
# The secrets that docs/clusters.md creates, with their keys.
SECRETS = {
    "ray-token": {"auth_token"},
    "s3-credentials": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"},
    "s3-identities": {"identities.json"},
    "mlflow-credentials": {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"},
    "mlflow-server": {"login", "session_key"},
    "postgresql": {"password"},
}


def documents() -> list[dict[str, Any]]:
    return [
        document
        for file in sorted((INFRA / "kubernetes").glob("*.yaml"))
        if file.name != "kustomization.yaml"
        for document in yaml.safe_load_all(file.read_text(encoding="utf-8"))
    ]


def check(document: dict[str, Any]) -> None:
    """Validates a document against Kubernetes' and KubeRay's schemas."""
    if document["apiVersion"] != "ray.io/v1":
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
        return
    jsonschema.validate(document, KUBERAY, jsonschema.Draft202012Validator)
    for template in pod_templates(document):
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": template}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def pod_templates(value: Any) -> Iterator[dict[str, Any]]:
    """All pod templates in a document, at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("template", "submitterPodTemplate") and "spec" in inner:
                yield inner
            else:
                yield from pod_templates(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from pod_templates(inner)


def named(kind: str, name: str | None = None) -> dict[str, Any]:
    """A copy of the document of this kind and name."""
    found = [
        document
        for document in documents()
        if document["kind"] == kind and name in (None, document["metadata"].get("name"))
    ]
    assert found, (kind, name)
    return copy.deepcopy(found[0])


IDS = [f"{d['kind']}-{d['metadata'].get('name', 'generated')}" for d in documents()]


@pytest.mark.parametrize("document", documents(), ids=IDS)
def test_manifests_match_their_schemas(document: dict[str, Any]) -> None:
    check(document)


def _setting(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(document: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        place: Any = document
        for part in parents:
            place = place[int(part) if part.isdigit() else part]
        place[last] = value

    return edit


ERRORS = {
    "a misspelt key of Kubernetes": (("Deployment", "mlflow"), _setting("spec.replica", 1)),
    "a word for a number": (("StatefulSet", "postgresql"), _setting("spec.replicas", "one")),
    "a key of no policy": (("NetworkPolicy", "ray"), _setting("spec.ingres", [])),
    "a misspelt key of KubeRay": (("RayCluster", None), _setting("spec.autoscalingOptions", {})),
    "an unknown way of authentication": (
        ("RayCluster", None),
        _setting("spec.authOptions.mode", "password"),
    ),
    "a number for a parameter of ray start": (
        ("RayCluster", None),
        _setting("spec.headGroupSpec.rayStartParams.num-cpus", 0),
    ),
    "a misspelt key in a pod of KubeRay": (
        ("RayCluster", None),
        _setting("spec.workerGroupSpecs.1.template.spec.toleration", []),
    ),
    "a job without a command": (("RayJob", None), lambda document: document["spec"].pop("entrypoint")),
    "an unknown way to submit": (("RayJob", None), _setting("spec.submissionMode", "Carrier")),
}


@pytest.mark.parametrize("case", ERRORS)
def test_a_manifest_with_an_error_is_refused(case: str) -> None:
    (kind, name), edit = ERRORS[case]
    document = named(kind, name)
    check(document)
    edit(document)
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(document)


def test_pods_are_unprivileged_and_have_limits() -> None:
    templates = [template for document in documents() for template in pod_templates(document)]
    assert len(templates) >= 9
    for template in templates:
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        for container in spec["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
            assert {"cpu", "memory"} <= set(container["resources"]["limits"])


def test_ray_pods_have_shared_memory_and_only_the_head_has_a_service_account() -> None:
    for document in [named("RayCluster"), named("RayJob")]:
        cluster = document["spec"].get("rayClusterSpec", document["spec"])
        assert cluster["authOptions"] == {"mode": "token", "secretName": "ray-token"}
        groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        for group in groups:
            spec = group["template"]["spec"]
            shm = [volume for volume in spec["volumes"] if volume["name"] == "shm"]
            assert shm[0]["emptyDir"]["medium"] == "Memory"
            mounts = {mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
            assert {"/dev/shm", "/cache"} <= mounts
            autoscaler = group is groups[0] and cluster.get("enableInTreeAutoscaling", False)
            assert spec.get("automountServiceAccountToken", True) is autoscaler


def test_manifests_refer_to_secrets_that_the_docs_create() -> None:
    used: dict[str, set[str]] = {}

    def collect(value: Any) -> None:
        if isinstance(value, dict):
            if "secretRef" in value:
                used.setdefault(value["secretRef"]["name"], set())
            if "secretKeyRef" in value:
                used.setdefault(value["secretKeyRef"]["name"], set()).add(value["secretKeyRef"]["key"])
            if isinstance(value.get("secretName"), str):
                used.setdefault(value["secretName"], set())
            for inner in value.values():
                collect(inner)
        elif isinstance(value, list):
            for inner in value:
                collect(inner)

    for document in documents():
        assert document["kind"] != "Secret", "a secret in a file of the repository"
        collect(document)
        for template in pod_templates(document):
            for container in template["spec"]["containers"]:
                for variable in container.get("env", ()):
                    hidden = re.search(r"PASSWORD|SECRET|TOKEN|KEY", variable["name"])
                    file = variable["name"].endswith("_FILE")
                    assert not hidden or file or "value" not in variable, variable
    assert set(used) == set(SECRETS)
    text = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
    for secret, keys in SECRETS.items():
        assert f"create secret generic {secret}" in text, secret
        assert all(key in text for key in keys), (secret, keys)


def test_services_select_pods_and_each_has_a_network_policy() -> None:
    labels = [t["metadata"]["labels"] for d in documents() for t in pod_templates(d)]
    for document in documents():
        if document["kind"] == "Service":
            selector = document["spec"]["selector"].items()
            assert any(selector <= found.items() for found in labels), document["metadata"]["name"]
    policies = [
        document["spec"]["podSelector"] for document in documents() if document["kind"] == "NetworkPolicy"
    ]
    assert {} in policies, "pods are open unless something closes them all"
    listening = {label["app.kubernetes.io/component"] for label in labels} - {"buckets", "submitter"}
    covered = {policy["matchLabels"]["app.kubernetes.io/component"] for policy in policies if policy}
    assert covered == listening


def test_the_kustomization_lists_all_manifests_and_own_images() -> None:
    kustomization = yaml.safe_load((INFRA / "kubernetes" / "kustomization.yaml").read_text(encoding="utf-8"))
    files = {file.name for file in (INFRA / "kubernetes").glob("*.yaml")}
    assert set(kustomization["resources"]) == files - {"kustomization.yaml", "ray-job.yaml"}
    images = {c["image"] for d in documents() for t in pod_templates(d) for c in t["spec"]["containers"]}
    assert {image["name"] for image in kustomization["images"]} == {i for i in images if ":" not in i}


# `ray up`.


@pytest.mark.parametrize("name", ["aws", "on-premise"])
def test_ray_up_files_are_valid(name: str) -> None:
    config = yaml.safe_load((INFRA / "ray-up" / f"{name}.yaml").read_text(encoding="utf-8"))
    jsonschema.validate(config, RAY_UP)
    for edit in (
        _setting("max_worker", 3),
        _setting("docker.images", "x"),
        _setting("idle_timeout_minutes", "5"),
    ):
        wrong = copy.deepcopy(config)
        edit(wrong)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, RAY_UP)
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    assert all("cluster.env" in start for start in starts if "ray start" in start)
    assert "--dashboard-host=127.0.0.1" in " ".join(starts)


# Compose.


def compose(text: str) -> dict[str, Any]:
    """The file with Compose's defaults substituted, validated against Compose's specification."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text).replace("$$", "$")
    return PyCompose.from_yaml(text).to_spec().model_dump(exclude_none=True)


def test_the_compose_file_is_valid_and_binds_to_loopback() -> None:
    file = INFRA / "compose" / "compose.yaml"
    text = file.read_text(encoding="utf-8")
    assert set(compose(text)["services"]) == {"postgresql", "object-storage", "buckets", "mlflow"}
    for line, wrong in (
        ("    restart: unless-stopped\n", "    restarts: unless-stopped\n"),
        ("  database: {internal: true}\n", "  database: {internal: [true]}\n"),
    ):
        assert line in text
        with pytest.raises(ValueError):
            compose(text.replace(line, wrong, 1))
    document = yaml.safe_load(text)
    for name, service in document["services"].items():
        assert all(port.startswith("${MIMIC3D_BIND:-127.0.0.1}:") for port in service.get("ports", ())), name
        assert set(service.get("secrets", ())) <= set(document["secrets"])
        build = service.get("build")
        if build:
            context = (file.parent / build["context"]).resolve()
            assert context == ROOT and (context / build["dockerfile"]).is_file()
    assert "infra/compose/secrets/" in (ROOT / ".gitignore").read_text(encoding="utf-8")


# Images.


@pytest.mark.parametrize("name", ["ray", "mlflow"])
def test_dockerfiles_pass_hadolint_and_copy_existing_files(name: str, tmp_path: Path) -> None:
    file = INFRA / "images" / f"{name}.Dockerfile"
    assert hadolint(file) == []
    wrong = tmp_path / "Dockerfile"
    text = file.read_text(encoding="utf-8").replace("USER 1000", "USER root")
    wrong.write_text(text + "\nRUN cd /tmp && sudo true\n", encoding="utf-8")
    assert {"DL3002", "DL3004"} <= set(hadolint(wrong))
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("COPY ") and "--from=" not in line:
            sources = [part for part in line.split()[1:-1] if not part.startswith("--")]
            for source in sources:
                assert (ROOT / source).exists(), line
                sent = {f"!{parent}" for parent in [Path(source), *Path(source).parents]}
                assert sent & set(ignored), f"{source} is not sent to the build"


def hadolint(file: Path) -> list[str]:
    program = Path(sys.executable).with_name("hadolint")
    run = subprocess.run([program, "--format", "json", file], capture_output=True, text=True)
    return [finding["code"] for finding in json.loads(run.stdout)]


def test_images_install_the_pinned_versions() -> None:
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = {name.lower() for name in re.findall(r"^([\w.-]+)==", constraints, re.M)}
    assert {"psycopg2-binary", "boto3", "mlflow", "flask-wtf", "ray", "torch"} <= pinned
    ray_version = re.search(r"^ray==(.+)$", constraints, re.M)[1]
    for document in [named("RayCluster"), named("RayJob")]:
        cluster = document["spec"].get("rayClusterSpec", document["spec"])
        assert cluster["rayVersion"] == ray_version


def test_secrets_from_files_sets_variables_for_the_command(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("s3cret $x 'y'\n", encoding="utf-8")
    program = INFRA / "images" / "secrets-from-files.sh"
    environment = {"PATH": os.environ["PATH"], "PGPASSWORD_FILE": str(tmp_path / "password")}
    environment["SSL_CERT_FILE"] = str(tmp_path / "password")  # A variable of another program, not a secret.
    command = [str(program), "sh", "-c", 'printf %s%s "$PGPASSWORD" "${SSL_CERT:-}"']
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.stdout == "s3cret $x 'y'" and not run.stderr
    environment["PGPASSWORD_FILE"] = str(tmp_path / "none")
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode != 0 and "none" in run.stderr
