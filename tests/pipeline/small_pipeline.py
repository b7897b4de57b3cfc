"""A pipeline with all that ours is made of: retries, a gate, a loop, a condition, an exit handler."""

from pathlib import Path

from kfp import compiler, dsl

IMAGE = "cloc-python:tests"


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def ingest(what: str) -> str:
    """Gives back what it is given."""
    return what


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def captioning(what: str) -> str:
    """Gives back what it is given."""
    return what


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def validation(what: str) -> str:
    """Gives back what it is given."""
    return what


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def pretraining(what: str) -> str:
    """Gives back what it is given."""
    return what


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def outcome(what: str) -> str:
    """Gives back what it is given."""
    return what


@dsl.pipeline(name="small")
def small(data: str = "", steps: int = 4) -> None:
    """A small pipeline.

    Args:
        data: Images.
        steps: Steps.
    """
    with dsl.ExitHandler(outcome(what="end").set_display_name("Outcome")):
        images = ingest(what=data).set_display_name("Data").set_retry(2)
        with dsl.ParallelFor(["0-9", "10-19"], parallelism=2) as part:
            captioning(what=part).after(images).set_display_name("Captioning").set_retry(2)
        gate = validation(what=images.output).set_display_name("Validation (gate)")
        with dsl.If(gate.output == "train"):
            pretraining(what="train").set_display_name("Pre-training")


def compile_small(folder: Path, *, image: str = IMAGE) -> Path:
    """The compiled pipeline in a folder."""
    path = folder / "small.yaml"
    compiler.Compiler().compile(small, package_path=str(path))
    path.write_text(path.read_text().replace(f"image: {IMAGE}\n", f"image: {image}\n"))
    return path
