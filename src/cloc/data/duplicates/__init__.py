"""Images that occur twice: exactly (equal files) or nearly (perceptual hashes that differ in a few bits)."""

from cloc.data.duplicates.counts import DuplicateCounts, count_duplicates, count_leaked
from cloc.data.duplicates.known import OCCURS, KnownImages, Match

__all__ = ["OCCURS", "DuplicateCounts", "KnownImages", "Match", "count_duplicates", "count_leaked"]
