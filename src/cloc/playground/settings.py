"""What a playground is made of. Nothing heavy is imported here."""

from collections.abc import Mapping
from dataclasses import dataclass

BATCH = 32  # items a call


@dataclass(frozen=True)
class Settings:
    """A playground.

    Attributes:
        models: row name -> folder, hub id or registered model.
        data: data set or folder of images to pick from and to search; "" for none.
        limit: images of it that are taken.
        host, port: the address; port 0 takes any that is free.
        allowed_hosts: names that this machine is called by, where it is not bound to this machine alone.
        device: see `cloc.evaluation.models.load_models`.
        cache: as `evaluation.cache`: where the index is kept.
        batch: items that a model is given at once; 1 answers one at a time.
    """

    models: Mapping[str, str]
    data: str = ""
    limit: int = 1000
    host: str = "127.0.0.1"
    port: int = 7860
    allowed_hosts: tuple[str, ...] = ()
    device: str = "auto"
    cache: str = ""
    batch: int = BATCH
