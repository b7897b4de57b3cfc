"""From images and texts to tensors: tokenizer and letterbox, saved beside the weights (METHOD, Training).

Images: long side resized, then padded to the square, boxes mapped. Text: lower-cased, at most `context_length` tokens.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPTokenizer, SiglipImageProcessorPil

from cloc.boxes import Letterbox
from cloc.data.transforms import PIXEL_MEAN, PIXEL_STD, letterbox
from cloc.errors import ConfigError

_BOS, _EOS = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(texts: Iterable[str], *, vocab_size: int, context_length: int) -> CLIPTokenizer:
    """Trains a BPE tokenizer of CLIP's kind on texts; equal texts give an equal tokenizer.

    Raises:
        ConfigError: there is no text.
    """
    bpe = Tokenizer(models.BPE(unk_token=_EOS, end_of_word_suffix="</w>", continuing_subword_prefix=""))
    bpe.normalizer = normalizers.Lowercase()
    # CLIP's own splitting, so that the vocabulary fits the tokenizer that will use it.
    reference = CLIPTokenizer(vocab={_BOS: 0, _EOS: 1}, merges=[])
    bpe.pre_tokenizer = reference.backend_tokenizer.pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_BOS, _EOS],
        initial_alphabet=sorted(alphabet),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    counted = 0

    def stream() -> Iterable[str]:
        nonlocal counted
        for text in texts:
            counted += 1
            yield text

    bpe.train_from_iterator(stream(), trainer)
    if not counted:
        raise ConfigError("cannot train a tokenizer: the data set has no captions; set model.text.tokenizer")
    vocab, merges = _complete(bpe)
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=context_length)


def _complete(bpe: Tokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges in CLIP's order: specials, bytes, bytes at the end of a word, merges.

    The trainer numbers end-of-word symbols in the order of a hash table, which differs between processes, and knows
    only those it met; with all of them no text is out of the vocabulary.
    """
    merges: list[tuple[str, str]] = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = [_BOS, _EOS, *alphabet, *(f"{symbol}</w>" for symbol in alphabet), *("".join(pair) for pair in merges)]
    return {entry: number for number, entry in enumerate(dict.fromkeys(entries))}, merges


class CLOCProcessor:
    """Tokenizer and image transform of one model.

    Attributes:
        tokenizer: a `transformers` tokenizer.
        image_size: side of the network input, pixels.
        context_length: longest text, tokens.
        pad_to_full_length: whether texts are padded to `context_length` (SigLIP) or to the longest of a batch.
        pixel_mean, pixel_std: normalisation of RGB in [0, 1].
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        image_size: int,
        context_length: int,
        pad_to_full_length: bool = False,
        pixel_mean: Sequence[float] = PIXEL_MEAN,
        pixel_std: Sequence[float] = PIXEL_STD,
    ) -> None:
        self.tokenizer, self.image_size, self.context_length = tokenizer, image_size, context_length
        self.pad_to_full_length = pad_to_full_length
        self.pixel_mean, self.pixel_std = tuple(pixel_mean), tuple(pixel_std)

    @classmethod
    def for_model(cls, config: Any, *, tokenizer: str | Path, images: str | Path | None) -> "CLOCProcessor":
        """The processor of a model.

        Args:
            config: the model's configuration.
            tokenizer: folder or hub id that holds the tokenizer.
            images: folder or hub id whose image processor says how pixels are normalised; None: as CLIP.

        Raises:
            ConfigError: there is no tokenizer, or no image processor.
        """
        mean, std = (PIXEL_MEAN, PIXEL_STD) if images is None else pixel_statistics(str(images))
        return cls(
            _tokenizer(str(tokenizer)),
            image_size=config.vision_config.image_size,
            context_length=config.text_config.max_position_embeddings,
            pad_to_full_length=config.model_type == "siglip",
            pixel_mean=mean,
            pixel_std=std,
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the tokenizer and an image processor that describes the normalisation."""
        self.tokenizer.save_pretrained(str(folder))
        described: dict[str, Any] = {"image_mean": list(self.pixel_mean), "image_std": list(self.pixel_std)}
        square = {"height": self.image_size, "width": self.image_size}
        if self.pad_to_full_length:
            SiglipImageProcessorPil(size=square, **described).save_pretrained(str(folder))
        else:
            size = {"shortest_edge": self.image_size}
            CLIPImageProcessorPil(size=size, crop_size=square, **described).save_pretrained(str(folder))

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Lower-cased, truncated, padded: T texts -> token ids (T, L).

        No mask is needed: CLIP's text encoder is causal and pools at the first end-of-text token; SigLIP's was trained
        with its padding in sight.
        """
        coded = self.tokenizer(
            [text.lower() for text in texts],
            padding="max_length" if self.pad_to_full_length else "longest",
            truncation=True,
            max_length=self.context_length,
            return_attention_mask=False,
            return_tensors="pt",
        )
        ids: Tensor = coded["input_ids"]
        return ids

    def letterbox(self, image: Image.Image) -> tuple[npt.NDArray[np.uint8], Letterbox]:
        """An RGB image -> (S, S, 3) uint8 and the map of its boxes."""
        return letterbox(image, size=self.image_size)

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Images -> normalised network input (B, 3, S, S) float32."""
        return self.normalize(torch.from_numpy(np.stack([self.letterbox(image)[0] for image in images])))

    def normalize(self, pixels_BSS3: Tensor) -> Tensor:
        """uint8 pixels (B, S, S, 3) -> network input (B, 3, S, S) float32."""
        return normalize(pixels_BSS3, mean=self.pixel_mean, std=self.pixel_std)


def normalize(pixels_BSS3: Tensor, *, mean: Sequence[float] = PIXEL_MEAN, std: Sequence[float] = PIXEL_STD) -> Tensor:
    """uint8 pixels (B, S, S, 3) -> network input (B, 3, S, S) float32, by CLIP's mean and deviation unless told."""
    mean_C11 = torch.tensor(mean, device=pixels_BSS3.device).view(3, 1, 1)
    std_C11 = torch.tensor(std, device=pixels_BSS3.device).view(3, 1, 1)
    return (pixels_BSS3.permute(0, 3, 1, 2).float() / 255 - mean_C11) / std_C11


def _tokenizer(source: str) -> Any:
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no tokenizer in {source}: {str(error).splitlines()[0]}") from None


def pixel_statistics(source: str) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and deviation of a checkpoint's image processor. Raises ConfigError when it names none."""
    try:
        described, _ = CLIPImageProcessorPil.get_image_processor_dict(source)
        return described["image_mean"], described["image_std"]
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"{source}: no image_mean and image_std in its preprocessor_config.json ({reason}); how its pixels are "
            "normalised must be known"
        ) from None
