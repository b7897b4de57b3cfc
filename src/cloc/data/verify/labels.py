"""Whether a shard's table belongs to it, by what its metadata says that it was made of, and still has its rows.

Tables beside the images carry the hash of their shard. Those of the labelling stages carry that of the shard with the
tables that were read with it, so that captions which changed since then are noticed in the regions.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cloc.data import tables
from cloc.data.schema import Shard, Table
from cloc.data.storage import Storage, StorageError
from cloc.data.verify.outcomes import Outcome, trouble
from cloc.data.verify.report import Difference, Kind
from cloc.errors import DataError
from cloc.stage import fingerprint

# Made of the whole set at once: no shard's hash says whether one is right.
OF_THE_SET: tuple[Table, ...] = ("duplicates",)
# Tables that labels may have been made of, in the orders in which the labelling stages name them.
_READ: tuple[tuple[Table, ...], ...] = (("captions",), ("regions",), ("regions", "captions"))


@dataclass(frozen=True)
class TableCheck:
    """How tables are verified.

    Attributes:
        images: storage of the data set.
        roots: of the tables that labelling wrote.
    """

    images: Storage
    roots: Mapping[Table, Storage]

    def look(self, table: Table, shard: Shard, *, root: Storage) -> Outcome:
        """Reads a table, and the ends of those that it may have been made of."""
        path = tables.table_path(table, shard.name)
        named = path if root is self.images else f"{root.url}/{path}"
        try:
            info = tables.table_info(root, table, shard.name)
            if info is None:
                return Outcome((Difference(Kind.TABLE, named, detail="not readable as Parquet"),))
            images = info.statistics.get("images", shard.images)
            if root is not self.images and images != shard.images:
                found = Difference(Kind.COUNT, named, expected=shard.images, found=images, unit="images")
                return Outcome((found,))
            if info.content_hash and not tables.is_intact(root, table, shard.name):
                detail = "its rows are not those that were written; make it again"
                return Outcome((Difference(Kind.TABLE, named, detail=detail),))
            if not info.input_hash:
                return Outcome(table=table, unknown=True)
            if info.input_hash in {shard.sha256, shard.content}:
                return Outcome(table=table)
            if root is not self.images and info.input_hash in self._made_of(table, shard):
                return Outcome(table=table)
        except StorageError as error:
            return Outcome((trouble(error, named),))
        except DataError as error:
            return Outcome((Difference(Kind.TABLE, named, detail=str(error)),))
        what = "" if root is self.images else ", or of other tables beside it"
        detail = f"it was made of another tar than {shard.path}{what}"
        return Outcome((Difference(Kind.TABLE, named, detail=detail),))

    def _made_of(self, table: Table, shard: Shard) -> Iterator[str]:
        """The hashes that a labelling stage's table of this shard may carry."""
        captions = self.roots.get("captions", self.images) if table == "regions" else self.images
        for reads in _READ:
            homes = [captions if read == "captions" else self.images for read in reads]
            found = [tables.content_hash(home, read, shard.name) for home, read in zip(homes, reads, strict=True)]
            yield fingerprint(shard.content, reads, found)
