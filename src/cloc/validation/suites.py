"""All checks of a validation: a suite a table and one of the whole set, with what the settings say of their levels."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from cloc.config import Config
from cloc.config.schema import ValidationConfig
from cloc.errors import ConfigError
from cloc.validation.checks import RowCheck, SetCheck
from cloc.validation.results import Level
from cloc.validation.row_checks import caption_checks, image_checks, region_checks
from cloc.validation.set_checks import set_checks

Check = TypeVar("Check", RowCheck, SetCheck)


@dataclass(frozen=True)
class Suites:
    """The checks, by what they judge."""

    images: tuple[RowCheck, ...]
    captions: tuple[RowCheck, ...]
    regions: tuple[RowCheck, ...]
    data_set: tuple[SetCheck, ...]

    @property
    def rows(self) -> tuple[RowCheck, ...]:
        """Those of rows."""
        return (*self.images, *self.captions, *self.regions)

    @property
    def all(self) -> tuple[RowCheck | SetCheck, ...]:
        """All of them."""
        return (*self.data_set, *self.rows)


def suites(config: Config) -> Suites:
    """The suites with the thresholds and levels of the settings.

    Raises:
        ConfigError: `validation.warn` or `validation.fail` names a check that there is not.
    """
    found = Suites(
        images=image_checks(config),
        captions=caption_checks(config),
        regions=region_checks(config),
        data_set=set_checks(config),
    )
    ids = [check.id for check in found.all]
    for setting, names in (("warn", config.validation.warn), ("fail", config.validation.fail)):
        for name in names:
            if not any(_matches(name, id) for id in ids):
                raise ConfigError(f"validation.{setting}: there is no check {name!r}; near it are: {_near(name, ids)}")
    return Suites(
        images=_levelled(found.images, config.validation),
        captions=_levelled(found.captions, config.validation),
        regions=_levelled(found.regions, config.validation),
        data_set=_levelled(found.data_set, config.validation),
    )


def _levelled(checks: Sequence[Check], limits: ValidationConfig) -> tuple[Check, ...]:
    return tuple(replace(check, level=_level(check.id, check.level, limits)) for check in checks)


def _level(id: str, default: Level, limits: ValidationConfig) -> Level:
    named: list[tuple[str, Level]] = [(name, "warn") for name in limits.warn]
    named += [(name, "fail") for name in limits.fail]
    matching = [item for item in named if _matches(item[0], id)]
    return max(matching, key=lambda item: len(item[0]))[1] if matching else default


def _matches(name: str, id: str) -> bool:
    return id == name or (name.endswith("/") and id.startswith(name))


def _near(name: str, ids: Iterable[str]) -> str:
    tables = sorted({f"{id.partition('/')[0]}/" for id in ids})
    near = difflib.get_close_matches(name, [*ids, *tables], n=4, cutoff=0.5)
    return ", ".join(near or tables)
