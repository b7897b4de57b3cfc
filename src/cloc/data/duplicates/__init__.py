"""Images that occur twice: exactly (equal files) or nearly (perceptual hashes that differ in a few bits)."""

from cloc.data.duplicates.counts import DuplicateCounts, count_duplicates, count_leaked
from cloc.data.duplicates.known import KnownImages, Match, known_digest

__all__ = ["DuplicateCounts", "KnownImages", "Match", "count_duplicates", "count_leaked", "known_digest"]
