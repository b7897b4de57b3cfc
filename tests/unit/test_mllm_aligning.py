"""The start in closed form: what is read of images, what regions, patches and words say then, what training changes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from cloc.config.schema import AdapterConfig
from cloc.data.dataset import Dataset
from cloc.errors import DataError
from cloc.mllm.aligning import Sight, align, look
from cloc.mllm.building import name_adapter
from cloc.mllm.model import Adapter
from tests.conftest import write_dataset
from tests.integration.tuning_runs import ADAPTER, config, everything, tuning_of
from tests.tiny_adapters import make_tiny, save_decoder

CPU = torch.device("cpu")
COLORS, THINGS = ("red", "green", "blue", "yellow"), ("box", "ball", "key", "apple")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset.open(write_dataset(tmp_path_factory.mktemp("eight"), 8))


def shown(texts: list[str], width: int, *, noise: float = 0.3, seed: int = 0) -> list[Sight]:
    """An image a text: its region is the sum of what its words look like, and noise; a patch shows it, another none."""
    looks = dict(zip(WORDS, torch.randn(len(WORDS), width, generator=torch.Generator().manual_seed(9)), strict=True))
    generator, found = torch.Generator().manual_seed(seed), []
    for text in texts:
        region_KE = sum(looks[word] for word in text.split()) + noise * torch.randn(1, width, generator=generator)
        patches_XW = torch.cat([region_KE, noise * torch.randn(1, width, generator=generator)])
        found.append(Sight(f"{len(found):04d}", [text], region_KE, patches_XW, torch.tensor([[True], [False]])))
    return found


WORDS = (*COLORS, *THINGS)
TEXTS = [f"{color} {thing}" for color in COLORS for thing in THINGS] * 20


def ids_of(adapter: Adapter, words: tuple[str, ...]) -> torch.Tensor:
    rows = adapter.tokenizer(list(words), add_special_tokens=False)["input_ids"]
    assert all(len(row) == 1 for row in rows)
    return torch.tensor(rows)[:, 0]


def said(adapter: Adapter, sights: list[Sight], words: tuple[str, ...]) -> list[str]:
    """The word of a list that the output layer finds in what the sampler says of each region."""
    assert adapter.sampler is not None
    with torch.no_grad():
        spoken_KD = adapter.sampler.mlp(torch.cat([sight.regions_KE for sight in sights]))
        best_K = (spoken_KD @ adapter.model.lm_head.weight[ids_of(adapter, words)].T).argmax(dim=1)
    return [words[index] for index in best_K.tolist()]


def test_regions_of_a_made_decoder_say_their_words(encoder: str) -> None:
    adapter = make_tiny(encoder, region_sampler="roi_align")
    align(adapter, shown(TEXTS, 64), seed=0)
    new = shown(TEXTS, 64, seed=1)
    assert said(adapter, new, COLORS) == [text.split()[0] for text in TEXTS]
    assert said(adapter, new, THINGS) == [text.split()[1] for text in TEXTS]


def test_loud_noise_in_few_directions_is_not_heard(encoder: str) -> None:
    adapter = make_tiny(encoder, region_sampler="roi_align")

    def loud(seed: int) -> list[Sight]:
        generator = torch.Generator().manual_seed(seed)
        direction = torch.randn(1, 64, generator=torch.Generator().manual_seed(99))
        return [
            replace(sight, regions_KE=sight.regions_KE + 5 * torch.randn(1, generator=generator) * direction)
            for sight in shown(TEXTS, 64, seed=seed)
        ]

    align(adapter, loud(0), seed=0)
    right = [text.split()[1] for text in TEXTS]
    heard = said(adapter, loud(1), THINGS)
    assert sum(one == other for one, other in zip(heard, right, strict=True)) > 0.9 * len(right)


@torch.no_grad()
def test_what_is_read_adds_nothing_to_what_is_seen(encoder: str) -> None:
    adapter = make_tiny(encoder, region_sampler="roi_align")
    words_VD, ids_T = adapter.model.get_input_embeddings().weight, ids_of(adapter, WORDS)
    before_VD = words_VD.clone()
    align(adapter, shown(TEXTS, 64), seed=0)
    read_TD, looks_TD = words_VD[ids_T], adapter.model.lm_head.weight[ids_T]
    assert float((looks_TD @ read_TD.T).abs().max()) < 1e-4
    assert float(read_TD.std()) == pytest.approx(float(before_VD.std()), rel=0.01)
    others = torch.ones(len(words_VD), dtype=torch.bool).index_fill(0, ids_T, False)
    assert torch.equal(words_VD[others], before_VD[others])


@torch.no_grad()
def test_patches_say_the_words_of_what_covers_them(encoder: str) -> None:
    adapter = make_tiny(encoder, region_sampler="roi_align")
    align(adapter, shown(TEXTS, 64), seed=0)
    new, words_VD = shown(TEXTS, 64, seed=1), adapter.model.get_input_embeddings().weight
    spoken_XD = adapter.model.model.multi_modal_projector(torch.cat([sight.patches_XW for sight in new]))
    for number, word in enumerate(text.split()[0] for text in TEXTS):
        covered, bare = spoken_XD[2 * number], spoken_XD[2 * number + 1]
        similar = F.normalize(words_VD[ids_of(adapter, COLORS)], dim=1) @ covered
        assert COLORS[int(similar.argmax())] == word
        assert bare.norm() < 0.7 * covered.norm()


@torch.no_grad()
def test_a_named_decoder_keeps_its_words(encoder: str, tmp_path: Path) -> None:
    name = save_decoder(tmp_path / "decoder")
    settings = AdapterConfig(language_model=name, region_sampler="roi_align", lora_rank=4, precision="float32")
    adapter = name_adapter(encoder, settings, device=CPU)
    before = {key: value.clone() for key, value in adapter.model.state_dict().items() if "projector" not in key}
    align(adapter, shown(TEXTS, 64), seed=0)
    assert all(torch.equal(value, adapter.model.state_dict()[key]) for key, value in before.items())
    assert adapter.sampler is not None
    spoken_KD = adapter.sampler.mlp(torch.cat([sight.regions_KE for sight in shown(TEXTS, 64, seed=1)]))
    rows = adapter.tokenizer(TEXTS, add_special_tokens=False)["input_ids"]
    words_VD = adapter.model.get_input_embeddings().weight
    right_KD = torch.stack([words_VD[row].sum(dim=0) for row in rows])
    assert float((spoken_KD - right_KD).pow(2).mean()) < 0.2 * float(right_KD.var(dim=0).mean())
    adapter.trainable()
    assert all(parameter.requires_grad for parameter in adapter.sampler.mlp.parameters())


@torch.no_grad()
def test_attention_of_a_made_decoder_hands_on(encoder: str) -> None:
    adapter = make_tiny(encoder, region_sampler="roi_align")
    align(adapter, shown(TEXTS, 64), seed=0)
    for layer in adapter.decoder.layers:  # type: ignore[union-attr]  # a Llama
        handed = layer.self_attn.o_proj.weight @ layer.self_attn.v_proj.weight
        assert torch.allclose(handed, torch.eye(len(handed)), atol=1e-5)


def test_equal_seeds_align_alike_in_any_order(encoder: str) -> None:
    def aligned(sights: list[Sight], seed: int) -> dict[str, torch.Tensor]:
        adapter = make_tiny(encoder, region_sampler="roi_align")
        align(adapter, sights, seed=seed)
        return adapter.parts.state_dict()

    sights = shown(TEXTS, 64)
    one, same, other = aligned(sights, 0), aligned(sights[::-1], 0), aligned(sights, 1)
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert not torch.equal(one["sampler.mlp.1.weight"], other["sampler.mlp.1.weight"])


@pytest.mark.parametrize("sampler", ["none", "roi_align", "prompter"])
def test_images_are_looked_at_by_shares(encoder: str, eight: Dataset, sampler: str, monkeypatch) -> None:
    monkeypatch.setattr("cloc.mllm.features._PART", 2)
    adapter = make_tiny(encoder, region_sampler=sampler)
    whole = look(adapter, eight, ADAPTER, keep=everything)
    halves = [look(adapter, eight, ADAPTER, keep=everything, rank=rank, ranks=2) for rank in range(2)]
    assert sorted(str(sight.texts) for sight in whole) == sorted(str(sight.texts) for half in halves for sight in half)
    assert [len(half) for half in halves] == [4, 4]
    kept = sum(len(sight.patches_XW.untyped_storage()) for sight in whole)
    assert kept == 4 * 64 * 16 * len(whole)  # bytes: no more of the features is held than is named
    widths = {"none": 0, "roi_align": 64, "prompter": 32}
    for sight in whole:
        assert sight.regions_KE.shape == (2, widths[sampler])
        assert sight.patches_XW.shape == (16, 64)
        assert sight.covers_XK.shape == (16, 2)
    assert sum(int(sight.covers_XK.any(dim=0).sum()) for sight in whole) > 8  # of 16 regions: patches are large here
    align(adapter, whole, seed=0)
    few = ADAPTER.model_copy(update={"align_images": 3})
    assert len(look(adapter, eight, few, keep=everything)) == 3
    assert len(look(adapter, eight, ADAPTER, keep=lambda key, image: key > "000005")) == 2


def test_what_the_sampler_says_is_what_it_read(encoder: str, eight: Dataset) -> None:
    adapter = make_tiny(encoder, region_sampler="roi_align")
    [sight] = look(adapter, eight, ADAPTER.model_copy(update={"align_images": 1}), keep=everything)
    patches = sight.patches_XW  # all 16 of the tiny grid
    means = sight.covers_XK.T.float() @ patches / sight.covers_XK.sum(dim=0)[:, None]
    assert F.cosine_similarity(sight.regions_KE, means).min() > 0.9


def test_without_regions_it_is_told(encoder: str, tmp_path: Path) -> None:
    adapter = make_tiny(encoder, region_sampler="roi_align")
    bare = Dataset.open(write_dataset(tmp_path / "bare", 4, regions=False))
    with pytest.raises(DataError, match=r"adapter\.align: no training image has a region; run grounding first"):
        align(adapter, look(adapter, bare, ADAPTER, keep=everything), seed=0)


def test_training_leaves_the_sampler_as_it_was_aligned(encoder: str, eight: Dataset, tmp_path: Path) -> None:
    adapter = make_tiny(encoder, region_sampler="roi_align")
    align(adapter, look(adapter, eight, ADAPTER, keep=everything), seed=0)
    assert adapter.sampler is not None
    before = {name: value.clone() for name, value in adapter.parts.state_dict().items()}
    tuning_of(adapter, eight, config(), tmp_path / "out").run()
    changed = {name for name, value in adapter.parts.state_dict().items() if not torch.equal(value, before[name])}
    assert not any(name.startswith("sampler.") for name in changed)
    assert "model.lm_head.weight" in changed
