"""The Dockerfile keeps to its policies, and a Dockerfile that does not is found out."""

import re
import tomllib

import pytest

from cloc.training.doctor import ROLES
from components import IMAGE
from tests.infra_docker import policies
from tests.infra_docker.dockerfile import DOCKER, DOCKERFILE, ROOT, TARGETS, extras, parse

TEXT = DOCKERFILE.read_text()
STAGES = parse(TEXT)
IGNORE = (ROOT / ".dockerignore").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def _roles(target: str) -> list[str]:
    """Roles of doctor whose libraries an image holds; the extra torch is part of others."""
    return [extra for extra in extras(STAGES, target) if extra in ROLES]


def test_bases_are_pinned() -> None:
    assert not policies.pinned(STAGES)


@pytest.mark.parametrize("target", TARGETS)
def test_target_keeps_to_the_policies(target: str) -> None:
    assert not policies.user(STAGES, target)
    assert not policies.checked(STAGES, target, _roles(target))
    assert not policies.labels(STAGES, target)
    assert not policies.lean(STAGES, target)


def test_copies_and_stages() -> None:
    assert not policies.copies(STAGES, ROOT, IGNORE)
    assert not policies.used(STAGES, TARGETS)


def test_secrets_and_data_are_not_sent_to_the_build() -> None:
    assert IGNORE.splitlines()[1] == "*"
    allowed = {line[1:] for line in IGNORE.splitlines() if line.startswith("!")}
    assert allowed == {
        *(
            "LICENSE",
            "README.md",
            "components",
            "infra/docker",
            "pipelines",
            "pyproject.toml",
            "requirements.lock",
            "src",
        )
    }


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("@sha256:", "@sha1:", "no registry, version or digest"),
        ("python:3.11.15-slim-bookworm@", "python:latest@", "no registry, version or digest"),
        ("docker.io/library/python", "python", "no registry, version or digest"),
    ],
)
def test_loose_base_is_found(old: str, new: str, line: str) -> None:
    assert line in policies.pinned(parse(TEXT.replace(old, new)))[0]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("USER 10001:0\n", ""),
        ("USER 10001:0", "USER root"),
        ("USER 10001:0", "USER cloc"),
        ("USER 10001:0\n", "USER 10001:0\nUSER 0\n"),
        ("USER 10001:0\n", "USER 10001:0\nRUN touch /tmp/file\n"),
    ],
)
@pytest.mark.parametrize("target", TARGETS)
def test_root_is_found(target: str, old: str, new: str) -> None:
    assert policies.user(parse(TEXT.replace(old, new)), target)


def test_what_is_not_checked_is_found() -> None:
    without = parse(TEXT.replace("/check ingest pipeline train evaluate", "/check ingest pipeline train"))
    assert policies.checked(without, "train", _roles("train")) == ["train: no check of evaluate"]


@pytest.mark.parametrize("label", ["title", "version", "revision", "source", "licenses", "base.name"])
def test_missing_label_is_found(label: str) -> None:
    assert policies.labels(parse(TEXT.replace(f".image.{label}=", ".image.other=")), "train") == [
        f"train: no label {label}"
    ]


@pytest.mark.parametrize(
    ("step", "line"),
    [
        ("RUN apt-get update && apt-get install -y libgomp1", "leaves lists of apt"),
        ("RUN apt-get update && apt-get install -y gcc && rm -rf /var/lib/apt/lists/*", "build tools"),
        ("RUN pip install numpy", "leaves pip's cache"),
    ],
)
def test_fat_layer_is_found(step: str, line: str) -> None:
    fat = parse(TEXT.replace("FROM base AS common\n", f"FROM base AS common\n{step}\n"))
    for target in TARGETS:
        (found,) = policies.lean(fat, target)
        assert found.endswith(line)


def test_wrong_copies_and_idle_stages_are_found() -> None:
    gone = parse(TEXT.replace("COPY src src", "COPY sources src"))
    assert policies.copies(gone, ROOT, IGNORE) == ["code: sources is not there", "code: sources is ignored"]
    early = parse(TEXT.replace("--from=code", "--from=label"))
    assert "train: copies from label, which is no earlier stage" in policies.copies(early, ROOT, IGNORE)
    assert policies.used(parse(f"{TEXT}\nFROM base AS idle\n"), TARGETS) == ["idle is part of no image"]


def test_image_is_named_as_the_components_say() -> None:
    assert f"cloc-python:{PROJECT['project']['version']}" == IMAGE


def test_targets_are_those_that_are_built() -> None:
    (line,) = re.findall(r"^TARGETS=\((.+)\)$", (DOCKER / "build").read_text(), re.MULTILINE)
    assert tuple(line.split()) == TARGETS
    readme = (DOCKER / "README.md").read_text()
    assert [target for target in TARGETS if f"`{target}`" not in readme] == []


def test_tools_are_pinned() -> None:
    lines = [line for line in (DOCKER / "tools.lock").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9_.-]+==[\w.]+", line) for line in lines)
    assert set(PROJECT["build-system"]["requires"]) <= set(lines)
