"""Which language captions are in, judged on a sample of them by py3langid, whose model comes with the package."""

from cloc.errors import ConfigError
from cloc.validation.sketches import DistinctTexts

_MIN_PROBABILITY = 0.05  # of the wanted language; kin (Norwegian, Serbian) share the probability between them
_MIN_WORDS = 3  # shorter texts may be of any language


def language_share(sample: DistinctTexts, *, code: str) -> float | None:
    """Share of the sampled texts that may be of a language; None where the sample has no text long enough.

    Args:
        sample: of the texts.
        code: ISO 639-1 code of the language.

    Raises:
        ConfigError: the code is unknown, or py3langid is not installed.
    """
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise ConfigError(
            f"validation.language: {code!r} is set but py3langid is not installed; install cloc[label], or leave the "
            "setting empty"
        ) from None
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    if code not in identifier.labels:
        raise ConfigError(
            f"validation.language: {code!r} is no language that can be told; use one of "
            f"{', '.join(sorted(identifier.labels))}"
        )
    texts = [text for text in sample.texts if len(text.split()) >= _MIN_WORDS]
    if not texts:
        return None
    return sum(dict(identifier.rank(text))[code] >= _MIN_PROBABILITY for text in texts) / len(texts)
