"""`cloc playground`: a web page over checkpoints."""

import importlib.util

import click

from cloc.errors import ConfigError

_MOST_MODELS = 4
_NEEDED = ("torch", "matplotlib", "fastapi", "uvicorn", "faiss", "prometheus_client")


@click.command()
@click.option(
    "--model",
    "models",
    multiple=True,
    required=True,
    metavar="[NAME=]MODEL",
    help="Model folder, hub id, or models:/name@alias; repeat it to compare.",
)
@click.option("--data", default="", help="Data set or folder of images to pick from and to search.")
@click.option("--limit", type=click.IntRange(min=1), default=1000, show_default=True, help="Images of the data.")
@click.option("--port", type=click.IntRange(0, 65535), default=7860, show_default=True, help="0 takes any free one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to bind to.")
@click.option("--allow-host", "allowed", multiple=True, metavar="NAME", help="Name that this machine is reached by.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ...")
def playground(
    models: tuple[str, ...], data: str, limit: int, port: int, host: str, allowed: tuple[str, ...], device: str
) -> None:
    """Try models in the browser: name regions, find phrases, search a folder.

    Two models stand side by side; a public CLIP is read by crops, RoIAlign and masked attention. The page needs no
    network. The index of --data is made behind the page, once, and kept in CLOC_CACHE or ~/.cache/cloc. The same as
    JSON: /docs. For operators: /health, /metrics.

    \b
    cloc playground --model runs/demo/model
    cloc playground --model CLOC=runs/demo/model --model CLIP=openai/clip-vit-base-patch16 --data photos/
    """
    named = _named(models)
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise ConfigError(f"{missing[0]} is not installed; install cloc[playground]")
    from cloc.playground.server import serve
    from cloc.playground.settings import Settings

    serve(Settings(named, data=data, limit=limit, host=host, port=port, allowed_hosts=allowed, device=device))


def _named(models: tuple[str, ...]) -> dict[str, str]:
    """Models by name; one without is called as its folder is."""
    if len(models) > _MOST_MODELS:
        raise ConfigError(f"--model: {len(models)} models; at most {_MOST_MODELS} stand side by side")
    found: dict[str, str] = {}
    for given in models:
        name, equals, place = given.partition("=")
        if not equals:
            name, place = given.rstrip("/").rpartition("/")[2], given
        if not name.strip() or not place.strip():
            raise ConfigError(f"--model {given!r}: give NAME=MODEL, or a model")
        if name in found:
            raise ConfigError(f"--model: two models are called {name!r}; name them as NAME=MODEL")
        found[name] = place
    return found
