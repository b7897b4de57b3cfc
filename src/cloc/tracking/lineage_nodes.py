"""What a lineage consists of, and the part of it that one record beside a model tells: data, labels, labellers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cloc.config.load import flatten
from cloc.data.origin import Check

NOT_RECORDED = "not recorded"
DIGITS = 16
"""Of a hash, that are shown."""


@dataclass(frozen=True)
class Node:
    """A thing that a model goes back to.

    Attributes:
        name: what it is: "training", "captioner", ...
        told: it in a line; `NOT_RECORDED` where nobody recorded it.
        source: where this was read; "" where nothing was.
        facts: what else is known, by name; text and numbers.
        settings: what it was made with, as far as that is worth telling; may be many.
        children: what it goes back to itself.
        checks: what was verified of it.
    """

    name: str
    told: str
    source: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    children: tuple["Node", ...] = ()
    checks: tuple[Check, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "name": self.name,
            "told": self.told,
            "source": self.source,
            "facts": dict(self.facts),
            "settings": dict(self.settings),
            "checks": [vars(check) for check in self.checks],
            "children": [child.to_json() for child in self.children],
        }

    def everything(self) -> Iterator["Node"]:
        """This and all below, in order."""
        yield self
        for child in self.children:
            yield from child.everything()


def known(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts but for those that are empty."""
    return {name: value for name, value in facts.items() if value not in (None, "")}


def data_node(record: Mapping[str, Any], *, dvc: str, source: str, checks: Sequence[Check]) -> Node:
    """The images that were trained on.

    Args:
        record: of `cloc.data.origin.data_record`.
        dvc: md5 that DVC has of them; "" for none.
        source: where the record was read.
        checks: of them.
    """
    facts = {
        "manifest": f"sha256 {record['manifest_sha256'][:DIGITS]}",
        "quarantined": record["quarantined"],
        "classes": record["classes"],
        "DVC": f"md5 {dvc}" if dvc else NOT_RECORDED,
    }
    told = f"{record['place']}: {record['images']:,} images in {record['shards']:,} shards, digest {record['digest']}"
    made_by = {name: _short(value) for name, value in record["made_by"].items()}
    facts["made by"] = made_by.pop("tool", NOT_RECORDED)
    return Node("data", told, source, known(facts), known(made_by), checks=tuple(checks))


def labels_node(table: str, record: Mapping[str, Any], *, labeller: str, source: str, checks: Sequence[Check]) -> Node:
    """The captions or regions that were trained on, and under them who made them.

    Args:
        table: their name.
        record: of `cloc.data.origin.tables_record`.
        labeller: what the maker is called.
        source, checks: see `data_node`.
    """
    counts = record["counts"]
    rows = f"{counts['rows']:,} on {counts['images']:,} images, " if "rows" in counts else ""
    return Node(
        table,
        f"{record['place']}: {rows}digest {record['digest']}",
        source,
        known({name: counts.get(name) for name in ("labelled", "quarantined", "refused_items")}),
        children=tuple(_makers(record, labeller, source)),
        checks=tuple(checks),
    )


def _makers(record: Mapping[str, Any], labeller: str, source: str) -> Iterable[Node]:
    where = f"metadata of the tables, in {source}"
    for maker in record["makers"]:
        share = "" if maker["shards"] == record["shards"] else f" ({maker['shards']:,} of {record['shards']:,} shards)"
        if "backend" not in maker:
            yield Node(labeller, f"{NOT_RECORDED}{share}: the tables do not say what made them", where)
            continue
        settings = dict(maker.get("settings", {}))
        guards = ", ".join(f"{name} {value}" for name, value in settings.pop("guards", {}).items() if value != "")
        if maker["backend"] == "annotations":
            yield Node(labeller, f"people: the data's own annotations{share}", where)
            continue
        digest = maker.get("model_digest") or NOT_RECORDED
        told = f"{maker['model'] or 'a model without a name'} by {maker['backend']}, files {digest}{share}"
        children = (_fitted_on(maker),) if "model_digest" in maker else ()
        yield Node(labeller, told, where, known({"guards": guards}), known(flatten(settings)), children)


def _fitted_on(maker: Mapping[str, Any]) -> Node:
    fitted = maker.get("fitted_on")
    if not fitted:
        return Node("fitted on", NOT_RECORDED)
    told = f"split {fitted['split']}: {fitted['images']:,} images, digest {fitted['data_digest']}"
    facts = {"labels": f"digest {fitted['labels_digest']}", "made by": fitted["made_by"]}
    return Node("fitted on", told, "the teacher's record, in the tables' metadata", known(facts))


def _short(value: Any) -> str:
    return f"{len(value)} of them" if isinstance(value, list | dict) else str(value)
