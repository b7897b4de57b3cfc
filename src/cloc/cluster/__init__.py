"""Whether a Kubernetes cluster holds what cloc needs, and holds it right: `cloc doctor --cluster`.

for finding in examine(config):
    print(finding.check.line)

    site       the cluster, what is expected in it, and reading from it
    objects    interfaces, namespaces, queue, config map, secrets, accounts, policies
    rights     who may do what
    capacity   storage, nodes, quotas
    servers    MLflow, Kubeflow Pipelines, S3
"""

from collections.abc import Collection, Iterator

from cloc.cluster import capacity, objects, rights, servers, site
from cloc.config import Config
from cloc.errors import ConfigError
from cloc.training.doctor.registry import Act, Entry, Finding, Subject, run_check

__all__ = ["CHECKS", "examine"]

CHECKS: dict[str, Act] = {
    "API server": site.connect,
    "Volcano": objects.volcano,
    "Kubeflow": objects.kubeflow,
    "overlay settings": objects.settings,
    "namespaces": objects.namespaces,
    "pod security": objects.pod_security,
    "queue": objects.queue,
    "priority class": objects.priority_class,
    "config map": objects.config_map,
    "secrets": objects.secrets,
    "accounts": objects.accounts,
    "tasks' rights": rights.tasks,
    "own rights": rights.own,
    "network policies": objects.network_policies,
    "storage class": capacity.storage_class,
    "volume claims": capacity.volume_claims,
    "nodes": capacity.nodes,
    "quota": capacity.quota,
    "MLflow": servers.mlflow,
    "Kubeflow API": servers.kubeflow,
    "S3": servers.s3,
}
"""What is asked, by the name of its line, in this order."""


def examine(config: Config, *, skip: Collection[str] = ()) -> Iterator[Finding]:
    """Asks a cluster, one check after another, as the user of the kube config or the account of this pod.

    Args:
        config: all settings: where `train.scheduler` is kubernetes, names and requests are those of
            `train.kubernetes`, else the names that infra/k8s makes.
        skip: names of checks to leave out.

    Raises:
        ConfigError: there is no check of a name to skip.
    """
    if unknown := sorted(set(skip) - set(CHECKS)):
        raise ConfigError(f"--skip {unknown[0]!r} is no check; there are: {', '.join(CHECKS)}")
    subject = Subject(config)
    for name, act in CHECKS.items():
        if name not in skip:
            yield run_check(Entry(name, (), cheap=False, act=act), subject)
