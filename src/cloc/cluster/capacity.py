"""Whether there is room: storage, nodes, quotas."""

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import yaml

from cloc.cluster.site import SERVICES, MissingError, Tally, reached, read
from cloc.config.schema import TrainConfig
from cloc.errors import ConfigError
from cloc.training.doctor.registry import Subject, Warn

_DEFAULT = "storageclass.kubernetes.io/is-default-class"


@dataclass(frozen=True)
class Asked:
    """What the pods of a training ask for.

    Attributes:
        pods: how many.
        each: requests of one, by resource.
        limits: likewise.
        selector: labels of the nodes.
        tolerations: as in a pod.
    """

    pods: int
    each: dict[str, Decimal]
    limits: dict[str, Decimal]
    selector: dict[str, str]
    tolerations: list[dict[str, str]]

    def __str__(self) -> str:
        each = ", ".join(f"{_amount(amount, name)} {name}" for name, amount in self.each.items())
        return f"{_count(self.pods, 'pod')} of {each}"


def asked(train: TrainConfig) -> Asked | None:
    """What the training's job asks for, as TorchX makes it; None where training is no job of its own.

    Raises:
        ConfigError: its settings cannot be read.
        Warn: TorchX is not installed.
    """
    if train.scheduler != "kubernetes":
        return None
    try:
        from cloc.training.launch import request_text, training_app
    except ModuleNotFoundError as error:
        raise Warn(f"what the job asks for is not known without {error.name}: pip install 'cloc[train]'") from None
    app = training_app("s3://doctor", train, module="cloc.training.trainer", environment={})
    (spec, *others) = [task["template"]["spec"] for task in yaml.safe_load(request_text(app, train))["spec"]["tasks"]]
    resources = spec["containers"][0]["resources"]
    return Asked(
        pods=1 + len(others),
        each=_quantities(resources["requests"]),
        limits=_quantities(resources["limits"]),
        selector=spec.get("nodeSelector") or {},
        tolerations=spec.get("tolerations") or [],
    )


def storage_class(subject: Subject) -> str:
    """Claims that name no class get storage."""
    site = reached(subject)
    from kubernetes.client import StorageV1Api

    found = read("storage classes", StorageV1Api(site.api).list_storage_class).items
    names = [item.metadata.name for item in found]
    if not names:
        raise ConfigError("the cluster has no storage class, so that claims wait for ever: install a provisioner")
    default = [item.metadata.name for item in found if (item.metadata.annotations or {}).get(_DEFAULT) == "true"]
    if not default:
        raise Warn(
            f"none of {', '.join(names)} is the default: claims that name none wait for ever; annotate one with "
            f"{_DEFAULT}=true"
        )
    return ", ".join(default)


def volume_claims(subject: Subject) -> str:
    """Volumes of the services, and those that the training names, are there."""
    site, tally = reached(subject), Tally()
    from kubernetes.client import CoreV1Api

    site.need(SERVICES, site.training.namespace)
    api, claims = CoreV1Api(site.api), []
    if answer := tally.read(f"volume claims of {SERVICES}", api.list_namespaced_persistent_volume_claim, SERVICES):
        claims += answer.items
        if not claims:
            tally.doubts.append(f"{SERVICES} has no volume claims: what MLflow is told is lost with its database's pod")
    place = site.training.namespace
    for item in site.training.volume_claims:
        name = item.partition(":")[0]
        fix = "create it, or correct train.kubernetes.volume_claims"
        method = api.read_namespaced_persistent_volume_claim
        if one := tally.read(f"volume claim {place}/{name}", method, name, place, fix=fix):
            claims.append(one)
    for claim in claims:
        where, phase = f"{claim.metadata.namespace}/{claim.metadata.name}", claim.status.phase
        if phase != "Bound":
            tally.misses.append(
                f"{where} is {phase}: kubectl describe persistentvolumeclaim -n {where.replace('/', ' ')} says why"
            )
    return tally.verdict(f"{claim.metadata.namespace}/{claim.metadata.name}" for claim in claims)


def nodes(subject: Subject) -> str:
    """Nodes take the pods of the training, with their GPUs."""
    site = reached(subject)
    from kubernetes.client import CoreV1Api

    found = read("nodes", CoreV1Api(site.api).list_node).items
    gpu, train = site.training.gpu_resource, subject.config.train
    there = {node.metadata.name: _quantities(node.status.allocatable) for node in found}
    gpus = sum(amounts.get(gpu, Decimal(0)) for amounts in there.values())
    summary = f"{_count(len(found), 'node')}, {gpus} {gpu}"
    wanted = asked(train)
    if wanted is None:
        if not gpus and train.device != "cpu":
            raise Warn(f"{summary}: stages run on CPUs; install the device plugin that offers {gpu}")
        return summary
    refusals = {node.metadata.name: _refusal(node, wanted) for node in found}
    room = {name: _room(there[name], wanted.each) for name, refusal in refusals.items() if not refusal}
    if sum(room.values()) < wanted.pods:
        reasons = [refusal or f"room for {room[name]}" for name, refusal in refusals.items()]
        told = "; ".join(f"{_count(count, 'node')}: {reason}" for reason, count in Counter(reasons).most_common(5))
        raise ConfigError(
            f"{wanted} have room for {sum(room.values())} ({told or 'there are no nodes'}): add nodes, or correct "
            "train.nodes, train.processes and train.kubernetes"
        )
    return f"{summary}; {wanted}, room for {sum(room.values())} while nothing else runs"


def _refusal(node: Any, wanted: Asked) -> str:
    """Why a node takes none of the pods; "" where it does."""
    ready = {item.type: item.status for item in node.status.conditions or ()}.get("Ready")
    if ready != "True":
        return "not ready"
    if node.spec.unschedulable:
        return "cordoned"
    labels = node.metadata.labels or {}
    for name, value in wanted.selector.items():
        if labels.get(name) != value:
            return f"without the label {name}={value}"
    for taint in node.spec.taints or ():
        if taint.effect != "PreferNoSchedule" and not any(_tolerates(item, taint) for item in wanted.tolerations):
            return f"tainted {taint.key}{f'={taint.value}' if taint.value else ''}:{taint.effect}"
    return ""


def _tolerates(toleration: dict[str, str], taint: Any) -> bool:
    return (
        toleration["key"] == taint.key
        and toleration.get("effect") in (None, taint.effect)
        and (toleration.get("operator") == "Exists" or toleration.get("value") == taint.value)
    )


def _room(there: dict[str, Decimal], each: dict[str, Decimal]) -> int:
    return min(int(there.get(name, Decimal(0)) // amount) for name, amount in each.items() if amount)


def quota(subject: Subject) -> str:
    """The quotas of the training's namespace, and its queue, leave room for it."""
    site, tally = reached(subject), Tally()
    from kubernetes.client import CoreV1Api, CustomObjectsApi

    place, name = site.training.namespace, site.training.queue
    site.need(place)
    wanted = asked(subject.config.train)
    found = read(f"quotas of {place}", CoreV1Api(site.api).list_namespaced_resource_quota, place).items
    if not found:
        tally.doubts.append(f"{place} has no quota, so that a run may take the whole cluster: apply the overlay anew")
    needs = _needs(wanted) if wanted else {}
    for item in found:
        hard, used = _quantities(item.status.hard), _quantities(item.status.used)
        for key, need in needs.items():
            if key in hard:
                where = f"quota {place}/{item.metadata.name}: {key}"
                _compare(tally, where, need, hard=hard[key], used=used.get(key, Decimal(0)))
    if wanted:
        method = CustomObjectsApi(site.api).get_cluster_custom_object
        queue: dict[str, Any] = {}
        with suppress(MissingError, Warn):  # of which the check of it tells
            queue = read(f"queue {name!r}", method, "scheduling.volcano.sh", "v1beta1", "queues", name)
        for key, amount in _quantities(queue.get("spec", {}).get("capability")).items():
            need = wanted.each.get(key, Decimal(0)) * wanted.pods
            _compare(tally, f"queue {name}: {key}", need, hard=amount, used=Decimal(0))
    names = [f"{place}/{item.metadata.name}" for item in found]
    return tally.verdict([*names, *([f"with room for {wanted}"] if wanted else [])])


def _needs(wanted: Asked) -> dict[str, Decimal]:
    """What a job takes from a quota, by the quota's names."""
    found = {
        "pods": Decimal(wanted.pods),
        "count/pods": Decimal(wanted.pods),
        "count/jobs.batch.volcano.sh": Decimal(1),
    }
    found |= {name: amount * wanted.pods for name, amount in wanted.each.items() if name in ("cpu", "memory")}
    found |= {f"requests.{name}": amount * wanted.pods for name, amount in wanted.each.items()}
    return found | {f"limits.{name}": amount * wanted.pods for name, amount in wanted.limits.items()}


def _compare(tally: Tally, where: str, need: Decimal, *, hard: Decimal, used: Decimal) -> None:
    told = f"{where}: {_amount(need, where)} asked for, {_amount(hard, where)} allowed"
    if need > hard:
        tally.misses.append(f"{told}, so that the job waits for ever: raise it, or ask for less")
    elif need > hard - used:
        tally.doubts.append(f"{told}, {_amount(used, where)} in use: the job waits for others to end")


def _quantities(amounts: dict[str, Any] | None) -> dict[str, Decimal]:
    from kubernetes.utils.quantity import parse_quantity

    return {name: parse_quantity(amount) for name, amount in (amounts or {}).items()}


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _amount(amount: Decimal, name: str) -> str:
    """For people: memory and storage in GiB."""
    if "memory" in name or "storage" in name:
        return f"{amount / 2**30:,.1f} GiB".replace(".0 ", " ")
    return f"{amount.normalize():f}"
