"""The model: what the decoder reads, what the loss counts, what is trained, greedy answers, region samplers."""

import pickle

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import MambaConfig, MambaForCausalLM

from cloc.config.schema import AdapterConfig
from cloc.errors import ClocError, ConfigError
from cloc.mllm import building
from cloc.mllm.answering import generate
from cloc.mllm.building import load_tower, make_adapter, name_adapter
from cloc.mllm.chat import IGNORED, attention_mask, collate
from cloc.mllm.conversation import Conversation, Task, Turn
from cloc.mllm.model import Adapter
from cloc.mllm.tuning import sum_gradients
from cloc.model import factory
from cloc.model.modeling import CLOCModel, CLOCSiglipModel
from cloc.model.processing import normalize
from tests import tiny_adapters as tiny
from tests.tiny_adapters import a_ground, a_refer, a_talk

CPU = torch.device("cpu")
CONFIG = AdapterConfig(lora_rank=4, precision="float32", device="cpu")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    return tiny.save_encoder(tmp_path_factory.mktemp("siglip"), family="siglip")


@pytest.fixture
def adapter(encoder):
    return tiny.make_tiny(encoder)


def logits(adapter: Adapter, held, pixels) -> torch.Tensor:
    """Logits of all tokens behind the shared beginning, by plain LLaVA."""
    chat = adapter.chat()
    batch = collate([pixels], [chat.encode(held, key="a")], pad_id=0)
    output = adapter.model(
        input_ids=batch.ids_BL,
        pixel_values=normalize(batch.pixels_BSS3),
        attention_mask=attention_mask(batch.segments_BL),
        position_ids=batch.positions_BL,
    )
    return output.logits[0, len(chat.before) :]


def test_the_loss_counts_answer_tokens_only(adapter):
    chat = adapter.chat()
    packs = [chat.encode([a_refer("red key")], key="a"), chat.encode([a_talk(), a_refer("yellow")], key="b")]
    pixels = [torch.full((64, 64, 3), fill, dtype=torch.uint8) for fill in (20, 200)]
    batch = collate(pixels, packs, pad_id=0)
    logits_BLV = adapter.model(
        input_ids=batch.ids_BL,
        pixel_values=normalize(batch.pixels_BSS3),
        attention_mask=attention_mask(batch.segments_BL),
        position_ids=batch.positions_BL,
    ).logits
    terms = [
        F.cross_entropy(logits_BLV[row, place - 1], torch.tensor(label))
        for row, pack in enumerate(packs)
        for place, label in enumerate(pack.labels)
        if label != IGNORED
    ]
    loss, tokens = adapter.answer_loss(batch)
    assert int(tokens) == len(terms) == 3 + (3 + 2 + 3) + 2  # each answer's words and its end
    torch.testing.assert_close(loss, torch.stack(terms).sum())


def test_a_loss_by_hand(adapter):
    """A decoder that says nothing but equal odds costs ln(words) an answer's token."""
    with torch.no_grad():
        adapter.model.lm_head.weight.zero_()
    chat = adapter.chat()
    batch = collate(list(tiny.noise(1)), [chat.encode([a_refer("red key"), a_ground()], key="a")], pad_id=0)
    loss, tokens = adapter.answer_loss(batch)
    assert int(tokens) == 3 + 7
    assert float(loss.detach()) == pytest.approx(10 * np.log(len(chat.tokenizer)), rel=1e-5)


def test_packed_conversations_are_blind_to_each_other(adapter):
    held, pixels = [a_refer("red key"), a_talk(), a_refer("yellow ball")], tiny.noise(1)[0]
    alone = [logits(adapter, [each], pixels) for each in held]
    torch.testing.assert_close(logits(adapter, held, pixels), torch.cat(alone), atol=1e-5, rtol=1e-4)
    # and alone, a conversation is an ordinary causal sequence
    chat = adapter.chat()
    for conversation, found in zip(held, alone, strict=True):
        ids = torch.tensor([chat.encode([conversation], key="a").ids])
        plain = adapter.model(input_ids=ids, pixel_values=normalize(pixels[None])).logits[0, len(chat.before) :]
        torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-4)


def test_later_turns_see_earlier_ones(adapter):
    pixels, talk = tiny.noise(1)[0], a_talk()
    turns = (Turn(talk.turns[0].question, "red box"), *talk.turns[1:])
    other = Conversation(Task.OTHER, turns)
    one, two = logits(adapter, [talk], pixels), logits(adapter, [other], pixels)
    assert one.shape == two.shape
    apart = (one - two).abs().amax(dim=-1) > 1e-5
    changed = int(apart.int().argmax())
    assert changed > 5  # what comes before the answer is as it was
    assert apart[changed:].all()


@pytest.mark.parametrize("kind", ["roi_align", "prompter"])
def test_regions_land_at_their_tokens(encoder, kind):
    adapter = tiny.make_tiny(encoder, region_sampler=kind)
    chat, pixels = adapter.chat(), tiny.noise(3)
    held = [[a_talk(tokens=True), a_refer(box=(0, 0, 1, 1), tokens=True)], [a_ground()], [a_refer(tokens=True)]]
    batch = collate(list(pixels), [chat.encode(each, key="a") for each in held], pad_id=0)
    features_BND = adapter.features(pixels)
    embeds_BLD = adapter.embed(batch.ids_BL, features_BND, batch.regions_K4, batch.region_rows_K)
    at_regions = embeds_BLD[batch.ids_BL == chat.region_id]
    expected = []
    for row, conversations in enumerate(held):
        for box in [box for each in conversations for box in each.regions]:
            box_114 = torch.tensor(box, dtype=torch.float32)[None, None]
            read_11E = adapter.sampler.reader(features_BND[row : row + 1], box_114)
            expected.append(adapter.sampler.mlp(read_11E)[0, 0])
    torch.testing.assert_close(at_regions, torch.stack(expected), atol=1e-5, rtol=1e-4)
    # words and images are where they were
    without = adapter.words(batch.ids_BL)
    words = (batch.ids_BL != chat.region_id) & (batch.ids_BL != chat.image_id)
    assert torch.equal(embeds_BLD[words], without[words])
    projected = adapter.model.model.multi_modal_projector(features_BND)
    assert torch.equal(embeds_BLD[batch.ids_BL == chat.image_id], projected.flatten(0, 1))


def test_the_prompter_is_clocs(encoder, siglip):
    boxes_K4 = torch.tensor([[0.1, 0.2, 0.5, 0.6], [0.5, 0.5, 1.0, 0.9]])
    for folder, cls in ((encoder, CLOCModel), (siglip, CLOCSiglipModel)):
        adapter, cloc = tiny.make_tiny(folder, region_sampler="prompter"), cls.from_pretrained(folder)
        pixels = tiny.noise(1)
        values = normalize(pixels, mean=adapter.pixel_mean, std=adapter.pixel_std)
        regions_KE = cloc.get_region_features(values, boxes_K4[None])[0]
        found = adapter.sample(adapter.features(pixels), boxes_K4, torch.zeros(2, dtype=torch.long))
        torch.testing.assert_close(found, adapter.sampler.mlp(regions_KE), atol=1e-5, rtol=1e-4)


def test_roi_align_weighs_by_overlap(encoder):
    """A box over one patch and the half of its right neighbour."""
    adapter = tiny.make_tiny(encoder, region_sampler="roi_align")
    tokens_1ND = torch.randn(1, 17, 64)
    read = adapter.sampler.reader(tokens_1ND, torch.tensor([[[0.25, 0.5, 0.625, 0.75]]]))[0, 0]
    patches = tokens_1ND[0, 1:].unflatten(0, (4, 4))
    torch.testing.assert_close(read, (patches[2, 1] + 0.5 * patches[2, 2]) / 1.5)


@pytest.mark.parametrize("family", ["encoder", "siglip"])
def test_features_kept_are_features_made(family, request):
    adapter = tiny.make_tiny(request.getfixturevalue(family), region_sampler="prompter")
    chat, pixels = adapter.chat(), tiny.noise(2)
    packs = [chat.encode([a_refer(tokens=True), a_ground()], key="a"), chat.encode([a_talk(tokens=True)], key="b")]
    loss, tokens = adapter.answer_loss(collate(list(pixels), packs, pad_id=0))
    kept, same = adapter.answer_loss(collate(None, packs, pad_id=0), adapter.features(pixels))
    assert torch.equal(loss, kept)
    assert torch.equal(tokens, same)
    half, _ = adapter.answer_loss(collate(None, packs, pad_id=0), adapter.features(pixels).bfloat16())
    torch.testing.assert_close(half, loss, rtol=1e-2, atol=0)


def test_spatial_tokens_are_the_papers_layer(adapter, encoder, siglip):
    pixels = tiny.noise(2)
    cloc = CLOCModel.from_pretrained(encoder)
    torch.testing.assert_close(adapter.features(pixels), cloc.encode_image(normalize(pixels)).tokens_BND)
    other = tiny.make_tiny(siglip)
    assert other.image_tokens == 16  # no [CLS]
    assert other.pixel_mean == (0.5, 0.5, 0.5)
    values = normalize(pixels, mean=(0.5,) * 3, std=(0.5,) * 3)
    tokens_BND = CLOCSiglipModel.from_pretrained(siglip).encode_image(values).tokens_BND
    torch.testing.assert_close(other.tower.post_layernorm(other.features(pixels)), tokens_BND)
    for each, mean in ((adapter, None), (other, (0.5,) * 3)):
        values = normalize(pixels) if mean is None else normalize(pixels, mean=mean, std=mean)
        expected = each.model.model.multi_modal_projector(each.features(pixels))
        torch.testing.assert_close(torch.stack(each.model.get_image_features(values).pooler_output), expected)


def test_stages_train_what_they_should(encoder, tmp_path):
    adapter = tiny.make_tiny(encoder, region_sampler="prompter")

    def names(adapter, *args, **options) -> set[str]:
        chosen = {id(parameter) for parameter in adapter.trainable(*args, **options)}
        found = {name for name, value in adapter.parts.named_parameters() if value.requires_grad}
        assert found == {name for name, value in adapter.parts.named_parameters() if id(value) in chosen}
        return found

    projector = {f"model.model.multi_modal_projector.linear_{n}.{part}" for n in (1, 2) for part in ("weight", "bias")}
    mlp = {f"sampler.mlp.{n}.{part}" for n in (0, 1, 3) for part in ("weight", "bias")}
    assert names(adapter, "align") == projector | mlp
    tune = names(adapter, "tune")
    assert {name for name in tune if "language_model" not in name} == projector | mlp | {"model.lm_head.weight"}
    assert len({name for name in tune if "language_model" in name}) == len(list(adapter.decoder.parameters()))
    encoder_too = names(adapter, "tune", train_encoder=True) - tune
    assert len(encoder_too) == len(adapter.encoder_parameters())
    assert all("vision_tower" in name and "post_layernorm" not in name for name in encoder_too)
    assert names(adapter, "align", train_encoder=True) == projector | mlp

    config = CONFIG.model_copy(update={"language_model": tiny.save_decoder(tmp_path / "llm")})
    named = name_adapter(encoder, config, device=CPU)
    assert names(named, "align") == projector
    lora = names(named, "tune") - projector
    assert len(lora) == 2 * 4 * 2  # A and B; q, k, v, o; layers
    assert all("lora_" in name and "language_model" in name for name in lora)


@pytest.mark.parametrize("regions", [True, False])
def test_every_trained_parameter_has_a_gradient(encoder, regions):
    """Those of a region sampler are 0 where a batch has no region: ranks add up the same ones in every step."""
    adapter = tiny.make_tiny(encoder, region_sampler="prompter")
    parameters = adapter.trainable("tune", train_encoder=True)
    batch = collate(list(tiny.noise(1)), [adapter.chat().encode([a_refer(tokens=regions)], key="a")], pad_id=0)
    loss, _ = adapter.answer_loss(batch)
    loss.backward()
    sum_gradients(parameters)
    assert all(parameter.grad is not None for parameter in parameters)
    assert all(parameter.grad is None for parameter in adapter.sampler.reader.parameters())
    moved = [bool(parameter.grad.abs().sum() > 0) for parameter in adapter.sampler.mlp.parameters()]
    assert all(moved) if regions else not any(moved)


def test_checkpointed_gradients_are_the_same(encoder):
    gradients = []
    for checkpointed in (False, True):
        adapter = tiny.make_tiny(encoder, region_sampler="roi_align")
        parameters = adapter.trainable("tune", train_encoder=True)
        if checkpointed:
            adapter.checkpoint_gradients()
        adapter.parts.train()
        batch = collate(list(tiny.noise(1)), [adapter.chat().encode([a_refer(tokens=True)], key="a")], pad_id=0)
        loss, _ = adapter.answer_loss(batch)
        loss.backward()
        gradients.append([parameter.grad for parameter in parameters])
        recomputed = [part for part in adapter.model.modules() if getattr(part, "gradient_checkpointing", False)]
        assert bool(recomputed) == checkpointed
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)


def test_answers_are_those_of_plain_generation(adapter):
    chat, pixels = adapter.chat(), tiny.noise(2)
    held = [a_talk(), a_ground(), a_refer(), a_ground("red ball")]
    prompts, images = [chat.prompt(each, key="a") for each in held], [0, 1, 1, 0]
    adapter.parts.train()
    answers = generate(
        adapter, chat, prompts, adapter.features(pixels), images=images, max_tokens=12, precision="float32"
    )
    assert adapter.model.training  # as it was
    adapter.parts.eval()
    expected = []
    for prompt, image in zip(prompts, images, strict=True):
        ids = torch.tensor([prompt.ids])
        said = adapter.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=normalize(pixels[image : image + 1]),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=chat.end_id,
            pad_token_id=chat.end_id,
        )
        expected.append(chat.answer(said[0, ids.shape[1] :].tolist()))
    assert answers == expected
    assert len(set(answers)) > 2
    rows = adapter.features(pixels)[images]
    assert generate(adapter, chat, prompts, rows, max_tokens=12, precision="float32") == expected
    assert generate(adapter, chat, [], rows, max_tokens=12, precision="float32") == []


def test_answers_end_at_the_end_token_and_at_the_context(adapter):
    chat, features = adapter.chat(), adapter.features(tiny.noise(1))
    prompt = chat.prompt(a_ground(), key="a")
    with torch.no_grad():
        adapter.model.lm_head.weight[chat.end_id] = 0.0
        adapter.model.lm_head.weight.mul_(torch.arange(len(adapter.tokenizer))[:, None] == 7)
        adapter.model.lm_head.weight[8] = -adapter.model.lm_head.weight[7]  # one of both beats the end
    long = chat.prompt(a_refer("a" * 20), key="a")
    calls = []
    adapter.decoder.register_forward_hook(lambda *_: calls.append(1))
    generate(adapter, chat, [prompt, long], features, images=[0, 0], max_tokens=1000, precision="float32")
    # one pass over the image, and one a token, up to the end of the context
    assert len(calls) == 1 + adapter.context_length - max(len(prompt.ids), len(long.ids))
    calls.clear()
    with torch.no_grad():  # equal odds: the first token, which is the end here
        adapter.model.lm_head.weight.zero_()
    chat.end_id = 0
    assert generate(adapter, chat, [prompt], features, max_tokens=50, precision="float32") == [""]
    assert len(calls) == 2


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt_neox", "phi", "gpt2"])
def test_any_causal_language_model(encoder, tmp_path, kind):
    """LoRA in its own attention layers, packs as alone, answers as by plain generation."""
    config = CONFIG.model_copy(
        update={"language_model": tiny.save_decoder(tmp_path / "llm", kind), "region_sampler": "roi_align"}
    )
    adapter = name_adapter(encoder, config, device=CPU)
    layers = {
        name.split(".lora_")[0].rsplit(".", 1)[1] for name, _ in adapter.model.named_parameters() if "lora_" in name
    }
    assert (
        layers
        == {
            "llama": {"q_proj", "k_proj", "v_proj", "o_proj"},
            "qwen2": {"q_proj", "k_proj", "v_proj", "o_proj"},
            "gpt_neox": {"query_key_value", "dense"},
            "phi": {"q_proj", "k_proj", "v_proj", "dense"},
            "gpt2": {"c_attn", "c_proj"},
        }[kind]
    )
    assert not [name for name, _ in adapter.tower.named_parameters() if "lora_" in name]
    chat, pixels = adapter.chat(), tiny.noise(1)
    held = [a_talk(), a_ground()]
    alone = torch.cat([logits(adapter, [each], pixels[0]) for each in held])
    torch.testing.assert_close(logits(adapter, held, pixels[0]), alone, atol=1e-4, rtol=1e-3)
    prompts = [chat.prompt(each, key="a") for each in held]
    answers = generate(
        adapter, chat, prompts, adapter.features(pixels), images=[0, 0], max_tokens=8, precision="float32"
    )
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([prompt.ids])
        said = adapter.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=normalize(pixels),
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=chat.end_id,
            pad_token_id=chat.end_id,
        )
        assert answer == chat.answer(said[0, ids.shape[1] :].tolist())


def test_a_frozen_decoder_in_bfloat16_is_tuned(encoder, tmp_path):
    config = CONFIG.model_copy(
        update={
            "language_model": tiny.save_decoder(tmp_path / "llm"),
            "precision": "bfloat16",
            "region_sampler": "prompter",
        }
    )
    adapter = name_adapter(encoder, config, device=CPU)
    assert adapter.words(torch.tensor([[1]])).dtype == torch.bfloat16
    parameters = adapter.trainable("tune")
    assert {parameter.dtype for parameter in parameters} == {torch.float32}
    batch = collate(list(tiny.noise(1)), [adapter.chat().encode([a_refer(tokens=True)], key="a")], pad_id=0)
    optimizer, losses = torch.optim.AdamW(parameters, lr=1e-2), []
    for _ in range(12):
        with factory.autocast("bfloat16", CPU):
            loss, tokens = adapter.answer_loss(batch)
        optimizer.zero_grad()
        (loss / tokens).backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def one_line(error: pytest.ExceptionInfo[ClocError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_what_cannot_be_built_is_told(encoder, tmp_path):
    tokenizer = tiny.tiny_tokenizer()
    with pytest.raises(ConfigError) as error:
        make_adapter(tmp_path / "nowhere", tokenizer, tiny.DECODER, seed=0)
    assert "nowhere" in one_line(error)
    with pytest.raises(ConfigError) as error:
        load_tower(tiny.save_decoder(tmp_path / "llm"))
    assert "'llama'" in one_line(error)
    with pytest.raises(ConfigError) as error:
        name_adapter(encoder, CONFIG.model_copy(update={"language_model": str(tmp_path / "no-llm")}), device=CPU)
    assert "adapter.language_model" in one_line(error)
    mamba = MambaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, state_size=4)
    MambaForCausalLM(mamba).save_pretrained(tmp_path / "mamba")
    tokenizer.save_pretrained(tmp_path / "mamba")
    with pytest.raises(ConfigError) as error:
        name_adapter(encoder, CONFIG.model_copy(update={"language_model": str(tmp_path / "mamba")}), device=CPU)
    assert "takes no positions" in one_line(error)


def test_a_decoder_without_attention_layers_is_told(adapter):
    adapter.decoder.layers = torch.nn.ModuleList()
    with pytest.raises(ConfigError) as error:
        building._add_lora(adapter.model, rank=4, name="some-llm")
    assert "no linear attention layers in some-llm" in one_line(error)


def test_formats_travel_to_other_processes(adapter):
    chat = pickle.loads(pickle.dumps(adapter.chat()))
    assert chat.encode([a_talk()], key="a").ids == adapter.chat().encode([a_talk()], key="a").ids


def test_a_prompter_needs_trained_region_parts(encoder, tmp_path):
    plain = tiny.save_plain_clip(tmp_path / "plain", encoder)
    clip = tiny.save_encoder(tmp_path / "clip", objective="clip")
    tower = tiny.save_siglip_tower(tmp_path / "tower")
    for folder in (plain, clip, tower):
        with pytest.raises(ConfigError) as error:
            tiny.make_tiny(folder, region_sampler="prompter")
        assert folder in one_line(error)
        assert "trained region parts" in one_line(error)
        assert tiny.make_tiny(folder, region_sampler="roi_align").sampler is not None


def test_a_sampler_leaves_the_rest_as_it_is(encoder):
    """So that adapters with and without one compare: the same seed starts them alike."""
    one, two = tiny.make_tiny(encoder, seed=3), tiny.make_tiny(encoder, seed=3, region_sampler="roi_align")
    state = two.model.state_dict()
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, state[name][: len(value)] if value.ndim else state[name]), name
    assert len(two.tokenizer) == len(one.tokenizer) + 1
    other = tiny.make_tiny(encoder, seed=4).model.state_dict()
    assert not torch.equal(other["lm_head.weight"], one.model.lm_head.weight)
