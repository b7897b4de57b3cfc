"""Evaluations as folders, with figures of choice: metrics.json and the resamples beside it."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from cloc.evaluation.promotion import ESTIMATES_FILE, METRICS_FILE, sample_name
from cloc.evaluation.summary import slug
from cloc.model.provenance import weights_digest

CLIP = "CLIP (equal steps)"


def write_evaluation(
    folder: Path,
    models: dict[str, tuple[str, float]],
    *,
    digest: str = "set-a",
    images: int = 50,
    spread: float = 0.01,
    estimates: bool = True,
    seed: int = 0,
) -> str:
    """An evaluation of CLOC models beside a plain CLIP that any of them beats.

    Args:
        folder: to write.
        models: row name -> the model's folder and its region mAcc by the Prompter.
        digest: of the evaluation set.
        images: of the evaluation set.
        spread: deviation of the difference of two models over resamples; what they share is 0.05.
        estimates: whether resamples are kept.
        seed: of what the models do not share.
    """
    rows, retrieval, trained, samples = [], {}, {}, {}
    shared = 0.05 * np.random.default_rng(0).standard_normal(500)
    for number, (name, (place, macc)) in enumerate({CLIP: ("", 0.05), **models}.items()):
        own = macc + shared + spread * np.random.default_rng(100 * seed + number + 1).standard_normal(500)
        reader = "prompter" if place else "crop"
        rows.append({"model": name, "reader": reader, "region": _block({"mAcc": macc, "top1": macc / 2}, images)})
        samples[sample_name("test", "region/mAcc", name, reader)] = own
        retrieval[name] = {way: _block({"R@1": 0.2}, images) for way in ("i2t", "t2i")}
        trained[name] = {
            "objective": "cloc" if place else "clip",
            "steps": 600,
            "cpu_seconds": 450.0,
            "slug": slug(name),
            "folder": place or "work/clip",
            "weights_sha256": weights_digest(place) if place else "0" * 64,
        }
    split = {"data": "data/test", "digest": digest, "images": images, "rows": rows, "retrieval": retrieval}
    metrics = {
        "schema_version": 2,
        "protocols": {"region_recognition": 2, "retrieval": 2},
        "bootstrap": {"resamples": 500, "seed": 0, "level": 0.95},
        "headline": {"split": "test", "candidate": next(iter(models)), "baselines": [CLIP]},
        "models": trained,
        "splits": {"test": {**split, "grounding": {}, "coherence": {}, "differences": []}},
        "classification": {},
    }
    folder.mkdir(parents=True)
    (folder / METRICS_FILE).write_text(json.dumps(metrics))
    (folder / "index.html").write_text("<html></html>")
    if estimates:
        save_file(samples, folder / ESTIMATES_FILE)
    return str(folder)


def _block(figures: dict[str, float], images: int) -> dict[str, object]:
    interval = {name: [max(0.0, value - 0.05), min(1.0, value + 0.05)] for name, value in figures.items()}
    return {**figures, "n": 4 * images, "images": images, "interval": interval}
