"""The manifests of infra/k8s as objects: rendered by kustomize, or as committed in `golden/`."""

import copy
import functools
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "infra" / "k8s"
GOLDEN = Path(__file__).with_name("golden")
OVERLAYS = ("cloud", "local")

Object = dict[str, Any]


def render(overlay: str, folder: Path, change: Callable[[Path, Object], None] | None = None) -> list[Object]:
    """Renders an overlay with the values of its `*.env.example` files.

    Args:
        overlay: name of a folder in infra/k8s/overlays.
        folder: empty; takes a copy of the manifests.
        change: is given the copy of the overlay, and its kustomization to change.
    """
    tree = Path(shutil.copytree(K8S, folder / "k8s"))
    for example in tree.rglob("*.env.example"):
        shutil.copy(example, example.with_suffix(""))
    if change:
        kustomization = tree / "overlays" / overlay / "kustomization.yaml"
        content = yaml.safe_load(kustomization.read_text())
        change(kustomization.parent, content)
        kustomization.write_text(yaml.safe_dump(content))
    done = subprocess.run(
        ["kubectl", "kustomize", str(tree / "overlays" / overlay)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return objects(done.stdout)


def objects(text: str) -> list[Object]:
    """The objects of a YAML stream."""
    return [item for item in yaml.safe_load_all(text) if item]


def golden(overlay: str) -> list[Object]:
    """An overlay as it is committed; the caller may change what it gets."""
    return copy.deepcopy(_read((GOLDEN / f"{overlay}.yaml").read_text()))


@functools.cache
def _read(text: str) -> list[Object]:
    return objects(text)


def name_of(item: Object) -> str:
    """Kind, namespace and name."""
    metadata = item["metadata"]
    return "/".join(filter(None, (item["kind"], metadata.get("namespace"), metadata["name"])))


def of_kind(items: list[Object], *kinds: str) -> list[Object]:
    """The objects of these kinds."""
    return [item for item in items if item["kind"] in kinds]


def named(items: list[Object], name: str) -> Object:
    """The one object with this kind, namespace and name, as `name_of` writes them."""
    (found,) = [item for item in items if name_of(item) == name]
    return found


def pods(items: list[Object]) -> list[tuple[str, Object]]:
    """Every pod template, by the name of what makes it: labels and spec."""
    found = []
    for item in of_kind(items, "Deployment", "StatefulSet", "Job"):
        if item["apiVersion"] == "batch.volcano.sh/v1alpha1":
            tasks = item["spec"]["tasks"]
            found += [(f"{name_of(item)}/{task['name']}", task["template"]) for task in tasks]
        else:
            found.append((name_of(item), item["spec"]["template"]))
    return found


def containers(pod: Object) -> list[Object]:
    """The containers of a pod template, those that run first included."""
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
