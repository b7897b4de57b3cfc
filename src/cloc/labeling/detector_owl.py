"""OWLv2 and OWL-ViT: every patch proposes one box, and is compared with the queries' text embeddings (METHOD, VESL
step 3). Shapes: B images, P patches (= boxes), Q queries, N distinct texts, L tokens, D width.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from PIL import Image

from cloc.config.schema import GroundingConfig
from cloc.errors import ConfigError
from cloc.labeling.detector_network import (
    Candidates,
    Checkpoint,
    Pixels,
    QueryEncoder,
    letterbox,
    stretch,
)

PREPARATIONS: Mapping[str, Callable[..., Pixels]] = {
    "owlv2": letterbox,
    "owlvit": partial(stretch, resample=Image.Resampling.BICUBIC),
}


class OwlNetwork:
    """See `detector_network.Network`.

    Raises:
        ConfigError: the checkpoint cannot be loaded, or `image_size` does not suit its patches.
    """

    def __init__(self, config: GroundingConfig) -> None:
        self._checkpoint = Checkpoint(config)
        self._model = self._checkpoint.model
        vision = self._model.config.vision_config
        if config.image_size % vision.patch_size:
            raise ConfigError(
                f"grounding.image_size: {config.image_size} is not a multiple of {config.model!r}'s patches "
                f"of {vision.patch_size} pixels; use one, or 0 for the checkpoint's own {vision.image_size}"
            )
        self._size = config.image_size or vision.image_size
        self._resized = self._size != vision.image_size
        # In float32 whatever the model's precision: bfloat16 would move boxes by up to a 256th of the image.
        side = self._size // vision.patch_size
        self._box_bias_P4 = self._model.compute_box_bias(side, side).float().to(self._checkpoint.device)
        self._place = PREPARATIONS[self._model.config.model_type]
        self._encoder = QueryEncoder(self._encode, at_once=self._checkpoint.texts_at_once)

    def prepare(self, image: Image.Image) -> Pixels:
        """The image in a square of `grounding.image_size`."""
        return self._place(image, size=self._size)

    @torch.inference_mode()
    def predict(
        self, batch: Sequence[Pixels], queries: Sequence[Sequence[str]], *, threshold: float
    ) -> list[Candidates]:
        """See `detector_network.Network`."""
        asked = self._encoder.ask(queries)
        map_BHWD, _ = self._model.image_embedder(
            pixel_values=self._checkpoint.normalised(batch), interpolate_pos_encoding=self._resized
        )
        features_BPD = map_BHWD.flatten(1, 2)
        logits_BPQ, _ = self._model.class_predictor(features_BPD, asked.embeddings_ND[asked.places_BQ], asked.mask_BQ)
        boxes_BP4 = (self._model.box_head(features_BPD).float() + self._box_bias_P4).sigmoid()
        best_BP, query_BP = logits_BPQ.float().max(dim=-1)
        return self._checkpoint.candidates(boxes_BP4, best_BP.sigmoid(), query_BP, threshold=threshold)

    def _encode(self, texts: list[str]) -> torch.Tensor:
        """Unit embeddings of queries, (N, D)."""
        tokens_NL = self._checkpoint.tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=self._model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(self._checkpoint.device)
        output = self._model.base_model.get_text_features(
            input_ids=tokens_NL["input_ids"], attention_mask=tokens_NL["attention_mask"]
        )
        return torch.nn.functional.normalize(output.pooler_output, dim=-1)
