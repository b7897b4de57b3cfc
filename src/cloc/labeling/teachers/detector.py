"""The small detector: an OWL-ViT from a small configuration, fitted on people's boxes (Minderer et al., 2022).

Queries are what the grounding stage will ask: noun phrases of captions, and the boxes' own texts. Those of a batch's
other images are its negatives. Shapes: B images, P patches, Q queries of a batch, M matched patches, S side, L tokens.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPTokenizer,
    OwlViTConfig,
    OwlViTForObjectDetection,
    OwlViTImageProcessorPil,
    OwlViTProcessor,
)

from cloc.config.schema import TeacherDetectorConfig, TowerConfig, VisionConfig
from cloc.data.prefetch import prefetched
from cloc.data.transforms import PIXEL_MEAN, PIXEL_STD
from cloc.labeling.teachers.data import Picture, Pictures
from cloc.labeling.teachers.fitting import Fitted, Schedule, fit
from cloc.labeling.teachers.initial import start_as_convolution
from cloc.labeling.teachers.losses import DetectorLosses, box_losses, contrast_loss, focal_loss
from cloc.labeling.teachers.matching import match, middles
from cloc.labeling.teachers.texts import core, naming
from cloc.model.processing import normalize

NAME = "detector"
QUERY_LENGTH = 16  # tokens, as the class's public checkpoints
_SCALE, _SHIFT = 10.0, -0.4  # of the cosines at the start: a chance of 2 % everywhere
_FAR_APART = 15.0  # scale of the cosines that are contrasted
_ACTIVATION = "gelu"
# The heads' first looks are kept: Muon would turn them into something else within a few steps.
_SLOW = ("vision_model.embeddings.position_embedding", "vision_model.embeddings.patch_embedding", ".q_proj", ".k_proj")


def make_detector(
    vision: VisionConfig, text: TowerConfig, tokenizer: CLIPTokenizer, *, distances: Sequence[int], seed: int
) -> OwlViTForObjectDetection:
    """A detector that knows nothing yet.

    Args:
        vision, text: sizes of the towers.
        tokenizer: its end of text is its highest entry.
        distances: see `initial.start_as_convolution`; empty starts at random.
        seed: of the weights.
    """
    torch.manual_seed(seed)
    config = OwlViTConfig(
        text_config={
            **_tower(text),
            "vocab_size": len(tokenizer),
            "max_position_embeddings": QUERY_LENGTH,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={**_tower(vision), "image_size": vision.image_size, "patch_size": vision.patch_size},
        projection_dim=text.width,
    )
    model = OwlViTForObjectDetection(config)
    _start_heads(model)
    if distances:
        start_as_convolution(model.owlvit.vision_model, distances=distances, seed=seed)
    # No part of what a detector computes: without a gradient they would only be saved as they are.
    for part in (model.owlvit.visual_projection.weight, model.owlvit.logit_scale):
        part.requires_grad_(False)
    return model


def _tower(sizes: TowerConfig) -> dict[str, Any]:
    return {
        "hidden_size": sizes.width,
        "intermediate_size": round(sizes.width * sizes.mlp_ratio),
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "hidden_act": _ACTIVATION,
    }


@torch.no_grad()
def _start_heads(model: OwlViTForObjectDetection) -> None:
    """The class starts its heads at a deviation of 1, from which boxes and scores of a fresh model do not recover."""
    for layer in (model.class_head.dense0, model.box_head.dense0, model.box_head.dense1):
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    nn.init.normal_(model.box_head.dense2.weight, std=0.02)
    model.box_head.dense2.bias[2:] += 1.0  # a box starts some patches wide
    for layer, value in ((model.class_head.logit_scale, _SCALE), (model.class_head.logit_shift, _SHIFT)):
        nn.init.zeros_(layer.weight)
        nn.init.constant_(layer.bias, value)


@dataclass(frozen=True)
class DetectorBatch:
    """A step's images and what is asked of them.

    Attributes:
        pixels_BSS3: uint8.
        boxes: (G, 4) of each image, xyxy.
        names: (G, Q) of each image: see `texts.naming`.
        kinds: (G,) of each image: place of the box's class, or else its head noun, among the queries.
    ids_QL, mask_QL: the queries.
    """

    pixels_BSS3: Tensor
    boxes: Sequence[Tensor]
    names: Sequence[Tensor]
    kinds: Sequence[Tensor]
    ids_QL: Tensor
    mask_QL: Tensor


def detector_batch(pictures: Sequence[Picture], tokenizer: CLIPTokenizer) -> DetectorBatch:
    """Collates pictures; the queries are the distinct texts, labels and phrases of all of them."""
    kinds = [[label or core(text).head or text for text, label in zip(each.texts, each.labels, strict=True)]
             for each in pictures]  # fmt: skip
    spoken = [(*each.texts, *own, *each.phrases) for each, own in zip(pictures, kinds, strict=True)]
    queries = list(dict.fromkeys(text for texts in spoken for text in texts))
    places = {query: place for place, query in enumerate(queries)}
    names = []
    for picture in pictures:
        own = frozenset((*picture.texts, *picture.phrases))
        regions = list(zip(picture.texts, picture.labels, strict=True))
        names.append(torch.from_numpy(naming(regions, [own] * len(regions), queries)))
    tokens = tokenizer(queries, padding="longest", truncation=True, max_length=QUERY_LENGTH, return_tensors="pt")
    return DetectorBatch(
        pixels_BSS3=torch.from_numpy(np.stack([each.pixels_SS3 for each in pictures])),
        boxes=[torch.from_numpy(each.boxes_G4) for each in pictures],
        names=names,
        kinds=[torch.tensor([places[kind] for kind in own], dtype=torch.long) for own in kinds],
        ids_QL=tokens["input_ids"],
        mask_QL=tokens["attention_mask"],
    )


def detector_losses(model: OwlViTForObjectDetection, batch: DetectorBatch) -> DetectorLosses:
    """The losses of a batch with at least one box."""
    device = model.device
    map_BHWD, _ = model.image_embedder(pixel_values=normalize(batch.pixels_BSS3.to(device)))
    features_BPD = map_BHWD.flatten(1, 2)
    encoded = model.owlvit.get_text_features(
        input_ids=batch.ids_QL.to(device), attention_mask=batch.mask_QL.to(device)
    ).pooler_output
    queries_QD = F.normalize(encoded, dim=-1)
    logits_BPQ, seen_BPD = model.class_predictor(features_BPD, queries_QD.expand(len(features_BPD), -1, -1))
    boxes_BP4 = model.box_predictor(features_BPD, map_BHWD)
    found = _match(boxes_BP4, logits_BPQ, batch, middles(*map_BHWD.shape[1:3]).to(device))
    l1, giou = box_losses(boxes_BP4[found.image_M, found.patch_M], found.truth_M4)
    similarity_MQ = seen_BPD[found.image_M, found.patch_M] @ queries_QD.T
    asked_K, kind_M = torch.unique(found.kind_M, return_inverse=True)
    return DetectorLosses(
        focal=focal_loss(logits_BPQ, found.image_M, found.patch_M, found.names_MQ),
        contrast=contrast_loss(similarity_MQ, found.names_MQ, scale=_FAR_APART),
        kinds=F.cross_entropy(_FAR_APART * similarity_MQ[:, asked_K], kind_M),
        l1=l1,
        giou=giou,
    )


@dataclass(frozen=True)
class _Matched:
    """The matched patches: image and number, true box, names of the queries and kind of each."""

    image_M: Tensor
    patch_M: Tensor
    truth_M4: Tensor
    names_MQ: Tensor
    kind_M: Tensor


def _match(boxes_BP4: Tensor, logits_BPQ: Tensor, batch: DetectorBatch, middles_P2: Tensor) -> _Matched:
    device = boxes_BP4.device
    chance_BPQ = logits_BPQ.detach().sigmoid()
    parts = []
    for number, (truth_G4, names_GQ, kind_G) in enumerate(zip(batch.boxes, batch.names, batch.kinds, strict=True)):
        if not len(truth_G4):
            continue
        truth_G4, names_GQ = truth_G4.to(device), names_GQ.to(device)
        named_GQ = (names_GQ > 0).float()
        scores_PG = chance_BPQ[number] @ named_GQ.T / named_GQ.sum(dim=1).clamp_min(1)
        found_G = torch.from_numpy(match(boxes_BP4[number].detach(), scores_PG, truth_G4, middles_P2)).to(device)
        kept = found_G >= 0
        image_M = torch.full((int(kept.sum()),), number, device=device)
        parts.append((image_M, found_G[kept], truth_G4[kept], names_GQ[kept], kind_G.to(device)[kept]))
    return _Matched(*(torch.cat(part) for part in zip(*parts, strict=True)))


def fit_detector(
    model: OwlViTForObjectDetection,
    tokenizer: CLIPTokenizer,
    pictures: Pictures,
    settings: TeacherDetectorConfig,
    *,
    seed: int,
    metrics: Path,
) -> Fitted:
    """Fits a detector in place.

    Raises:
        DataError: too few images have boxes.
        TrainingError: the loss is not finite.
    """
    batches = pictures.batches(settings.batch_size, seed=seed, keep=lambda picture: len(picture.texts) > 0)
    schedule = Schedule(
        steps=settings.steps, learning_rate=settings.learning_rate, muon_rate=settings.muon_rate, slow=_SLOW
    )
    with closing(prefetched((detector_batch(batch, tokenizer) for batch in batches), depth=2)) as ready:

        def losses(step: int) -> tuple[Tensor, Mapping[str, Tensor]]:
            found = detector_losses(model, next(ready))
            return found.total(), vars(found)

        return fit(NAME, model, losses, schedule, metrics=metrics)


def save_detector(model: OwlViTForObjectDetection, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Writes weights, tokenizer and image processor as a public checkpoint has them."""
    size = model.config.vision_config.image_size
    model.save_pretrained(folder)
    picture = OwlViTImageProcessorPil(
        size={"height": size, "width": size},
        do_center_crop=False,
        image_mean=list(PIXEL_MEAN),
        image_std=list(PIXEL_STD),
    )
    OwlViTProcessor(picture, tokenizer).save_pretrained(folder)
