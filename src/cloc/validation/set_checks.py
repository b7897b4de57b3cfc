"""Limits of the whole data set: each judges one number of `Summary.numbers`, or one that the stage adds to them."""

from cloc.config import Config
from cloc.config.schema import ValidationConfig
from cloc.validation.checks import SetCheck
from cloc.validation.distributions import histograms
from cloc.validation.occurrences import DUPLICATES, LEAKED

_LITTLE = "Grounding found little: captions without things in them, or grounding.score_threshold is too high."
_NO_FINGERPRINTS = "The images have no fingerprints: ingest writes them."
_MOVED = "Boxes were shifted, or scaled by another size than their image's."


def set_checks(config: Config) -> tuple[SetCheck, ...]:
    """Limits of the whole data set."""
    limits = config.validation
    return (
        *_image_limits(limits),
        *_caption_limits(limits),
        *_region_limits(limits),
        *_box_limits(limits),
        *_match_limits(limits),
        *_drift_limits(limits),
    )


def _image_limits(limits: ValidationConfig) -> tuple[SetCheck, ...]:
    return (
        SetCheck("set/images", "Number of images", "images", minimum=limits.min_images, unit="count"),
        SetCheck(
            "set/quarantined",
            "Share of quarantined images",
            "quarantined_share",
            maximum=limits.max_quarantined,
            hint="Look at the reasons in the quarantine tables.",
        ),
        SetCheck(
            "set/empty_shards",
            "Shards without captions or without regions",
            "empty_shards",
            maximum=limits.max_empty_shards,
            hint="A labelling worker wrote nothing for these shards: remove their tables and run it again.",
        ),
        SetCheck(
            "set/repeated_keys",
            "Images whose key occurs again in the set",
            "repeated_keys",
            maximum=limits.max_repeated_keys,
            hint="Shards were listed twice, or sources with the same keys were put together.",
        ),
        SetCheck(
            DUPLICATES,
            "Images that occur earlier in the set, equal or nearly",
            "duplicate_images",
            maximum=limits.max_duplicate_images,
            hint="Duplicates are learnt by heart; ingest can leave them out.",
            level="warn",
            unknown=_NO_FINGERPRINTS,
        ),
        SetCheck(
            LEAKED,
            "Test images that occur in this set, equal or nearly",
            "leaked_images",
            maximum=limits.max_leaked_images,
            hint="Figures of these splits are too good; ingest can leave such images out.",
            level="warn",
            unknown=_NO_FINGERPRINTS,
        ),
    )


def _caption_limits(limits: ValidationConfig) -> tuple[SetCheck, ...]:
    return (
        SetCheck(
            "set/caption_coverage",
            "Images with a caption that is not the alt-text",
            "caption_coverage",
            minimum=limits.min_caption_coverage,
            hint="Captioning did not run, or gave up on many images: look at its quarantine.",
        ),
        SetCheck(
            "set/duplicate_captions",
            "Share of the most common caption",
            "top_caption_share",
            maximum=limits.max_duplicate_captions,
            hint="A captioner that says the same of every picture teaches nothing.",
        ),
        SetCheck(
            "set/repeated_captions",
            "Captions whose text occurs more than once in the set",
            "repeated_captions",
            maximum=limits.max_repeated_captions,
            hint="The captioner says little that tells images apart, or images stand twice.",
            level="warn",
        ),
        SetCheck(
            "set/length_pileup",
            "Captions of exactly the greatest length",
            "length_pileup",
            maximum=limits.max_length_pileup,
            hint="Captions were cut at a limit: of captioning.generation.max_new_tokens, or of a column.",
            level="warn",
        ),
        SetCheck(
            "set/language",
            f"Captions in the language {limits.language!r}",
            "language_share",
            minimum=limits.min_language,
            hint="Judged on a sample; captioning.guards.language leaves others out.",
        ),
    )


def _region_limits(limits: ValidationConfig) -> tuple[SetCheck, ...]:
    return (
        SetCheck(
            "set/region_coverage",
            "Images with at least one region",
            "region_coverage",
            minimum=limits.min_region_coverage,
            hint=_LITTLE,
        ),
        SetCheck(
            "set/regions_per_image",
            "Mean number of regions an image",
            "regions_per_image",
            minimum=limits.min_regions_per_image,
            unit="number",
            hint=_LITTLE,
        ),
        SetCheck(
            "set/region_text",
            "Share of the most common text of a region",
            "top_text_share",
            maximum=limits.max_region_text,
            hint="Regions that are all called the same teach nothing.",
        ),
        SetCheck(
            "set/effective_texts",
            "Effective number of texts of regions",
            "effective_texts",
            minimum=limits.min_effective_texts,
            unit="number",
            hint="Few texts make up nearly all regions.",
            level="warn",
        ),
        SetCheck(
            "set/label",
            "Share of the most common class of regions",
            "top_label_share",
            maximum=limits.max_label,
            level="warn",
        ),
        SetCheck(
            "set/same_score",
            "Share of the most common score of detected regions",
            "same_score",
            maximum=limits.max_same_score,
            hint="The detector's scores did not arrive: all regions look equally sure.",
        ),
    )


def _box_limits(limits: ValidationConfig) -> tuple[SetCheck, ...]:
    return (
        SetCheck(
            "set/pixel_boxes",
            "Boxes that look like pixels",
            "pixel_boxes",
            maximum=limits.max_pixel_boxes,
            hint="Divide coordinates by width and height of the image.",
        ),
        SetCheck(
            "set/same_box",
            "Share of the most common box",
            "same_box",
            maximum=limits.max_same_box,
            hint="Boxes that are all equal come from a default and not from the image.",
        ),
        SetCheck(
            "set/whole_image_boxes",
            "Boxes that cover their image",
            "whole_image_boxes",
            maximum=limits.max_whole_image_boxes,
            hint="Such regions say no more than the caption does.",
        ),
        SetCheck(
            "set/side_bias",
            "Boxes lie more to one side than to the other",
            "side_bias",
            maximum=limits.max_side_bias,
            hint=_MOVED,
        ),
        SetCheck(
            "set/vertical_bias",
            "Boxes touch the upper border more than the lower, or the other way round",
            "vertical_bias",
            maximum=limits.max_vertical_bias,
            hint=_MOVED,
        ),
    )


def _match_limits(limits: ValidationConfig) -> tuple[SetCheck, ...]:
    hint = "Labels belong to other images: rows are off by some, or keys were mixed up."
    return (
        SetCheck(
            "set/phrase_support",
            "Detected regions whose text occurs in a text of their image",
            "phrase_support",
            minimum=limits.min_phrase_support,
            hint=hint,
        ),
        SetCheck(
            "set/phrase_lift",
            "How much more often texts of regions occur in texts of their image than of its neighbours",
            "phrase_lift",
            minimum=limits.min_phrase_lift,
            hint=hint,
            level="warn",
        ),
    )


def _drift_limits(limits: ValidationConfig) -> tuple[SetCheck, ...]:
    hint = f"Compared with {limits.reference}." if limits.reference else ""
    distances = tuple(
        SetCheck(
            f"drift/{name}",
            f"Distance from the reference: {histogram.title}",
            f"drift_{name}",
            maximum=limits.max_drift,
            unit="number",
            hint=hint,
        )
        for name, histogram in histograms().items()
    )
    means = tuple(
        SetCheck(
            f"drift/mean_{name}",
            f"Mean against the reference, in standard deviations: {histogram.title}",
            f"drift_mean_{name}",
            maximum=limits.max_mean_drift,
            unit="number",
            hint=hint,
        )
        for name, histogram in histograms().items()
    )
    return (*distances, *means)
