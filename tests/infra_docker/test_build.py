"""infra/docker/build with the programs that build images replaced by fakes that write down how they are called."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from components import IMAGE
from tests.infra_docker.dockerfile import DOCKER, ROOT, TARGETS

# What the script takes from the system.
SYSTEM = ("bash", "dirname", "env", "git", "sed")
FAKE = """#!/bin/bash
[[ "{name} $1" == "docker info" ]] && exit $DAEMON
printf '%s\\n' "{name} $*" >> "$LOG"
exit ${{FAILS:-0}}
"""


@dataclass
class Machine:
    """A machine with a clone of the project, and with some programs.

    Attributes:
        clone: the project's folder.
        programs: folder on PATH.
    """

    clone: Path
    programs: Path

    def git(self, *arguments: str) -> str:
        """Runs git in the clone."""
        done = subprocess.run(["git", *arguments], cwd=self.clone, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def has(self, *names: str) -> None:
        """Puts fakes on PATH."""
        for name in names:
            path = self.programs / name
            path.write_text(FAKE.format(name=name))
            path.chmod(0o755)

    def build(self, *targets: str, **variables: str) -> tuple["subprocess.CompletedProcess[str]", list[str]]:
        """Runs the script. Returns how it ended, and the calls."""
        log = self.clone.parent / "log"
        log.write_text("")
        done = subprocess.run(
            [shutil.which("bash") or "bash", str(self.clone / "infra" / "docker" / "build"), *targets],
            env={"PATH": str(self.programs), "LOG": str(log), "DAEMON": "0", **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        return done, log.read_text().splitlines()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    clone, programs = tmp_path / "cloc", tmp_path / "bin"
    shutil.copytree(DOCKER, clone / "infra" / "docker", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", clone)
    programs.mkdir()
    for name in SYSTEM:
        (programs / name).symlink_to(shutil.which(name) or name)
    found = Machine(clone, programs)
    found.git("init", "--quiet")
    found.git("add", ".")
    found.git("-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "--quiet", "-m", "x")
    return found


def _tags(calls: list[str]) -> list[str]:
    return [call.split(" --tag ")[1].split()[0] for call in calls]


def test_all_targets_are_built_and_named(machine: Machine) -> None:
    machine.has("docker")
    done, calls = machine.build()
    assert done.returncode == 0, done.stderr
    version = IMAGE.partition(":")[2]
    assert _tags(calls) == [*(f"cloc-python-{target}:{version}" for target in TARGETS[:-1]), IMAGE]
    assert [call.split(" --target ")[1].split()[0] for call in calls] == list(TARGETS)
    assert done.stdout.count("built ") == len(TARGETS)
    for call in calls:
        assert f"--build-arg VERSION={version} " in call
        assert f"--build-arg REVISION={machine.git('rev-parse', 'HEAD')} " in call
        assert "--build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu " in call
        assert "BASE=" not in call
        assert call.endswith("--file infra/docker/Dockerfile .")


def test_what_is_built_can_be_set(machine: Machine) -> None:
    machine.has("docker")
    done, calls = machine.build(
        "train", TORCH="cuda", REGISTRY="registry.example/team/", BASE="base@sha256:0", BUILD_FLAGS="--pull --quiet"
    )
    assert done.returncode == 0, done.stderr
    assert _tags(calls) == [f"registry.example/team/cloc-python-train:{IMAGE.partition(':')[2]}-cuda"]
    assert "--build-arg TORCH_INDEX=https://pypi.org/simple " in calls[0]
    assert "--build-arg BASE=base@sha256:0 --pull --quiet --target" in calls[0]
    _, calls = machine.build("train", TORCH_INDEX="https://index.example/cu130")
    assert "--build-arg TORCH_INDEX=https://index.example/cu130 " in calls[0]


def test_image_tells_of_changes(machine: Machine) -> None:
    machine.has("docker")
    (machine.clone / "infra" / "docker" / "Dockerfile").write_text("FROM scratch AS train\n")
    _, calls = machine.build("train")
    assert f"REVISION={machine.git('rev-parse', 'HEAD')}-dirty " in calls[0]


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("https://user:secret@git.example/cloc.git", "https://git.example/cloc.git"),
        ("https://git.example:8443/cloc.git", "https://git.example:8443/cloc.git"),
        ("git@git.example:team/cloc.git", "git@git.example:team/cloc.git"),
        ("/home/someone/cloc", ""),
        ("../cloc", ""),
    ],
)
def test_image_tells_where_its_source_is(machine: Machine, address: str, told: str) -> None:
    machine.has("docker")
    machine.git("remote", "add", "origin", address)
    _, calls = machine.build("train")
    assert f"--build-arg SOURCE={told} " in calls[0]


@pytest.mark.parametrize(
    ("programs", "daemon", "taken"),
    [
        (("docker", "podman", "buildah"), "0", "docker"),
        (("docker", "podman", "buildah"), "1", "podman"),
        (("docker", "buildah"), "1", "buildah"),
        (("podman",), "0", "podman"),
    ],
)
def test_first_program_that_works_is_taken(
    machine: Machine, programs: tuple[str, ...], daemon: str, taken: str
) -> None:
    machine.has(*programs)
    done, calls = machine.build("validate", DAEMON=daemon)
    assert done.returncode == 0, done.stderr
    assert calls[0].split()[0] == taken
    assert ("--layers=false" in calls[0]) == (taken != "docker")


@pytest.mark.parametrize("programs", [(), ("docker",)])
def test_nothing_to_build_with(machine: Machine, programs: tuple[str, ...]) -> None:
    machine.has(*programs)
    done, calls = machine.build(DAEMON="1")
    assert done.returncode == 2
    assert done.stderr == "error: nothing here builds images: start docker, or install podman or buildah\n"
    assert not calls


def test_program_can_be_named(machine: Machine) -> None:
    machine.has("docker", "buildah")
    _, calls = machine.build("validate", ENGINE="buildah")
    assert calls[0].startswith("buildah build ")


@pytest.mark.parametrize(
    ("targets", "variables", "line"),
    [
        (("trian",), {}, "error: there is no target 'trian'; there are: validate train label pipeline\n"),
        ((), {"TORCH": "rocm"}, "error: TORCH=rocm is neither cpu nor cuda\n"),
    ],
)
def test_wrong_words_are_named(
    machine: Machine, targets: tuple[str, ...], variables: dict[str, str], line: str
) -> None:
    machine.has("docker")
    done, calls = machine.build(*targets, **variables)
    assert (done.returncode, done.stderr, calls) == (2, line, [])


def test_needs_a_checkout(machine: Machine) -> None:
    machine.has("docker")
    shutil.rmtree(machine.clone / ".git")
    done, _ = machine.build()
    assert done.returncode == 2
    assert "run it in a git checkout of cloc" in done.stderr


def test_failed_build_ends_it(machine: Machine) -> None:
    machine.has("docker")
    done, calls = machine.build(FAILS="9")
    assert done.returncode == 9
    assert len(calls) == 1
    assert "built" not in done.stdout


def test_make_builds_them() -> None:
    done = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "images"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    )
    assert done.stdout.strip() == "infra/docker/build"
