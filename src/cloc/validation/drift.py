"""How far a data set is from a reference: another validation's report, read from its validation.json.

A validated set's statistics are small and say much: that boxes lie where they lay, captions are as long as they were.
Labels with x and y swapped, shifted or scaled keep every rule of a row and still look unlike the reference.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cloc.data.storage import open_storage
from cloc.errors import ConfigError, DataError
from cloc.validation.distributions import distance
from cloc.validation.summary import Summary

_FILE = "validation.json"


@dataclass(frozen=True)
class Reference:
    """Statistics to compare with.

    Attributes:
        source: where they come from, for messages.
        bins, counts: of each histogram, by name.
        numbers: as `Summary.numbers` gives them.
    """

    source: str
    bins: Mapping[str, Sequence[str]]
    counts: Mapping[str, Sequence[int]]
    numbers: Mapping[str, float]

    @classmethod
    def load(cls, url: str) -> "Reference":
        """Reads a report's folder or its JSON file, local or on S3.

        Raises:
            ConfigError: there is none.
            DataError: it is no validation report.
        """
        folder, _, name = url.rstrip("/").rpartition("/")
        if not name.endswith(".json"):
            folder, name = url.rstrip("/"), _FILE
        storage = open_storage(folder or ".")
        if not storage.exists(name):
            raise ConfigError(
                f"validation.reference {url!r}: there is no {name}; name the folder of a validation's report or its "
                f"{_FILE}, or leave it empty"
            )
        try:
            body = json.loads(storage.read_bytes(name))
            histograms = body["histograms"]
            return cls(
                source=url,
                bins={name: tuple(map(str, item["bins"])) for name, item in histograms.items()},
                counts={name: tuple(map(int, item["counts"])) for name, item in histograms.items()},
                numbers={name: float(value) for name, value in body["numbers"].items()},
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"validation.reference {url!r}: not the JSON of a validation report ({type(error).__name__}: {error})"
            ) from None

    def numbers_of(self, summary: Summary) -> dict[str, float]:
        """How far a data set is from the reference, a quantity: `drift_<name>` is the distance of the histograms,
        `drift_mean_<name>` that of the means in the reference's standard deviations.

        Raises:
            DataError: the reference lacks a histogram, or its bins are others.
        """
        found: dict[str, float] = {}
        for name, histogram in summary.histograms.items():
            if self.bins.get(name) != tuple(histogram.labels):
                raise DataError(
                    f"validation.reference {self.source!r}: its histogram {name!r} is absent or has other bins; "
                    "validate the reference again with this release"
                )
            moments, mean = summary.moments[name], self.numbers.get(f"mean_{name}")
            if mean is None or not moments.count:
                continue  # one of the two sets has none of it, which other checks judge
            found[f"drift_{name}"] = distance(histogram.counts.tolist(), self.counts[name])
            # Of a quantity that hardly varies, a tenth of its mean is a difference.
            spread = max(self.numbers[f"std_{name}"], 0.1 * abs(mean), 1e-3)
            found[f"drift_mean_{name}"] = abs(moments.mean - mean) / spread
        return found
