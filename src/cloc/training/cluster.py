"""Which Kubernetes cluster is meant, for those that start jobs on it and those that look at it before."""

import os

from kubernetes import client
from kubernetes.config import ConfigException, load_incluster_config, load_kube_config

from cloc.errors import ConfigError


def cluster_configuration() -> client.Configuration:
    """How to reach the cluster that KUBECONFIG names, else the one that this process runs in, else kubectl's.

    Raises:
        ConfigError: there is none.
    """
    configuration = client.Configuration()
    try:
        if "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ:
            load_incluster_config(client_configuration=configuration)
        else:
            load_kube_config(config_file=os.environ.get("KUBECONFIG"), client_configuration=configuration)
    except (ConfigException, OSError) as error:
        raise ConfigError(
            f"there is no cluster ({' '.join(str(error).split())}): run this in "
            "a pod, set KUBECONFIG, or log in to the cluster"
        ) from None
    return configuration
