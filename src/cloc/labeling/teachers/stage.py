"""Stage: labelling models of the data's own, small ones, fitted on a labelled split (`teachers.split`).

cloc teachers fit --data data --out work/teachers

For data that public models do not know, and for the demo. What is written are checkpoints as public ones are, which the
backends `transformers` load in the same way: `<out>/detector` (an OWL-ViT) and `<out>/captioner` (a vision encoder with
a text decoder). A teacher that stands, fitted on the same data with the same settings, is kept.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cloc.config.schema import CaptioningConfig, Config, GroundingConfig
from cloc.data.dataset import Dataset, resolve_split
from cloc.data.storage import open_storage
from cloc.labeling.captioners import Prompts
from cloc.labeling.images import BadImageError, decode
from cloc.labeling.names import Names
from cloc.labeling.phrases import PhraseExtractor
from cloc.labeling.teachers.judge import judge_captioner, judge_detector
from cloc.labeling.worker import Item
from cloc.stage import StageResult, fingerprint

STAGE = "teachers"
DETECTOR, CAPTIONER = "detector", "captioner"


@dataclass(frozen=True)
class Inputs:
    """What the stage reads.

    Attributes:
        data: a labelled data set, or a collection whose split `teachers.split` is one.
    """

    data: str


@dataclass(frozen=True)
class Outputs:
    """What the stage writes.

    Attributes:
        teachers: folder of the teachers' folders, and of a record of each.
    """

    teachers: str


def run(config: Config, *, inputs: Inputs, outputs: Outputs) -> StageResult:
    """Fits the teachers that `teachers.fit` names.

    Metrics are the quality on images that were kept apart: the detector's, asked for the phrases of people's captions,
    and how many of an image's classes the captioner names.

    Raises:
        DataError: the split is not there, or has no human captions and boxes.
        TrainingError: a loss is not finite.
    """
    section, folder = config.teachers, Path(outputs.teachers)
    folder.mkdir(parents=True, exist_ok=True)
    if not section.fit:
        return StageResult(stage=STAGE, message="no teachers are needed", artifacts={"teachers": str(folder)})
    data = Dataset.open(resolve_split(inputs.data, section.split))
    fitter = _Fitter(config, data, folder)
    metrics: dict[str, float] = {}
    counts: dict[str, int] = {}
    messages = []
    # A captioner has the detector's eyes: where it is wanted alone, a detector is fitted all the same.
    for name, fit in ((DETECTOR, fitter.detector), (CAPTIONER, fitter.captioner)):
        if name == DETECTOR or name in section.fit:
            receipt = fit()
            metrics |= receipt["metrics"]
            counts[f"{name}_held_out_images"] = receipt["images"]
            messages.append(receipt["message"])
    return StageResult(
        stage=STAGE,
        metrics=metrics,
        counts=counts,
        message="; ".join(messages),
        artifacts={"teachers": str(folder)},
    )


class _Fitter:
    """Fits teachers into a folder; what stands there, made of the same, is kept."""

    def __init__(self, config: Config, data: Dataset, folder: Path) -> None:
        self._limits, self._section, self._data, self._folder = config.data, config.teachers, data, folder
        limits = (config.data.min_side, config.data.max_pixels)
        # What changes how fast a teacher is fitted, and not what it is.
        shared = self._section.model_dump(
            mode="json", exclude={"fit": True, "captioner": True, "device": True, "detector": {"threads"}}
        )
        self._detector_made_of = fingerprint(shared, limits, data.digest, data.labels_digest())
        self._names = Names(data.manifest.classes)

    def detector(self) -> dict[str, Any]:
        """The detector's record: metrics, number of held-out images, message."""
        return self._keep_or_fit(DETECTOR, self._detector_made_of, self._fit_detector)

    def captioner(self) -> dict[str, Any]:
        """The captioner's record."""
        own = self._section.captioner.model_dump(mode="json", exclude={"threads"})
        return self._keep_or_fit(CAPTIONER, fingerprint(self._detector_made_of, own), self._fit_captioner)

    def _keep_or_fit(self, name: str, made_of: str, fit: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        target, receipt_path = self._folder / name, self._folder / f"{name}.json"
        if receipt_path.is_file() and target.is_dir():
            receipt: dict[str, Any] = json.loads(receipt_path.read_text())
            if receipt["made_of"] == made_of:
                print(f"teachers: the {name} stands already", flush=True)
                return receipt
        receipt_path.unlink(missing_ok=True)
        from cloc.model.factory import quiet

        unfinished = self._folder / f".tmp-{name}"
        shutil.rmtree(unfinished, ignore_errors=True)
        with quiet():
            receipt = {"made_of": made_of, "fitted_on": self._fitted_on(), **fit(unfinished)}
        shutil.rmtree(target, ignore_errors=True)
        unfinished.rename(target)
        # The receipt is the commit: whole or not at all, and last.
        open_storage(self._folder).write_bytes(
            receipt_path.name, (json.dumps(receipt, indent=1, sort_keys=True) + "\n").encode()
        )
        return receipt

    def _fitted_on(self) -> dict[str, Any]:
        """The split, for those who ask what a teacher learned from."""
        data = self._data
        return {
            "split": self._section.split,
            "data_digest": data.digest,
            "labels_digest": data.labels_digest(),
            "images": data.manifest.images,
            "made_by": str(data.manifest.made_by.get("tool", "")),
        }

    def _fit_detector(self, target: Path) -> dict[str, Any]:
        from cloc.labeling.models import pick_device
        from cloc.labeling.teachers.detector import fit_detector, make_detector, save_detector
        from cloc.labeling.teachers.texts import fit_tokenizer

        section, pictures = self._section, self._pictures
        _use_threads(section.detector.threads)
        tokenizer = fit_tokenizer(
            pictures.texts(), vocab_size=section.vocab_size, context_length=section.captioner.context_length
        )
        model = make_detector(
            section.vision, section.detector.text, tokenizer, distances=section.distances, seed=section.seed
        ).to(pick_device(section.device, key="teachers.device"))
        fitted = fit_detector(
            model, tokenizer, pictures, section.detector, seed=section.seed, metrics=self._curves(DETECTOR)
        )
        save_detector(model.cpu(), tokenizer, target)
        return self._receipt(DETECTOR, fitted, *judge_detector(target, self._held_out(), self._names))

    def _fit_captioner(self, target: Path) -> dict[str, Any]:
        from transformers import AutoTokenizer, OwlViTForObjectDetection

        from cloc.labeling.models import pick_device
        from cloc.labeling.teachers.captioner import fit_captioner, make_captioner, save_captioner

        section = self._section
        _use_threads(section.captioner.threads)
        detector = OwlViTForObjectDetection.from_pretrained(self._folder / DETECTOR).eval()
        tokenizer = AutoTokenizer.from_pretrained(self._folder / DETECTOR)
        model = make_captioner(detector, section.captioner, tokenizer, seed=section.seed).to(
            pick_device(section.device, key="teachers.device")
        )
        fitted = fit_captioner(
            model,
            tokenizer,
            self._pictures,
            section.captioner,
            seed=section.seed,
            metrics=self._curves(CAPTIONER),
            cache=section.cache_images,
        )
        save_captioner(model.cpu(), tokenizer, target)
        judged = judge_captioner(target, section.captioner, self._held_out(), self._names)
        return self._receipt(CAPTIONER, fitted, *judged)

    @cached_property
    def _pictures(self) -> Any:
        """What both learn from. Decoded once in a run: the captioner finds the detector's pictures."""
        from cloc.labeling.teachers.data import Pictures, PictureSettings

        section = self._section
        return Pictures(
            self._data,
            PictureSettings(
                size=section.vision.image_size,
                min_side=self._limits.min_side,
                max_pixels=self._limits.max_pixels,
                min_box_side=GroundingConfig().min_box_side,
                held_out=section.held_out,
            ),
            phrases=PhraseExtractor(tagger="lexicon", max_phrases=GroundingConfig().max_phrases),
            prompts=Prompts(CaptioningConfig(alt_text_prompt=section.captioner.alt_text_prompt)),
            cache=section.cache_images,
        )

    def _held_out(self) -> Iterator[Item]:
        for sample in self._pictures.held_out():
            try:
                image = decode(sample.sample.image, min_side=self._limits.min_side, max_pixels=self._limits.max_pixels)
            except BadImageError:
                continue  # no part of what was learned from, either
            yield Item(image, sample)

    def _curves(self, name: str) -> Path:
        return self._folder / f"{name}.metrics.jsonl"

    def _receipt(
        self, name: str, fitted: Any, metrics: Mapping[str, float], images: int, message: str
    ) -> dict[str, Any]:
        own = {
            **metrics,
            f"speed/{name}_cpu_seconds": fitted.cpu_seconds,
            f"speed/{name}_wall_seconds": fitted.wall_seconds,
            f"loss/{name}": fitted.losses["loss"],
        }
        return {"metrics": own, "images": images, "message": f"{name}: {message} in {fitted.wall_seconds:.0f} s"}


def _use_threads(number: int) -> None:
    import torch

    torch.set_num_threads(number or len(os.sched_getaffinity(0)))
