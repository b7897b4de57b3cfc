"""A start in closed form, in place of gradient descent's first steps: what is seen, in the decoder's words.

LLaVA's first stage shows projector and region sampler many captions until they say what they see in the language of the
decoder. Here both are regressions onto the words of regions' phrases, the same for every encoder:

    projector   each patch onto the words of the regions that cover it (ridge regression)
    sampler     of a named decoder, each region onto the words of its phrase (ridge regression)
                of a made one, whose words may be anything: noise is whitened, and its output layer takes the means of
                what words name (linear discriminants), so that a decoder which hands on what it reads has only to learn
                where to look. Its attention starts so: values and outputs undo each other

Shapes: K regions, E width of what the sampler reads, X patches, W width of the encoder's tokens, T tokens that phrases
are written with, V all tokens, D decoder width, H hidden units, I inputs and O outputs of a layer.
"""

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cloc.config.schema import AdapterConfig
from cloc.data.dataset import Dataset
from cloc.errors import DataError
from cloc.mllm.features import looked_at
from cloc.mllm.model import Adapter
from cloc.mllm.sampler import prefix_tokens
from cloc.model.prompter import coverage

_PATCHES = 16  # of an image that the projector is fitted on
_COVERED = 0.5  # share of a patch from which a region covers it
_RIDGE = 1e-2  # added to a covariance, as a share of its mean diagonal
_FEW = 3.0  # regions that a word's mean is drawn to the mean of all by
_VISUAL = 0.75  # share of a made decoder's width for what words look like; the rest is for the words themselves
_NOTHING = 1e-6  # of the largest axis, up to which one is none
_SHIFT = 2.0  # deviations by which hidden units lie above 0, where GELU is nearly linear
_QUIET = 0.1  # how large a made decoder's MLPs start, beside what they would


@dataclass(frozen=True)
class Sight:
    """What is seen of an image, and what it is called.

    Attributes:
        key: of the image.
        texts: of its regions.
        regions_KE: what the sampler reads of each; (K, 0) without a sampler.
        patches_XW: some of its patches.
        covers_XK: which regions cover them, bool.
    """

    key: str
    texts: Sequence[str]
    regions_KE: Tensor
    patches_XW: Tensor
    covers_XK: Tensor


@torch.no_grad()
def look(
    adapter: Adapter,
    dataset: Dataset,
    settings: AdapterConfig,
    *,
    keep: Callable[[str, bytes], bool],
    rank: int = 0,
    ranks: int = 1,
) -> list[Sight]:
    """Sees the first `align_images` images that have regions; of several ranks each its share.

    Args:
        adapter: the model.
        dataset: the training data.
        settings: section `adapter`.
        keep: which images may be used, by key and encoded image.
        rank, ranks: which process of how many.

    Raises:
        DataError: an image cannot be decoded.
    """
    usable = (each for each in dataset.read_all() if each.regions and keep(each.sample.key, each.sample.image))
    samples, found = islice(usable, settings.align_images), list[Sight]()
    for picture, features_ND in looked_at(adapter, samples, settings, rank=rank, ranks=ranks):
        if regions := picture.facts.regions:
            boxes_K4 = torch.stack([torch.from_numpy(region.padded).float() for region in regions])
            found.append(_sight(adapter, picture.key, features_ND, [each.text for each in regions], boxes_K4))
    return found


def _sight(adapter: Adapter, key: str, features_ND: Tensor, texts: Sequence[str], boxes_K4: Tensor) -> Sight:
    patches_XW = features_ND[prefix_tokens(adapter.model.config.vision_config) :]
    stride = max(1, len(patches_XW) // _PATCHES)
    chosen_X = torch.arange(zlib.crc32(key.encode()) % stride, len(patches_XW), stride)
    covers_KX = coverage(boxes_K4[None], grid=math.isqrt(len(patches_XW)))[0] > _COVERED
    rows_K = torch.zeros(len(boxes_K4), dtype=torch.long, device=features_ND.device)
    read_KE = adapter.read(features_ND[None], boxes_K4.to(features_ND.device), rows_K)
    regions_KE = features_ND.new_zeros(len(boxes_K4), 0) if read_KE is None else read_KE
    return Sight(key, texts, regions_KE.cpu(), patches_XW.cpu()[chosen_X], covers_KX.T[chosen_X])


@torch.no_grad()
def align(adapter: Adapter, seen: Sequence[Sight], *, seed: int) -> None:
    """Changes projector and sampler, and of a made decoder words, output layer and attention, in place.

    The sampler of a made decoder is not trained afterwards: its words are what it says already.

    Args:
        adapter: the model, new.
        seen: of all ranks, in any order.
        seed: of the random directions.

    Raises:
        DataError: nothing was seen.
    """
    if not seen:
        raise DataError("adapter.align: no training image has a region; run grounding first, or set it to none")
    seen = sorted(seen, key=lambda sight: sight.key)  # sums come out alike, however many ranks there are
    generator, made = torch.Generator().manual_seed(seed), not adapter.language_model
    texts = [text for sight in seen for text in sight.texts]
    ids: list[list[int]] = adapter.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    sampler, regions_KE = adapter.sampler, torch.cat([sight.regions_KE for sight in seen])
    if sampler is not None:
        regions_KE = F.layer_norm(regions_KE, regions_KE.shape[1:])
    if made:
        _hand_on(adapter.decoder, generator)
    if made and sampler is not None:
        _name(adapter, regions_KE.double(), ids, generator)
    words_VD = adapter.model.get_input_embeddings().weight.double().cpu()
    phrases_KD = torch.stack([words_VD[row].sum(dim=0) for row in ids])
    if not made and sampler is not None:
        _regress(sampler.mlp[1], sampler.mlp[3], regions_KE.double(), phrases_KD, generator)
    projector = adapter.model.model.multi_modal_projector
    patches_XW = torch.cat([sight.patches_XW for sight in seen]).double()
    _regress(projector.linear_1, projector.linear_2, patches_XW, _patch_words(seen, phrases_KD), generator)


def _patch_words(seen: Sequence[Sight], phrases_KD: Tensor) -> Tensor:
    """What each patch is to say (X, D): the mean of the phrases of the regions that cover it, 0 where none does."""
    found, start = [], 0
    for sight in seen:
        own_KD = phrases_KD[start : start + len(sight.texts)]
        covers_XK = sight.covers_XK.to(own_KD)
        found.append(covers_XK @ own_KD / covers_XK.sum(dim=1, keepdim=True).clamp_min(1))
        start += len(sight.texts)
    return torch.cat(found)


def _regress(first: Any, second: Any, inputs_XI: Tensor, targets_XO: Tensor, generator: torch.Generator) -> None:
    """Fits linear, GELU, linear: the whitened inputs in random directions (of more inputs than hidden units those that
    tell most about the targets), then a ridge regression."""
    mean_I, deviations_XI = _centred(inputs_XI)
    mean_O, targets_XO = _centred(targets_XO)
    hidden, inputs = first.weight.shape
    weight_HI = _rotation(max(hidden, inputs), generator)[:hidden, :inputs]
    whitening_II = _whitening(deviations_XI)
    if hidden < inputs:
        axes_IH = torch.linalg.svd(whitening_II @ deviations_XI.T @ targets_XO).U[:, :hidden]
        weight_HI = weight_HI @ axes_IH @ axes_IH.T
    weight_HI = weight_HI @ whitening_II
    _set(first, weight_HI, _SHIFT - weight_HI @ mean_I)
    mean_H, units_XH = _centred(F.gelu(deviations_XI @ weight_HI.T + _SHIFT))
    gram_HH = units_XH.T @ units_XH
    weight_HO = torch.linalg.solve(gram_HH + _ridge(gram_HH), units_XH.T @ targets_XO)
    _set(second, weight_HO.T, mean_O - mean_H @ weight_HO)


def _name(adapter: Adapter, inputs_KE: Tensor, ids: Sequence[Sequence[int]], generator: torch.Generator) -> None:
    """Lets the output layer read the words of phrases where what they name lies, and sets the sampler to say it.

    A region is taken for the sum of what its words look like, and noise: looks are a ridge regression of regions on
    bags of words. In the space in which the noise is white, the product of a region with a look tells how well the word
    fits (Fisher's discriminant). Looks are turned into random directions of the decoder. Outside of them lie these
    words as it reads them, so that what it has said adds nothing to what it sees, and a direction that marks regions.
    """
    assert adapter.sampler is not None
    tokens = sorted({token for row in ids for token in row})
    place = {token: number for number, token in enumerate(tokens)}
    bags_KT = inputs_KE.new_zeros(len(ids), len(tokens))
    for number, row in enumerate(ids):
        bags_KT[number, [place[token] for token in row]] = 1
    mean_E, inputs_KE = _centred(inputs_KE)
    counts_T, (_, bags_KT) = bags_KT.sum(dim=0), _centred(bags_KT)
    gram_TT = bags_KT.T @ bags_KT
    looks_TE = torch.linalg.solve(gram_TT + _FEW * torch.eye(len(gram_TT)).to(gram_TT), bags_KT.T @ inputs_KE)
    whitening_EE = _whitening(inputs_KE - bags_KT @ looks_TE)
    looks_TE = looks_TE @ whitening_EE
    words_VD, head_VD = adapter.model.get_input_embeddings().weight, adapter.model.lm_head.weight
    width = words_VD.shape[1]
    _, sizes_X, axes_XE = torch.linalg.svd(counts_T.sqrt()[:, None] * looks_TE, full_matrices=False)
    axes_XE = axes_XE[sizes_X > _NOTHING * sizes_X[0]][: int(_VISUAL * width)]
    turn_DD = _rotation(width, generator)
    turn_ED = _nearest_rotation(axes_XE.T @ axes_XE @ _normal(axes_XE.T.shape, generator)) @ turn_DD[: len(axes_XE)]
    outside_DD = turn_DD[len(axes_XE) :].T @ turn_DD[len(axes_XE) :]
    outside_TD = words_VD[tokens] @ outside_DD.to(words_VD)
    words_VD[tokens] = outside_TD * words_VD.std() / outside_TD.std()
    head_VD.copy_(F.normalize(words_VD, dim=1))
    head_VD[tokens] = F.normalize(looks_TE @ turn_ED, dim=1).to(head_VD)
    weight_DE = (whitening_EE @ turn_ED).T
    mark_D = math.sqrt(width) * turn_DD[len(axes_XE)]
    _set(adapter.sampler.mlp[1], weight_DE, _SHIFT - weight_DE @ mean_E)
    _set(adapter.sampler.mlp[3], torch.eye(width), mark_D - _SHIFT)
    adapter.sampler.settled = True


def _hand_on(decoder: Any, generator: torch.Generator) -> None:
    """Starts a Llama so that attention hands on what it reads, and its MLPs say little."""
    for layer in decoder.layers:
        values, output = layer.self_attn.v_proj.weight, layer.self_attn.o_proj.weight
        turn_DD = _rotation(len(values), generator).to(values)
        values.copy_(turn_DD)
        output.copy_(turn_DD.T)
        layer.mlp.down_proj.weight.mul_(_QUIET)


def _centred(rows_XI: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (I,), and the rows without it."""
    mean_I = rows_XI.mean(dim=0)
    return mean_I, rows_XI - mean_I


def _ridge(gram_II: Tensor) -> Tensor:
    return _RIDGE * gram_II.diagonal().mean() * torch.eye(len(gram_II)).to(gram_II)


def _whitening(deviations_XI: Tensor) -> Tensor:
    """The symmetric matrix (I, I) that makes rows white, as far as the ridge lets it."""
    covariance_II = deviations_XI.T @ deviations_XI / len(deviations_XI)
    values_I, vectors_II = torch.linalg.eigh(covariance_II + _ridge(covariance_II))
    whitening_II: Tensor = vectors_II * values_I.clamp_min(1e-12).rsqrt() @ vectors_II.T
    return whitening_II


def _rotation(width: int, generator: torch.Generator) -> Tensor:
    """A random orthogonal matrix, float64."""
    rotation: Tensor = torch.linalg.qr(_normal((width, width), generator)).Q
    return rotation


def _nearest_rotation(matrix_IO: Tensor) -> Tensor:
    """The matrix with orthonormal columns that is nearest: the same whatever axes the matrix was made from."""
    left, _, right = torch.linalg.svd(matrix_IO, full_matrices=False)
    nearest: Tensor = left @ right
    return nearest


def _normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _set(layer: Any, weight_OI: Tensor, bias_O: Tensor) -> None:
    layer.weight.copy_(weight_OI)
    layer.bias.copy_(bias_O)
