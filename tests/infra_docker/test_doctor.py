"""`cloc doctor` as an image's build asks it, in an image that holds no torch."""

import subprocess
import sys
from pathlib import Path

import pytest

from cloc.config import Config
from cloc.training.doctor import Subject, software
from tests.infra_docker.dockerfile import DOCKERFILE, extras, parse

# Refuses what an image does not hold, as if it were not installed.
WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "huggingface_hub", "safetensors", "tokenizers", "peft"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from cloc.cli import main
main()
"""


def _doctor(role: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", WITHOUT, "doctor", "--role", role, "--preset", "demo"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("role", extras(parse(DOCKERFILE.read_text()), "validate"))
def test_doctor_needs_no_torch(role: str, tmp_path: Path) -> None:
    done = _doctor(role, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "nothing would fail" in done.stdout


@pytest.mark.parametrize("role", ["evaluate", "mllm"])
def test_doctor_knows_what_libraries_are_imported_as(role: str) -> None:
    assert {"sklearn", "peft"} & set(software.imports(Subject(Config(), role=role)).split(", "))
