"""OmDet-Turbo: learned proposals, compared with the queries' text embeddings, and told by a sentence what to look for.

The class's own processor needs torchvision, and its `forward` fills up an image's queries with zeros, which then take
part in the choice of its proposals: here they are filled up with copies, so that an image's boxes do not depend on its
batch. Shapes: B images, P boxes, Q queries, N distinct texts, L tokens, D width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from cloc.config.schema import GroundingConfig
from cloc.errors import ConfigError
from cloc.labeling.detector_network import Candidates, Checkpoint, Pixels, QueryEncoder, stretch

_STRIDE = 32  # of the coarsest feature map
_MAX_TOKENS = 77  # of a sentence or query, as its processor has it


class OmDetTurboNetwork:
    """See `detector_network.Network`.

    Raises:
        ConfigError: the checkpoint cannot be loaded, or `image_size` does not suit it.
    """

    def __init__(self, config: GroundingConfig) -> None:
        if config.image_size % _STRIDE:
            raise ConfigError(
                f"grounding.image_size: {config.image_size} is not a multiple of {_STRIDE}, as {config.model!r} needs "
                "it; use one, or 0 for the checkpoint's own"
            )
        self._checkpoint = Checkpoint(config)
        self._model = self._checkpoint.model
        self._size = config.image_size or self._own_size(config.model)
        self._encoder = QueryEncoder(self._encode, at_once=self._checkpoint.texts_at_once)

    def _own_size(self, model: str) -> int:
        size = self._checkpoint.processor.size
        if not size.height or size.height != size.width or size.height % _STRIDE:
            raise ConfigError(
                f"grounding.image_size: {model!r} names no square of a multiple of {_STRIDE} pixels as its own input "
                f"size ({size}); set image_size"
            )
        return int(size.height)

    def prepare(self, image: Image.Image) -> Pixels:
        """The image, stretched to a square of `grounding.image_size`."""
        return stretch(image, size=self._size, resample=Image.Resampling.BILINEAR)

    @torch.inference_mode()
    def predict(
        self, batch: Sequence[Pixels], queries: Sequence[Sequence[str]], *, threshold: float
    ) -> list[Candidates]:
        """See `detector_network.Network`."""
        asked = self._encoder.ask(queries)
        sentences_BL = self._tokens([f"Detect {', '.join(texts)}." for texts in queries])
        sentence_LBD, sentence_mask_BL = self._model.language_backbone(
            sentences_BL["input_ids"], mask=sentences_BL["attention_mask"], encode_type="task"
        )
        maps = self._model.encoder(self._model.vision_backbone(self._checkpoint.normalised(batch)))
        found = self._model.decoder(
            maps.extracted_states, asked.embeddings_ND[asked.places_BQ.T], sentence_LBD, sentence_mask_BL
        )
        logits_BPQ = found.decoder_classes[-1].float().masked_fill(~asked.mask_BQ[:, None], -torch.inf)
        best_BP, query_BP = logits_BPQ.max(dim=-1)
        return self._checkpoint.candidates(found.decoder_coords[-1], best_BP.sigmoid(), query_BP, threshold=threshold)

    def _encode(self, texts: list[str]) -> torch.Tensor:
        """Embeddings of queries, (N, D)."""
        embeddings_ND: torch.Tensor = self._model.language_backbone(
            self._tokens(texts)["input_ids"], encode_type="class"
        )
        return embeddings_ND

    def _tokens(self, texts: list[str]) -> Any:
        return self._checkpoint.tokenizer(
            texts, padding="max_length", truncation=True, max_length=_MAX_TOKENS, return_tensors="pt"
        ).to(self._checkpoint.device)
