"""Captioning by models of `transformers`: tiny checkpoints of the real classes, loaded as public ones are.

Captions are held against the class's own `generate`, called as its documentation calls it.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer, GenerationConfig
from transformers.utils import is_num2words_available, is_torchvision_available

from cloc.config import Config
from cloc.data.dataset import Dataset, LabeledSample
from cloc.data.shards import Sample
from cloc.errors import ClocError, ConfigError
from cloc.labeling import captioning
from cloc.labeling.captioner_inputs import ChatReader, ContinuingReader, InstructedReader
from cloc.labeling.captioner_transformers import Sampler, TransformersCaptioner
from cloc.labeling.captioners import QUESTION
from cloc.labeling.worker import Item
from tests import tiny_chat, tiny_models

MAKERS = {
    "blip": tiny_models.save_blip,
    "git": tiny_chat.save_git,
    "encoder_decoder": tiny_chat.save_encoder_decoder,
    "blip2": tiny_chat.save_blip2,
    "llava": tiny_chat.save_llava,
    "qwen": tiny_chat.save_qwen,
    "idefics": tiny_chat.save_idefics,
}
CONTINUING, CHATS = ("blip", "git", "encoder_decoder"), ("llava", "qwen", "idefics")
# What stands before and after the question of a chat, written out by hand.
AROUND = {
    "llava": ("<s>USER: <image>\n", " ASSISTANT:"),
    "qwen": ("<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>", "<|im_end|>\n<|im_start|>assistant\n"),
    "idefics": ("<|im_start|>user:<image>", "<end_of_utterance>\nAssistant:"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {name: make(folder / f"tiny-{name}") for name, make in MAKERS.items()}


def settings(folder: str, **changes) -> Config:
    section = {"backend": "transformers", "model": folder, "batch_size": 3, "dtype": "float32"} | changes
    section["generation"] = {"max_new_tokens": 8} | changes.get("generation", {})
    return Config.model_validate({"captioning": section})


def captioner(folder: str, **changes) -> TransformersCaptioner:
    return TransformersCaptioner(settings(folder, **changes).captioning)


@cache
def _shared(folder: str, changes: str) -> TransformersCaptioner:
    return captioner(folder, **json.loads(changes))


def shared(folder: str, **changes) -> TransformersCaptioner:
    """A captioner of a folder that stays as it is, loaded once."""
    return _shared(folder, json.dumps(changes, sort_keys=True))


@cache
def own_model(folder: str):
    return AutoModelForImageTextToText.from_pretrained(folder).eval()


def noise(width: int, height: int, *, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))


PICTURES = [noise(60, 40), noise(60, 40, seed=1), noise(30, 90, seed=2), noise(64, 64, seed=3), noise(90, 30, seed=4)]


def item(image: Image.Image, key: str = "a", *, alt_text: str = "") -> Item:
    return Item(image, LabeledSample(Sample(key, b"", meta={"alt_text": alt_text} if alt_text else {})))


def say(backend: TransformersCaptioner, *items: Item) -> list[str]:
    """The captions of images, batched by bucket as the worker does."""
    buckets: dict[object, list[int]] = {}
    prepared = [backend.prepare(one) for one in items]
    for place, one in enumerate(prepared):
        buckets.setdefault(backend.bucket(one), []).append(place)
    texts = {}
    for places in buckets.values():
        for place, said in zip(places, backend.caption([prepared[place] for place in places]), strict=True):
            (texts[place],) = said.texts
    return [texts[place] for place in range(len(items))]


def reference(folder: str, name: str, image: Image.Image, prompt: str = "", **generation) -> str:
    """What the checkpoint says by its own processor and `generate`, one image at a time."""
    model, reader = own_model(folder), shared(folder)._reader
    generation = {"max_new_tokens": 8, "do_sample": False} | generation
    if name not in CHATS:
        pictures = getattr(reader, "_image_processor", None) or reader._processor.image_processor
        inputs = dict(pictures(images=image, return_tensors="pt"))
        tokens = model.generate(**inputs, **generation)
        return reader.tokenizer.decode(tokens[0], skip_special_tokens=True).strip()
    before, after = AROUND[name]
    text = f"{before}{prompt or QUESTION}{after}"
    inputs = reader._processor(images=[image], text=[text], add_special_tokens=False, return_tensors="pt")
    tokens = model.generate(**inputs, **generation)
    return reader.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("name", ["blip", "git", "encoder_decoder"])
def test_a_prompt_longer_than_the_decoder_leaves_room_for_the_caption(folders, name):
    backend = shared(folders[name], alt_text_prompt="{alt_text}")
    inputs = backend.prepare(item(PICTURES[0], alt_text="red box " * 50)).inputs
    length = next(inputs[key].shape[1] for key in ("decoder_input_ids", "input_ids") if key in inputs)
    assert 20 < length < 64 - 8
    assert len(say(backend, item(PICTURES[0], alt_text="red box " * 50))) == 1


@pytest.mark.parametrize("name", MAKERS)
def test_captions_are_those_of_the_models_own_generate(folders, name):
    said = say(shared(folders[name]), *map(item, PICTURES))
    assert said == [reference(folders[name], name, image) for image in PICTURES]
    assert all(said)
    assert name == "blip" or len(set(said)) > 1  # the tiny BLIP says the same of every image


@pytest.mark.parametrize("name", MAKERS)
def test_a_batch_says_what_its_images_say_alone(folders, name):
    backend = shared(folders[name], alt_text_prompt="a red {alt_text}", prompt="a blue box")
    alt_texts = ["box", "", "ball and key", "", "large apple and small key left of a box"]
    items = [item(image, alt_text=text) for image, text in zip(PICTURES, alt_texts, strict=True)]
    together = say(backend, *items)
    assert together == [say(backend, one)[0] for one in items]
    assert len(set(together)) > 1


def test_each_kind_of_model_has_its_reader(folders):
    kinds = {name: type(shared(folder)._reader) for name, folder in folders.items()}
    expected = {**dict.fromkeys(CONTINUING, ContinuingReader), **dict.fromkeys(CHATS, ChatReader)}
    assert kinds == expected | {"blip2": InstructedReader}


def test_pictures_of_one_shape_share_a_batch_and_others_do_not(folders):
    for name, groups in {"llava": 1, "blip": 1, "idefics": 2, "qwen": 1}.items():
        backend = shared(folders[name])
        assert len({backend.bucket(backend.prepare(item(image))) for image in PICTURES}) == groups
    backend = shared(folders["qwen"], prompt="Say")
    small, large = (backend.prepare(item(noise(side, side))) for side in (16, 78))
    assert large.inputs["input_ids"].shape[1] - small.inputs["input_ids"].shape[1] == 15
    assert backend.bucket(small) != backend.bucket(large)


# Prompts.


@pytest.mark.parametrize("name", CONTINUING)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_caption_begins_with_the_text_that_it_continues(folders, name, dtype):
    backend = shared(folders[name], prompt="a red", dtype=dtype)
    (said,) = backend.caption([backend.prepare(item(PICTURES[0]))])
    assert said.texts[0].startswith("a red ")
    assert said.prompt == ""


@pytest.mark.parametrize("name", CONTINUING)
def test_an_alt_text_that_was_continued_is_no_part_of_the_caption(folders, name):
    plain, fused = (
        shared(folders[name], prompt="a red key"),
        shared(folders[name], alt_text_prompt="a {alt_text}"),
    )
    (whole,), (rest,) = say(plain, item(PICTURES[0])), say(fused, item(PICTURES[0], alt_text="red  key"))
    assert rest
    assert whole == f"a red key {rest}"


def test_the_prompt_of_a_continuing_model_is_given_as_its_documentation_does(folders):
    """GIT: [CLS] and the words, no [SEP]; BLIP: the whole, of which its own generation takes the end away."""
    image = PICTURES[0]
    for name in CONTINUING:
        model, tokenizer = own_model(folders[name]), AutoTokenizer.from_pretrained(folders[name])
        pixels = shared(folders[name])._reader._image_processor(images=image, return_tensors="pt").pixel_values
        whole = torch.tensor([tokenizer("a red").input_ids])
        given = {
            "blip": {"input_ids": whole},
            "git": {"input_ids": whole[:, :-1]},
            "encoder_decoder": {"decoder_input_ids": whole[:, :-1]},
        }[name]
        tokens = model.generate(pixel_values=pixels, **given, max_new_tokens=8, do_sample=False)
        expected = tokenizer.decode(tokens[0], skip_special_tokens=True).strip()
        assert say(shared(folders[name], prompt="a red"), item(image)) == [expected]


@pytest.mark.parametrize("name", CHATS)
def test_a_chat_model_is_asked_the_question_that_is_set(folders, name):
    backend = shared(folders[name], prompt="Which colours?", alt_text_prompt="What is {alt_text}?")
    plain, fused = (backend.prepare(item(PICTURES[0], alt_text=text)) for text in ("", "a {curly} {alt_text}"))
    for prepared, question in ((plain, "Which colours?"), (fused, "What is a {curly} {alt_text}?")):
        written = backend._reader.tokenizer.decode(prepared.inputs["input_ids"][0])
        before, after = AROUND[name]
        assert question in written
        assert written.endswith(f"{question}{after}")
        assert written.startswith(before.partition("<image>")[0].partition("<|image_pad|>")[0])
    said = backend.caption([plain])
    assert said[0].texts[0] == reference(folders[name], name, PICTURES[0], "Which colours?")
    assert [one.prompt for one in (*said, *backend.caption([fused]))] == ["Which colours?", "What is"]


@pytest.mark.parametrize("name", CHATS)
def test_an_alt_text_cannot_write_the_models_own_tokens(folders, name):
    """A token of an image would be an image too many; an end of turn would begin an answer of its own."""
    backend = shared(folders[name], alt_text_prompt="What is {alt_text}?")
    tokens = [token.content for token in backend._reader.tokenizer.added_tokens_decoder.values()]
    hostile = f"a dog {' '.join(tokens)} and {tokens[0][:3]}{tokens[-1]}{tokens[0][3:]} a cat"
    prepared = backend.prepare(item(PICTURES[0], alt_text=hostile))
    clean = backend.prepare(item(PICTURES[0], alt_text="nothing"))
    special = backend._reader.tokenizer.all_special_ids + [
        backend._reader.tokenizer.convert_tokens_to_ids(token) for token in tokens
    ]
    counts = [
        sum(one.inputs["input_ids"][0].tolist().count(token) for token in set(special)) for one in (prepared, clean)
    ]
    assert counts[0] == counts[1]
    assert prepared.prompt.text.startswith("What is a dog ")
    assert say(backend, item(PICTURES[0], alt_text=hostile))[0]


def test_an_instructed_model_answers_alone(folders):
    backend = shared(folders["blip2"], prompt="What is this?")
    (said,) = backend.caption([backend.prepare(item(PICTURES[0]))])
    assert said.prompt == "What is this?"
    assert "What is this?" not in said.texts[0]
    assert said.texts != tuple(say(shared(folders["blip2"]), item(PICTURES[0])))
    model, processor = own_model(folders["blip2"]), backend._reader._processor
    inputs = processor(images=PICTURES[0], text="What is this?", return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0]
    length = inputs["input_ids"].shape[1]
    new = tokens[length:] if torch.equal(tokens[:length], inputs["input_ids"][0]) else tokens
    assert said.texts == (processor.tokenizer.decode(new, skip_special_tokens=True).strip(),)


# Generation.


@pytest.mark.parametrize("name", ["blip", "qwen", "encoder_decoder"])
def test_beams_and_repetition_penalty_are_those_of_generate(folders, name):
    for generation in ({"num_beams": 3}, {"repetition_penalty": 3.0}):
        said = say(shared(folders[name], generation=generation), *map(item, PICTURES[:2]))
        assert said == [reference(folders[name], name, image, **generation) for image in PICTURES[:2]]
        assert name == "blip" or said != say(shared(folders[name]), *map(item, PICTURES[:2]))


def test_what_is_not_set_is_the_checkpoints_own(tmp_path):
    folder = tiny_chat.save_llava(tmp_path / "llava")
    own = GenerationConfig.from_pretrained(folder)
    own.update(num_beams=3, repetition_penalty=3.0, max_length=20, num_return_sequences=2, return_dict_in_generate=True)
    own.save_pretrained(folder)
    generation = {
        "num_beams": 3,
        "repetition_penalty": 3.0,
        "num_return_sequences": 1,
        "return_dict_in_generate": False,
    }
    expected = reference(folder, "llava", PICTURES[0], **generation)
    assert say(captioner(folder), item(PICTURES[0])) == [expected]
    assert expected != say(captioner(tiny_chat.save_llava(tmp_path / "other")), item(PICTURES[0]))[0]


@pytest.mark.parametrize("name", ["blip", "git", "qwen"])
def test_samples_depend_on_the_image_and_the_seed_and_on_nothing_else(folders, name):
    generation = {"temperature": 1.5, "top_p": 0.9, "seed": 3}
    items = [item(image, key=str(key)) for key, image in enumerate(PICTURES)]
    backend = shared(folders[name], generation=generation)
    torch.manual_seed(0)
    said = say(backend, *items)
    torch.manual_seed(1)
    assert say(backend, *reversed(items)) == said[::-1]
    assert [say(backend, one)[0] for one in items] == said
    assert say(shared(folders[name], generation={**generation, "seed": 4}), *items) != said
    assert say(shared(folders[name]), *items) != said


def test_a_checkpoint_that_samples_is_sampled_from(tmp_path):
    folder = tiny_chat.save_llava(tmp_path / "llava")
    greedy = say(captioner(folder), item(PICTURES[0]))
    own = GenerationConfig.from_pretrained(folder)
    own.update(do_sample=True, temperature=2.0, top_k=5)
    own.save_pretrained(folder)
    backend = captioner(folder)
    assert (backend._generation.temperature, backend._generation.top_k) == (2.0, 5)
    assert say(backend, item(PICTURES[0])) == say(captioner(folder), item(PICTURES[0])) != greedy


def test_samples_are_distributed_as_the_softmax():
    logits_V = torch.tensor([2.0, 1.0, 0.0, -1.0, -torch.inf])
    sampler = Sampler(range(4000))
    drawn = sampler(torch.zeros(4000, 1), logits_V.expand(4000, -1)).argmax(dim=1).bincount(minlength=5) / 4000
    np.testing.assert_allclose(drawn, logits_V.softmax(0), atol=0.03)
    assert drawn[-1] == 0


def test_beams_and_sampling_exclude_each_other(folders):
    with pytest.raises(ConfigError, match=r"^captioning.generation: num_beams 2 and temperature 1 exclude each other"):
        captioner(folders["llava"], generation={"num_beams": 2, "temperature": 1.0})


def test_no_image_waits_for_another_to_be_prepared(folders):
    """Fast tokenizers fail when two threads change their settings: preparing must change none."""
    for name in CHATS:
        backend = shared(folders[name], alt_text_prompt="What is {alt_text}?")
        items = [item(noise(40, 40, seed=seed), alt_text="word " * seed) for seed in range(40)]
        with ThreadPoolExecutor(8) as pool:
            many = list(pool.map(backend.prepare, items))
        for one, prepared in zip(items, many, strict=True):
            alone = backend.prepare(one)
            assert all(torch.equal(alone.inputs[key], prepared.inputs[key]) for key in alone.inputs)


def test_nothing_that_is_prepared_holds_the_image(folders):
    for name, folder in folders.items():
        prepared = captioner(folder, dtype="bfloat16").prepare(item(noise(512, 512)))
        floats = [value.dtype for value in prepared.inputs.values() if value.is_floating_point()]
        assert set(floats) == {torch.bfloat16}, name
        assert sum(value.nbytes for value in prepared.inputs.values()) < 200_000


def test_a_model_spread_over_devices_says_the_same(folders):
    assert say(captioner(folders["llava"], device_map="auto"), *map(item, PICTURES)) == say(
        captioner(folders["llava"]), *map(item, PICTURES)
    )


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is here: the processor is complete")
def test_a_processor_for_videos_is_left_out_where_it_cannot_be_loaded(folders):
    processor = shared(folders["qwen"])._reader._processor
    assert type(processor).__name__ == "Qwen2VLProcessor"
    assert processor.image_processor is not None


def test_a_library_that_a_checkpoint_needs_is_named_where_it_is_absent(tmp_path):
    folder = tiny_chat.save_smolvlm(tmp_path / "smolvlm")
    if not is_num2words_available():
        refusal(lambda: captioner(folder), "cannot load .*num2words")
        return
    assert len(set(say(captioner(folder), *map(item, PICTURES)))) > 1


# What is wrong with a checkpoint.


def refusal(make, line: str) -> None:
    with pytest.raises(ConfigError, match=rf"^captioning.model: {line}") as error:
        make()
    assert "\n" not in str(error.value)


def test_a_model_that_is_not_there_or_of_another_kind_is_one_clear_line(tmp_path, make_dataset):
    data = make_dataset(tmp_path / "data", 4)
    (tmp_path / "empty").mkdir()
    for model in (str(tmp_path / "empty"), tiny_models.save_owl(tmp_path / "owl", "owlv2")):
        refusal(lambda model=model: run(settings(model), data, tmp_path / "out"), f"cannot load '{model}'")


def test_a_broken_checkpoint_and_a_wrong_folder_are_one_clear_line(tmp_path):
    folder = tiny_models.save_blip(tmp_path / "model")
    weights = tmp_path / "model/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refusal(lambda: captioner(folder), "cannot load")
    refusal(lambda: captioner(str(tmp_path / "nowhere")), r"there is no folder '.*/nowhere'")


@pytest.mark.parametrize(
    ("template", "line"),
    [
        ("{% for message in messages %}USER: <image>{% endfor %}", "the chat template of '.*' leaves the question out"),
        (
            "{% for message in messages %}{{ message['content'][1]['text'] }}{% endfor %}",
            "'.*' cannot caption a test image",
        ),
        ("{{ raise_exception('no images') }}", "the chat template of '.*' fails .*no images"),
        ("{% for message in messages %", "the chat template of '.*' fails"),
    ],
)
def test_a_template_that_does_not_work_is_one_clear_line(tmp_path, template, line):
    folder = tiny_chat.save_llava(tmp_path / "llava", template=template)
    refusal(lambda: captioner(folder), line)


def test_a_checkpoint_without_its_processor_is_one_clear_line(tmp_path):
    folder = tiny_chat.save_llava(tmp_path / "llava")
    for path in (tmp_path / "llava").glob("*processor_config.json"):
        path.unlink()
    refusal(lambda: captioner(folder), ".*llava")
    folder = tiny_chat.save_encoder_decoder(tmp_path / "other")
    for path in (tmp_path / "other").glob("tokenizer*"):
        path.unlink()
    refusal(lambda: captioner(folder), "cannot load")


def test_a_vocabulary_that_does_not_fit_the_model_is_one_clear_line(tmp_path):
    folder = tiny_chat.save_git(tmp_path / "git")
    tiny_chat.byte_tokenizer(["[CLS]", "[SEP]"], cls_token="[CLS]", sep_token="[SEP]").save_pretrained(folder)
    refusal(lambda: captioner(folder, prompt="a red"), r"'.*' cannot caption a test image \(IndexError")


def test_values_that_are_no_numbers_are_one_clear_line(folders):
    backend = captioner(folders["llava"])
    with torch.no_grad():
        backend._model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(ClocError, match=r"^captioning.model: .* not finite \(captioning.dtype is float32\)"):
        say(backend, item(PICTURES[0]))


def test_too_little_memory_is_one_clear_line(folders, monkeypatch):
    backend = captioner(folders["llava"])

    def full(**_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(backend._model, "generate", full)
    with pytest.raises(ClocError, match=r"out of memory with 2 images .* lower captioning.batch_size"):
        backend.caption([backend.prepare(item(image)) for image in PICTURES[:2]])
    with pytest.raises(ClocError, match=r"out of memory with '.*' and one image"):
        backend._probe()


# The stage.


def run(config: Config, data: str, out):
    return captioning.run(config, inputs=captioning.Inputs(data=data), outputs=captioning.Outputs(captions=str(out)))


@pytest.mark.parametrize("name", ["blip", "idefics"])
def test_captioning_stage_keeps_the_alt_text_and_names_the_model(tmp_path, make_dataset, folders, name):
    data = make_dataset(tmp_path / "data", 6, broken=[5])
    guards = {"min_words": 1, "repeated_ngram": 0}
    config = settings(folders[name], guards=guards).model_copy(
        update={"data": Config().data.model_copy(update={"quarantine_limit": 0.2})}
    )
    result = run(config, data, tmp_path / "out")
    assert (result.counts["labelled"], result.counts["quarantined"]) == (5, 1)
    for sample in Dataset.open(data, captions=tmp_path / "out").read_all():
        if sample.sample.key == "000005":
            assert sample.captions == ()
            continue
        generated, alt_text = sample.captions
        assert (generated["kind"], generated["model"]) == ("generated", f"tiny-{name}")
        assert (alt_text["kind"], alt_text["text"]) == ("alt_text", sample.sample.meta["alt_text"])
    assert run(config, data, tmp_path / "out").counts["skipped"] == 6


def test_a_model_that_was_fitted_again_in_the_same_folder_labels_again(tmp_path, make_dataset):
    data, model = make_dataset(tmp_path / "data", 4), tmp_path / "teacher"
    config = settings(tiny_models.save_blip(model, seed=0), guards={"min_words": 1, "repeated_ngram": 0})
    run(config, data, tmp_path / "out")
    tiny_models.save_blip(model, seed=1)
    assert run(config, data, tmp_path / "out").counts["skipped"] == 0
    assert run(config, data, tmp_path / "out").counts["skipped"] == 4


@pytest.mark.gpu
@pytest.mark.parametrize("name", MAKERS)
def test_a_gpu_says_what_the_processor_says(folders, name):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    for generation in ({}, {"num_beams": 3}):
        gpu = say(shared(folders[name], device="cuda", generation=generation), *map(item, PICTURES))
        assert gpu == say(shared(folders[name], device="cpu", generation=generation), *map(item, PICTURES))
    assert say(shared(folders[name], device="cuda", dtype="bfloat16"), *map(item, PICTURES))
