"""Compiles the pipeline to the YAML that a Kubeflow server takes.

python -m pipelines.compile --out pipelines/cloc_pipeline.yaml [--image NAME]
"""

import argparse
from pathlib import Path

from kfp import compiler

from components import IMAGE
from pipelines.cloc_pipeline import cloc_pipeline

GOLDEN = Path(__file__).with_name("cloc_pipeline.yaml")


def compile_pipeline(out: str | Path, *, image: str = "") -> None:
    """Writes the compiled pipeline, the same bytes for the same source.

    Args:
        out: file, its name ending in .yaml.
        image: image of the tasks; empty leaves the name that the components carry.
    """
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(cloc_pipeline, package_path=str(path))
    if image:
        path.write_text(path.read_text().replace(f"image: {IMAGE}\n", f"image: {image}\n"))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Compile the pipeline.")
    parser.add_argument("--out", default=str(GOLDEN), help="file to write (%(default)s)")
    parser.add_argument("--image", default="", help=f"image of the tasks ({IMAGE})")
    given = parser.parse_args()
    compile_pipeline(given.out, image=given.image)
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
