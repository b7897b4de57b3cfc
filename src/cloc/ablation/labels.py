"""The label tables that rows are trained with, made by the labelling stages; what stands already is skipped."""

import hashlib
import zlib
from collections.abc import Collection
from dataclasses import dataclass

from cloc.ablation.rows import FEWER_SHARE, LabelKind
from cloc.config import Config, apply_overrides, parse
from cloc.data import tables
from cloc.data.dataset import Dataset, resolve_split
from cloc.data.storage import open_storage
from cloc.errors import DataError
from cloc.labeling.settings import needed_teachers
from cloc.stage import fingerprint
from cloc.stages import run_stage


@dataclass(frozen=True)
class Labels:
    """Labels of the training split.

    Attributes:
        captions, regions: roots of the tables.
        digest: hash of images and labels.
        made_by: the tool that made the data set, as its manifest says.
        images, regions_count, words: images of the split; regions of all images; words of the regions' texts.
        covered: images with at least one region.
    """

    captions: str
    regions: str
    digest: str
    made_by: str
    images: int
    regions_count: int
    words: int
    covered: int

    @property
    def regions_per_image(self) -> float:
        """Regions an image, over all images."""
        return self.regions_count / max(1, self.images)

    @property
    def words_per_region(self) -> float:
        """Words a region's text."""
        return self.words / max(1, self.regions_count)

    @property
    def coverage(self) -> float:
        """Share of the images with at least one region."""
        return self.covered / max(1, self.images)


def make_labels(
    kinds: Collection[LabelKind], config: Config, *, data: str, out: str, captions: str = "", regions: str = ""
) -> dict[LabelKind, Labels]:
    """Labels the training split in every way that is needed.

    Args:
        kinds: ways; `ALL` is made in any case, the others need it.
        config: settings of the base row.
        data: data set or collection.
        out: folder for the tables.
        captions, regions: roots of tables that exist; empty runs the stage.

    Raises:
        ConfigError, DataError: labelling is not possible.
    """
    labels_here = not captions or not regions or LabelKind.ALT_TEXT in kinds
    teachers = f"{out}/teachers" if labels_here and needed_teachers(config) else ""
    if teachers:
        run_stage("teachers", config, inputs={"data": data}, outputs={"teachers": teachers})
    inputs = {"data": data, "captions": captions or f"{out}/captions", "teachers": teachers}
    if not captions:
        run_stage(
            "captioning", config, inputs={"data": data, "teachers": teachers}, outputs={"captions": inputs["captions"]}
        )
    places = {LabelKind.ALL: regions or f"{out}/regions"}
    if not regions:
        run_stage("grounding", config, inputs=inputs, outputs={"regions": places[LabelKind.ALL]})
    images = resolve_split(data, config.data.train_split)
    if LabelKind.ALT_TEXT in kinds:
        places[LabelKind.ALT_TEXT] = f"{out}/regions_alt_text"
        tree = apply_overrides(config.model_dump(mode="json"), ["grounding.phrases=alt_text_ngrams"])
        own = parse(tree, source="labels without VESL")
        run_stage("grounding", own, inputs=inputs, outputs={"regions": places[LabelKind.ALT_TEXT]})
    if LabelKind.FEWER in kinds:
        places[LabelKind.FEWER] = f"{out}/regions_fewer"
        _thin_out(Dataset.open(images, regions=places[LabelKind.ALL]), places[LabelKind.FEWER], share=FEWER_SHARE)
    return {kind: _describe(images, inputs["captions"], place) for kind, place in places.items()}


def _thin_out(dataset: Dataset, root: str, *, share: float) -> None:
    """Copies the regions tables with the regions of a share of the images, chosen by the hash of their keys."""
    storage = open_storage(root)
    if storage.url.rstrip("/") == dataset.regions.url.rstrip("/"):
        raise DataError(f"{root}: is the source of the regions that it should hold a part of; give another --out")
    for shard in dataset.manifest.shards:
        if not tables.has_table(dataset.regions, "regions", shard.name):
            continue
        body = dataset.regions.read_bytes(tables.table_path("regions", shard.name))
        hashes = {"input_hash": hashlib.sha256(body).hexdigest(), "config_hash": fingerprint("share of images", share)}
        if not tables.is_current(storage, "regions", shard.name, **hashes):
            rows = tables.read_table(dataset.regions, "regions", shard.name).to_pylist()
            kept = [row for row in rows if zlib.crc32(row["key"].encode()) < share * 2**32]
            tables.write_table(storage, "regions", shard.name, kept, **hashes)


def _describe(images: str, captions: str, regions: str) -> Labels:
    dataset = Dataset.open(images, captions=captions, regions=regions)
    count = words = covered = 0
    for shard in dataset.manifest.shards:
        rows = dataset.rows("regions", shard)
        covered += len(rows)
        for items in rows.values():
            count += len(items)
            words += sum(len(row["text"].split()) for row in items)
    return Labels(
        captions=captions,
        regions=regions,
        digest=fingerprint(dataset.digest, dataset.labels_digest()),
        made_by=str(dataset.manifest.made_by.get("tool", "")),
        images=dataset.manifest.images,
        regions_count=count,
        words=words,
        covered=covered,
    )
