"""What every manifest keeps to. Each check returns a line for everything that does not; the empty list is good."""

import base64
import re
from collections import defaultdict
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

from kubernetes.utils.quantity import parse_quantity

from tests.infra.manifests import Object, containers, name_of, named, of_kind, pods

# A fixed version: a release's number or date, and a digest where one is given.
_IMAGE = re.compile(
    r"^[a-z0-9.-]+\.[a-z]+(:\d+)?(/[a-z0-9._-]+)+:(v?\d+(\.\d+)+[\w.-]*|RELEASE\.[\w-]+)(@sha256:[0-9a-f]{64})?$"
)
_SECRET_NAME = re.compile(
    r"PASSWORD|SECRET|TOKEN(?!IZ)|API_KEY|ACCESS_KEY|PRIVATE|session-key|password|secret-key|api-key"
)
_CREDENTIAL_IN_URL = re.compile(r"://[^/\s:@]+:(?!\$\()[^/\s@]+@")
_RESTRICTED_VOLUMES = frozenset(
    {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
)
_POWERFUL = frozenset({"*", "escalate", "bind", "impersonate", "deletecollection"})
# Values of the *.env.example files.
EXAMPLES = frozenset({"replace-me", "admin", "cloc", "minio-admin"})


def images(items: list[Object]) -> list[str]:
    """Every image is of a named registry and of a fixed version."""
    return [
        f"{owner}: image {container['image']!r} has no registry or no fixed version"
        for owner, pod in pods(items)
        for container in containers(pod)
        if not _IMAGE.match(container["image"])
    ]


def resources(items: list[Object]) -> list[str]:
    """Every container asks for processor and memory, and is held to a limit of both."""
    return [
        f"{owner}/{container['name']}: no {part} of {what}"
        for owner, pod in pods(items)
        for container in containers(pod)
        for part in ("requests", "limits")
        for what in ("cpu", "memory")
        if what not in container.get("resources", {}).get(part, {})
    ]


def baseline(items: list[Object]) -> list[str]:
    """Pod security level `baseline`: nothing of the node is shared."""
    found = []
    for owner, pod in pods(items):
        spec = pod["spec"]
        found += [f"{owner}: {name}" for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)]
        found += [f"{owner}: hostPath {volume['name']}" for volume in spec.get("volumes", []) if "hostPath" in volume]
        for container in containers(pod):
            context = container.get("securityContext", {})
            if context.get("privileged"):
                found.append(f"{owner}/{container['name']}: privileged")
            if set(context.get("capabilities", {}).get("add", ())):
                found.append(f"{owner}/{container['name']}: adds capabilities")
            found += [
                f"{owner}/{container['name']}: hostPort {port['hostPort']}"
                for port in container.get("ports") or ()
                if port.get("hostPort")
            ]
    return found


def restricted(items: list[Object]) -> list[str]:
    """Pod security level `restricted`: baseline, no root, nothing gained, no capability, seccomp."""
    found = baseline(items)
    for owner, pod in pods(items):
        spec = pod["spec"]
        whole = spec.get("securityContext") or {}
        found += [
            f"{owner}: volume {volume['name']} is of another kind"
            for volume in spec.get("volumes", [])
            if not set(volume) - {"name"} <= _RESTRICTED_VOLUMES
        ]
        for container in containers(pod):
            own = container.get("securityContext") or {}
            both = {**whole, **own}
            wanted = {
                "runAsNonRoot": both.get("runAsNonRoot") is True and both.get("runAsUser") != 0,
                "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
                "capabilities": own.get("capabilities", {}).get("drop") == ["ALL"],
                "seccompProfile": both.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"),
            }
            found += [f"{owner}/{container['name']}: {name}" for name, is_kept in wanted.items() if not is_kept]
    return found


def hardening(items: list[Object]) -> list[str]:
    """Beyond `restricted`: a numbered user, a root file system that stays as it is, no key to Kubernetes."""
    found = []
    for owner, pod in pods(items):
        spec = pod["spec"]
        if not spec.get("securityContext", {}).get("runAsUser"):
            found.append(f"{owner}: runAsUser")
        if spec.get("automountServiceAccountToken") is not False:
            found.append(f"{owner}: automountServiceAccountToken")
        found += [
            f"{owner}/{container['name']}: readOnlyRootFilesystem"
            for container in containers(pod)
            if not container.get("securityContext", {}).get("readOnlyRootFilesystem")
        ]
    return found


def pod_security(items: list[Object]) -> list[str]:
    """Every namespace says which pods it takes, and takes those that are here; restricted ones are warned of."""
    found = []
    levels = {"restricted": restricted, "baseline": baseline}
    for namespace in of_kind(items, "Namespace"):
        name, labels = namespace["metadata"]["name"], namespace["metadata"].get("labels", {})
        level = labels.get("pod-security.kubernetes.io/enforce")
        if level not in levels or labels.get("pod-security.kubernetes.io/warn") != "restricted":
            found.append(f"{name}: pod security is {level}")
            continue
        inside = [item for item in items if item["metadata"].get("namespace") == name]
        found += [f"{name} ({level}) refuses {line}" for line in levels[level](inside)]
    return found


def probes(items: list[Object]) -> list[str]:
    """What serves is watched while it starts and while it runs."""
    return [
        f"{name_of(item)}/{container['name']}: no {probe}"
        for item in of_kind(items, "Deployment", "StatefulSet")
        for container in item["spec"]["template"]["spec"]["containers"]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe")
        if probe not in container
    ]


def secrets(items: list[Object]) -> list[str]:
    """No secret in clear: in no variable, argument or ConfigMap; a Secret holds the examples' words alone."""
    found = []
    for item in of_kind(items, "Secret"):
        values = {key: base64.b64decode(value).decode() for key, value in item.get("data", {}).items()}
        values |= item.get("stringData", {})
        found += [f"{name_of(item)}: {key} holds a value" for key, value in values.items() if value not in EXAMPLES]
        if not values:
            found.append(f"{name_of(item)} is empty")
    for item in of_kind(items, "ConfigMap"):
        for key, value in item.get("data", {}).items():
            if _SECRET_NAME.search(key) or _CREDENTIAL_IN_URL.search(value):
                found.append(f"{name_of(item)}: {key} looks like a secret")
    for owner, pod in pods(items):
        for container in containers(pod):
            where = f"{owner}/{container['name']}"
            for variable in container.get("env", []):
                value = variable.get("value", "")
                if (value and _SECRET_NAME.search(variable["name"])) or _CREDENTIAL_IN_URL.search(value):
                    found.append(f"{where}: {variable['name']} is in clear")
            words = [*container.get("command", []), *container.get("args", [])]
            if any(
                _CREDENTIAL_IN_URL.search(word) or re.search(r"--(api-key|password|token)\b", word) for word in words
            ):
                found.append(f"{where}: an argument is a secret")
    return found


def rights(items: list[Object]) -> list[str]:
    """Roles of one namespace, that name what may be done and give nobody more rights or any Secret."""
    found = [f"{name_of(item)} is of the whole cluster" for item in of_kind(items, "ClusterRole", "ClusterRoleBinding")]
    for role in of_kind(items, "Role", "ClusterRole"):
        for rule in role["rules"]:
            if _POWERFUL & set(rule["verbs"]) or "*" in [*rule["apiGroups"], *rule["resources"]]:
                found.append(f"{name_of(role)}: {rule}")
            if "secrets" in rule["resources"]:
                found.append(f"{name_of(role)} reads Secrets")
    for binding in of_kind(items, "RoleBinding"):
        if binding["roleRef"]["kind"] != "Role":
            found.append(f"{name_of(binding)} binds a {binding['roleRef']['kind']}")
    return found


def references(items: list[Object]) -> list[str]:
    """What a pod, a Service, an autoscaler or a binding names is here."""
    found = []
    keys = {
        (item["kind"], item["metadata"].get("namespace"), item["metadata"]["name"]): {
            *item.get("data", {}),
            *item.get("stringData", {}),
        }
        for item in items
    }

    def look(owner: str, kind: str, namespace: str, name: str, key: str | None = None) -> None:
        if (kind, namespace, name) not in keys:
            found.append(f"{owner}: there is no {kind} {namespace}/{name}")
        elif key is not None and key not in keys[kind, namespace, name]:
            found.append(f"{owner}: {kind} {namespace}/{name} has no {key}")

    for owner, pod in pods(items):
        namespace = owner.split("/")[1]
        for container in containers(pod):
            for variable in container.get("env", []):
                source = variable.get("valueFrom", {})
                for field, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
                    if field in source:
                        look(owner, kind, namespace, source[field]["name"], source[field]["key"])
            for source in container.get("envFrom") or ():
                look(owner, "Secret", namespace, source["secretRef"]["name"])
            volumes = {volume["name"] for volume in pod["spec"].get("volumes", [])}
            mounts = {mount["name"] for mount in container.get("volumeMounts", [])}
            claims = set(_claims(items, owner))
            found += [f"{owner}: there is no volume {name}" for name in sorted(mounts - volumes - claims)]
        for volume in pod["spec"].get("volumes", []):
            if "configMap" in volume:
                look(owner, "ConfigMap", namespace, volume["configMap"]["name"])
        if "serviceAccountName" in pod["spec"]:
            look(owner, "ServiceAccount", namespace, pod["spec"]["serviceAccountName"])
    for service in of_kind(items, "Service"):
        for port in service["spec"]["ports"]:
            if not _served(items, service, port):
                found.append(f"{name_of(service)}: no pod serves its port {port['port']}")
    for scaler in of_kind(items, "HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        look(name_of(scaler), target["kind"], scaler["metadata"]["namespace"], target["name"])
    for binding in of_kind(items, "RoleBinding"):
        look(name_of(binding), "Role", binding["metadata"]["namespace"], binding["roleRef"]["name"])
    return found


def _claims(items: list[Object], owner: str) -> Iterator[str]:
    for item in of_kind(items, "StatefulSet"):
        if name_of(item) == owner:
            yield from (claim["metadata"]["name"] for claim in item["spec"].get("volumeClaimTemplates", []))


def _served(items: list[Object], service: Object, port: Object) -> bool:
    namespace, selector = service["metadata"]["namespace"], service["spec"]["selector"]
    return any(
        owner.split("/")[1] == namespace
        and selector.items() <= pod["metadata"]["labels"].items()
        and port["targetPort"] in (offered["name"], offered["containerPort"])
        for owner, pod in pods(items)
        for container in containers(pod)
        for offered in container.get("ports", [])
    )


def quotas(items: list[Object]) -> list[str]:
    """A namespace's quota has room for what is in it at its largest, and every namespace has one, and defaults."""
    found = []
    for namespace in of_kind(items, "Namespace"):
        name = namespace["metadata"]["name"]
        kinds = {item["kind"] for item in items if item["metadata"].get("namespace") == name}
        found += [f"{name}: no {kind}" for kind in ("ResourceQuota", "LimitRange") if kind not in kinds]
    for quota in of_kind(items, "ResourceQuota"):
        hard = quota["spec"]["hard"]
        used = _used(items, quota["metadata"]["namespace"])
        found += [
            f"{name_of(quota)}: {what} is {hard[what]}, {float(amount):g} are needed"
            for what, amount in sorted(used.items())
            if what in hard and amount > Fraction(parse_quantity(hard[what]))
        ]
    return found


def _used(items: list[Object], namespace: str) -> dict[str, Fraction]:
    used: dict[str, Fraction] = defaultdict(Fraction)
    most = {
        scaler["spec"]["scaleTargetRef"]["name"]: scaler["spec"]["maxReplicas"]
        for scaler in of_kind(items, "HorizontalPodAutoscaler")
    }
    for item in of_kind(items, "Deployment", "StatefulSet", "Job"):
        if item["metadata"]["namespace"] != namespace:
            continue
        spec = item["spec"]
        replicas = most.get(item["metadata"]["name"], spec.get("replicas", 1))
        used["pods"] += replicas
        template = spec["template"]["spec"]
        volumes = [
            volume["ephemeral"]["volumeClaimTemplate"] for volume in template["volumes"] if "ephemeral" in volume
        ]
        for claim in [*spec.get("volumeClaimTemplates", []), *volumes]:
            used["persistentvolumeclaims"] += replicas
            used["requests.storage"] += replicas * _amount(claim["spec"]["resources"]["requests"]["storage"])
        for part in ("requests", "limits"):
            for what in {what for container in template["containers"] for what in container["resources"][part]}:
                total = sum(_amount(container["resources"][part].get(what, 0)) for container in template["containers"])
                first = [_amount(item["resources"][part].get(what, 0)) for item in template.get("initContainers", [])]
                used[f"{part}.{what}"] += replicas * max([total, *first])
    return used


def _amount(text: Any) -> Fraction:
    return Fraction(Decimal(parse_quantity(text)))


def network(items: list[Object], clients: dict[str, list[str]]) -> list[str]:
    """Every own namespace denies all but what is named; every Service has clients, and they reach it, others do not.

    Args:
        items: the objects.
        clients: who uses a Service, by its name: pods by the value of app.kubernetes.io/name, "namespace NAME" for any
            pod of a namespace that is not ours, or "ranks" of a training job.
    """
    found = []
    policies = of_kind(items, "NetworkPolicy")
    for namespace in of_kind(items, "Namespace"):
        name = namespace["metadata"]["name"]
        if not any(_denies_all(policy) for policy in policies if policy["metadata"]["namespace"] == name):
            found.append(f"{name}: nothing denies by default")
    services = of_kind(items, "Service")
    everyone = sorted({client for some in clients.values() for client in some})
    for service in services:
        name = service["metadata"]["name"]
        if not clients.get(name):
            found.append(f"{name_of(service)}: who uses it is not said")
            continue
        for client in everyone:
            source = _pod_of(items, client)
            for port in service["spec"]["ports"]:
                reached = _reaches(items, source, service, port)
                if reached != (client in clients[name]):
                    found.append(f"{client} {'reaches' if reached else 'does not reach'} {name}")
        if not _reaches_dns(policies, service):
            found.append(f"{name}: its pods cannot ask for names")
    return found


def _denies_all(policy: Object) -> bool:
    spec = policy["spec"]
    return (
        spec["podSelector"] == {}
        and set(spec["policyTypes"]) == {"Ingress", "Egress"}
        and not spec.get("ingress")
        and not spec.get("egress")
    )


def _pod_of(items: list[Object], client: str) -> tuple[str, dict[str, str], bool]:
    """Namespace and labels of a client's pods, and whether the namespace is ours."""
    if client.startswith("namespace "):
        return client.removeprefix("namespace "), {}, False
    if client == "ranks":
        return "cloc-training", {"app.kubernetes.io/part-of": "cloc"}, True
    for owner, pod in pods(items):
        if pod["metadata"]["labels"].get("app.kubernetes.io/name") == client:
            return owner.split("/")[1], pod["metadata"]["labels"], True
    raise LookupError(client)


def _reaches(items: list[Object], source: tuple[str, dict[str, str], bool], service: Object, port: Object) -> bool:
    policies = of_kind(items, "NetworkPolicy")
    target = (service["metadata"]["namespace"], service["spec"]["selector"], True)
    number = port["port"]
    comes_in = any(_allows(policy, target, source, number, "ingress") for policy in policies)
    goes_out = not source[2] or any(_allows(policy, source, target, number, "egress") for policy in policies)
    return comes_in and goes_out


def _reaches_dns(policies: list[Object], service: Object) -> bool:
    source = (service["metadata"]["namespace"], service["spec"]["selector"], True)
    names = ("kube-system", {"k8s-app": "kube-dns"}, False)
    return any(_allows(policy, source, names, 53, "egress") for policy in policies)


def _allows(
    policy: Object, own: tuple[str, dict[str, str], bool], peer: tuple[str, dict[str, str], bool], port: int, way: str
) -> bool:
    """Whether a policy that is about `own` lets it speak with `peer`."""
    spec = policy["spec"]
    if policy["metadata"]["namespace"] != own[0] or not _selects(spec["podSelector"], own[1]):
        return False
    for rule in spec.get(way, []):
        ports = rule.get("ports", [])
        if ports and port not in [item["port"] for item in ports]:
            continue
        for item in rule["from" if way == "ingress" else "to"]:
            if "ipBlock" in item:
                continue
            namespace = item.get("namespaceSelector")
            is_there = (
                peer[0] == own[0]
                if namespace is None
                else _selects(namespace, {"kubernetes.io/metadata.name": peer[0]})
            )
            if is_there and _selects(item.get("podSelector", {}), peer[1]):
                return True
    return False


def _selects(selector: Object, labels: dict[str, str]) -> bool:
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        expression["operator"] == "In" and labels.get(expression["key"]) in expression["values"]
        for expression in selector.get("matchExpressions", [])
    )


def contract(
    items: list[Object], *, namespace: str, config_map: dict[str, list[str]], secret: dict[str, list[str]]
) -> list[str]:
    """What the pipeline's tasks name is in their namespace, with its keys.

    Args:
        items: the objects.
        namespace: of the tasks.
        config_map: keys, by the name of the ConfigMap.
        secret: keys, by the name of the Secret.
    """
    found = []
    for kind, wanted in (("ConfigMap", config_map), ("Secret", secret)):
        for name, keys in wanted.items():
            try:
                data = named(items, f"{kind}/{namespace}/{name}").get("data", {})
            except ValueError:
                found.append(f"there is no {kind} {namespace}/{name}")
                continue
            found += [f"{kind} {namespace}/{name} has no {key}" for key in keys if key not in data]
    return found
