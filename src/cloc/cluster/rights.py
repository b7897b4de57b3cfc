"""Who may do what: what TorchX needs to start a training, follow it and cancel it; and what nobody needs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cloc.cluster.site import SERVICES, Site, Tally, in_pod, reached, read
from cloc.errors import ConfigError
from cloc.training.doctor.registry import Subject, Warn


@dataclass(frozen=True)
class Right:
    """An act, as Kubernetes names it; "*" is every one, an empty namespace all of them."""

    verb: str
    group: str
    resource: str

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}{f'.{self.group}' if self.group else ''}"


# Those of the Role cloc-launcher.
LAUNCH = (
    Right("create", "batch.volcano.sh", "jobs"),
    Right("get", "batch.volcano.sh", "jobs"),
    Right("get", "batch.volcano.sh", "jobs/status"),
    Right("update", "batch.volcano.sh", "jobs/status"),
    Right("get", "", "pods"),
    Right("list", "", "pods"),
    Right("get", "", "pods/log"),
)
_ALL = Right("*", "*", "*")
_SECRETS = Right("get", "", "secrets")
_EXEC = Right("create", "", "pods/exec")


def tasks(subject: Subject) -> str:
    """The tasks' account may start, follow and cancel a training; neither it nor the ranks' may do far more."""
    site, tally = reached(subject), Tally()
    place, training = site.tasks, site.training.namespace
    name = site.setting("tasks-service-account")
    missing = [right for right in LAUNCH if not _account_may(site, place, name, right, training)]
    if missing:
        tally.misses.append(
            f"{place}/{name} may not {', '.join(map(str, missing))} in {training}: apply the overlay anew, whose "
            "RoleBinding cloc-launcher takes the account from settings.env"
        )
    ranks = site.training.service_account or "default"
    for owner, account in ((place, name), (training, ranks)):
        tally.doubts += _excess(site, owner, account)
    return tally.verdict([f"{place}/{name} may launch in {training}; nothing beyond its needs is seen"])


def _excess(site: Site, owner: str, account: str) -> list[str]:
    """What an account may do that it has no use for."""
    if _account_may(site, owner, account, _ALL, ""):
        return [f"{owner}/{account} may do everything everywhere, and so may each run's code: unbind cluster-admin"]
    much = [
        f"{right} in {place}"
        for right, place in ((_SECRETS, SERVICES), (_EXEC, SERVICES), (_SECRETS, site.training.namespace))
        if _account_may(site, owner, account, right, place)
    ]
    return [f"{owner}/{account} may {', '.join(much)}, of which it has no use: unbind the role that gives it"] * bool(
        much
    )


def own(subject: Subject) -> str:
    """So may who asks, for a training that is started from here."""
    site = reached(subject)
    training = site.training.namespace
    site.need(training)
    missing = [right for right in LAUNCH if not _may(site, right, training)]
    if not missing:
        return f"this user may launch in {training}"
    told = f"this user may not {', '.join(map(str, missing))} in {training}"
    if in_pod():
        raise ConfigError(f"{told}: bind the Role cloc-launcher to the account of this pod")
    raise Warn(f"{told}: `cloc pretrain` from here is refused, while tasks of the pipeline have rights of their own")


def _may(site: Site, right: Right, namespace: str) -> bool:
    from kubernetes import client

    spec = client.V1SelfSubjectAccessReviewSpec(resource_attributes=_attributes(right, namespace))
    api = client.AuthorizationV1Api(site.api)
    return _allowed("own rights", api.create_self_subject_access_review, client.V1SelfSubjectAccessReview(spec=spec))


def _account_may(site: Site, owner: str, account: str, right: Right, namespace: str) -> bool:
    from kubernetes import client

    spec = client.V1SubjectAccessReviewSpec(
        user=f"system:serviceaccount:{owner}:{account}",
        groups=["system:serviceaccounts", f"system:serviceaccounts:{owner}", "system:authenticated"],
        resource_attributes=_attributes(right, namespace),
    )
    api = client.AuthorizationV1Api(site.api)
    return _allowed(
        f"rights of {owner}/{account}", api.create_subject_access_review, client.V1SubjectAccessReview(spec=spec)
    )


def _allowed(what: str, method: Callable[..., Any], review: Any) -> bool:
    return bool(read(what, method, review).status.allowed)


def _attributes(right: Right, namespace: str) -> Any:
    from kubernetes.client import V1ResourceAttributes

    resource, _, subresource = right.resource.partition("/")
    return V1ResourceAttributes(
        verb=right.verb,
        group=right.group,
        resource=resource,
        subresource=subresource or None,
        namespace=namespace or None,
    )
