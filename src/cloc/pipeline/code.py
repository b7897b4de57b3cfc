"""What source each stage runs, as files that DVC can depend on: a stage runs again when its own code changed.

    python -m cloc.pipeline.code --out work/code

Writes `<out>/<stage>` for every stage, and for what else dvc.yaml runs: a line a source file, its hash and its name. So
`git diff --no-index` of two such files tells why a stage ran. Comments and layout of Python files do not count.
"""

import argparse
import shutil
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path

import cloc
from cloc.pipeline.sources import module_sources, source_content
from cloc.stages import STAGES

_ROOT = Path(cloc.__file__).parent
MODULES: Mapping[str, str] = {
    **{name: spec.module for name, spec in STAGES.items()},
    "figures": "cloc.pipeline.figures",
    "answers": "cloc.mllm.report",
}


def write_sources(out: Path) -> None:
    """Writes a file a stage; what other files lay there is gone."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for name, module in MODULES.items():
        lines = [f"{_digest(path)}  {path.relative_to(_ROOT)}\n" for path in module_sources(module)]
        (out / name).write_text("".join(lines))


@cache
def _digest(path: Path) -> str:
    return sha256(source_content(path)).hexdigest()[:16]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="What source each stage runs, for DVC.")
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    write_sources(parser.parse_args().out)


if __name__ == "__main__":
    main()
