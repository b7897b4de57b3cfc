"""The paper's figures as data (METHOD, "The paper's numbers"; Table 2 of arXiv 2410.02746v2, ViT-B/16 unless named)."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper's table, percent; None where the paper gives no figure.

    Attributes:
        name: as METHOD calls it.
        i2t, t2i: COCO retrieval, R@1.
        imagenet: zero-shot top-1.
        r2t, t2r: GRIT region retrieval, R@10.
        coco, lvis: region recognition, mAcc.
    """

    name: str
    i2t: float
    t2i: float
    imagenet: float
    r2t: float | None = None
    t2r: float | None = None
    coco: float | None = None
    lvis: float | None = None


CLOC_300M, CLOC_2B = "CLOC 300M region labels", "CLOC 2B region labels"

PAPER: Mapping[str, PaperRow] = {
    row.name: row
    for row in (
        PaperRow("CLIP", 66.3, 45.1, 76.2),
        PaperRow(CLOC_300M, 66.1, 46.5, 75.5, 65.8, 67.4, 70.1, 27.2),
        PaperRow("without Prompter (RoIAlign)", 65.8, 46.5, 75.7, 55.5, 18.4, 67.1, 24.6),
        PaperRow("without text filter", 65.4, 46.0, 75.7, 66.3, 66.5, 68.7, 24.8),
        PaperRow("without grounding loss", 66.0, 46.3, 75.7, 66.0, 66.8, 70.0, 25.8),
        PaperRow("M = 2", 66.6, 46.2, 75.5, 66.5, 67.0, 69.8, 25.8),
        PaperRow(CLOC_2B, 69.2, 49.3, 74.9, 63.9, 65.9, 71.1, 28.5),
        PaperRow("without VESL", 65.3, 46.6, 75.5, 55.7, 22.3, 66.3, 25.3),
        PaperRow("L/14", 74.8, 54.4, 80.1, 66.9, 68.3, 72.9, 32.6),
        PaperRow("H/14", 75.7, 55.1, 81.3, 67.4, 69.4, 73.0, 35.6),
    )
}
# Table 1: regions an image with VESL on WiT-300M, and with the alt-text's n-grams.
REGIONS_VESL, REGIONS_ALT_TEXT = 11.6, 5.1
# Table A.
STEPS, BATCH_SIZE = 439_087, 32_768
