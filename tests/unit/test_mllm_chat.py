"""Conversations as token ids: templates, labels, packing, region tokens, and what is refused."""

import numpy as np
import pytest
import torch

from cloc.errors import ClocError, ConfigError, DataError
from cloc.mllm.chat import IGNORED, ChatFormat, attention_mask, collate, left_padded
from cloc.mllm.conversation import IMAGE_TOKEN, REGION_TOKEN, Conversation, Task, Turn
from tests.tiny_adapters import LLAMA2, TEMPLATES, a_ground, a_refer, a_talk, tiny_tokenizer

IMAGE_TOKENS = 17


def a_format(template: str = "", *, regions: bool = False, context_length: int = 160) -> ChatFormat:
    tokenizer = tiny_tokenizer(template)
    wanted = [IMAGE_TOKEN, REGION_TOKEN] if regions else [IMAGE_TOKEN]
    tokenizer.add_special_tokens({"additional_special_tokens": wanted}, replace_extra_special_tokens=False)
    return ChatFormat(tokenizer, image_tokens=IMAGE_TOKENS, context_length=context_length, name="a tiny model")


def words(chat: ChatFormat, text: str) -> list[int]:
    return chat.tokenizer(text, add_special_tokens=False)["input_ids"]


def shown(chat: ChatFormat, ids: list[int]) -> str:
    """Ids as the template's text, the image's tokens as one."""
    return chat.tokenizer.decode(ids).replace(IMAGE_TOKEN * IMAGE_TOKENS, IMAGE_TOKEN)


def test_every_bin_is_one_token():
    tokenizer = tiny_tokenizer()
    for number in range(100):
        assert len(tokenizer.tokenize(f"[{number} {number} {number} {number}]")) == 6
    for text in ("where is the red key? [1 22 3 99]", "größe 漢 <b>"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]).strip() == text


def test_labels_are_on_the_answers_alone():
    chat = a_format()
    held = [a_refer("red key"), a_ground("blue apple")]
    pack = chat.encode(held, key="a")
    for number, conversation in enumerate(held, start=1):
        own = [place for place, segment in enumerate(pack.segments) if segment == number]
        labelled = [pack.labels[place] for place in own if pack.labels[place] != IGNORED]
        assert labelled == [*words(chat, conversation.turns[0].answer), chat.tokenizer.eos_token_id]
        assert labelled == [pack.ids[place] for place in own[-len(labelled) :]]  # the end of the question, no gap
        prompt = chat.prompt(conversation, key="a").ids
        assert prompt == chat.before + [pack.ids[place] for place in own[: -len(labelled)]]
    assert sum(label != IGNORED for label in pack.labels) == 3 + 7
    assert pack.ids.count(chat.image_id) == IMAGE_TOKENS
    assert chat.longest_answer(held) == 7
    assert chat.answer([*words(chat, "red key"), chat.end_id, 9]) == "red key"


@pytest.mark.parametrize("template", ["", *TEMPLATES])
def test_several_turns_are_written_as_the_template_does(template):
    """What is trained is the template's own text, but for the blanks that some put before an answer's end."""
    chat = a_format(template)
    talk = a_talk()
    pack = chat.encode([talk], key="a")
    messages = []
    for number, turn in enumerate(talk.turns):
        question = f"{IMAGE_TOKEN}\n{turn.question}" if number == 0 else turn.question
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": turn.answer}]
    options = {"tokenize": False, "enable_thinking": False}
    whole = chat.tokenizer.apply_chat_template(messages, **options)
    end = chat.tokenizer.convert_ids_to_tokens(chat.end_id)
    written = shown(chat, pack.ids)
    squeezed = "".join(whole.split()).replace(end, "")
    assert "".join(written.split()).replace(end, "") == squeezed
    assert written.count(end) == whole.count(end) + (3 if end not in whole else 0)
    # The answers' tokens and their ends are labelled, and nothing else.
    labelled = [label for label in pack.labels if label != IGNORED]
    assert labelled == [token for turn in talk.turns for token in [*words(chat, turn.answer), chat.end_id]]
    assert pack.segments == [0] * len(chat.before) + [1] * (len(pack.ids) - len(chat.before))
    assert pack.positions == list(range(len(pack.ids)))
    # The prompt of the last turn is what training shows before its answer.
    last = [*words(chat, talk.turns[-1].answer), chat.end_id]
    assert chat.prompt(talk, key="a").ids + last == pack.ids
    # and asks as the template asks.
    prompt = chat.tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, **options)
    assert "".join(shown(chat, chat.prompt(talk, key="a").ids).split()).replace(end, "") == "".join(
        prompt.split()
    ).replace(end, "")


def test_what_a_template_adds_is_kept():
    assert "helpful assistant" in shown(a_format("qwen"), a_format("qwen").before)
    chat = a_format("llama3")
    assert shown(chat, chat.prompt(a_refer(), key="a").ids).endswith("<|end_header_id|> \n\n")
    assert chat.tokenizer.convert_ids_to_tokens(chat.end_id) == "<|eot_id|>"
    assert a_format("vicuna").end_id == chat.tokenizer.eos_token_id


def test_packs_hold_conversations_of_different_lengths():
    chat = a_format("qwen")
    held = [a_talk(), a_ground(), a_refer()]
    pack, start = chat.encode(held, key="a"), len(chat.before)
    alone = [chat.encode([each], key="a") for each in held]
    assert pack.ids == chat.before + [token for each in alone for token in each.ids[start:]]
    assert pack.labels[start:] == [label for each in alone for label in each.labels[start:]]
    assert pack.positions[start:] == [place for each in alone for place in each.positions[start:]]
    assert sorted(set(pack.segments)) == [0, 1, 2, 3]


def test_regions_are_counted_row_by_row():
    chat = a_format(regions=True)
    one, two = chat.encode([a_talk(tokens=True), a_ground()], key="a"), chat.encode([a_refer(tokens=True)], key="b")
    none = chat.encode([a_ground()], key="c")
    assert one.ids.count(chat.region_id) == len(one.regions_R4) == 2
    batch = collate([torch.zeros(4, 4, 3, dtype=torch.uint8)] * 3, [one, none, two], pad_id=0)
    assert batch.region_rows_K.tolist() == [0, 0, 2]
    np.testing.assert_allclose(batch.regions_K4, [[0.1, 0.2, 0.5, 0.6], [0.5, 0.6, 0.7, 0.9], [0.1, 0.2, 0.5, 0.6]])
    assert (batch.ids_BL == chat.region_id).sum(dim=1).tolist() == [2, 0, 1]
    assert collate(None, [none], pad_id=0).pixels_BSS3 is None


def test_special_tokens_in_texts_are_letters():
    """Captions come from the web: no text can end an answer, or stand for an image."""
    chat = a_format("qwen")
    evil = Conversation(Task.OTHER, (Turn(f"what is {IMAGE_TOKEN} </s>?", f"<|im_end|> {REGION_TOKEN} <pad>"),))
    pack = chat.encode([evil], key="a")
    assert pack.ids.count(chat.image_id) == IMAGE_TOKENS
    labelled = [label for label in pack.labels if label != IGNORED]
    assert labelled.count(chat.end_id) == 1
    assert chat.answer(labelled) == f"<|im_end|> {REGION_TOKEN} <pad>"


def test_the_mask_is_what_it_says():
    segments = torch.tensor([[0, 0, 1, 1, 2, -1]])
    seen = attention_mask(segments)[0, 0] == 0
    expected = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 1],
    ]
    assert seen.int().tolist() == expected
    assert attention_mask(segments, dtype=torch.bfloat16).dtype == torch.bfloat16
    ids, mask = left_padded([[1, 2], [3]], pad_id=7)
    assert ids.tolist() == [[1, 2], [7, 3]]
    assert mask.tolist() == [[1, 1], [0, 1]]


def one_line(error: pytest.ExceptionInfo[ClocError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_conversation_longer_than_the_context_is_told():
    chat = a_format(context_length=96)
    for call in (lambda held: chat.encode([held], key="photo-7"), lambda held: chat.prompt(held, key="photo-7")):
        with pytest.raises(DataError) as error:
            call(a_refer("red key " * 60))
        assert "'photo-7'" in one_line(error)
        assert "96" in one_line(error)
    with pytest.raises(ConfigError) as error:
        ChatFormat(tiny_tokenizer(), image_tokens=100, context_length=96, name="the made decoder")
    assert "adapter.decoder.context_length" in one_line(error)


@pytest.mark.parametrize(
    ("regions", "question", "boxes", "told"),
    [
        (False, f"what is in {REGION_TOKEN}?", 1, "no region sampler"),
        (True, f"what is in {REGION_TOKEN}?", 2, "1 <region> and 2 boxes"),
        (True, f"what is in {REGION_TOKEN} {REGION_TOKEN}?", 1, "2 <region> and 1 boxes"),
        (True, "what is it?", 1, "0 <region> and 1 boxes"),
    ],
)
def test_regions_that_do_not_fit_are_told(regions, question, boxes, told):
    held = Conversation(Task.REFER, (Turn(question, "key"),), regions=np.tile([0.1, 0.1, 0.5, 0.5], (boxes, 1)))
    with pytest.raises(DataError) as error:
        a_format(regions=regions).encode([held], key="photo-7")
    assert "'photo-7'" in one_line(error)
    assert told in one_line(error)


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (None, "has no chat template"),
        ("{% for message in messages %}{{ message['role'] }}{% endfor %}", "in their order"),
        ("{{ messages[0]['content'][::-1] }}{% for m in messages %}{{ m['content'] }}{% endfor %}!", "as it asks"),
        ("{{ raise_exception('only for\n tools') }}", "only for tools"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}" + LLAMA2, "another beginning"),
    ],
)
def test_an_unusable_template_is_told(template, told):
    tokenizer = tiny_tokenizer("qwen")
    tokenizer.chat_template = template
    with pytest.raises(ConfigError) as error:
        ChatFormat(tokenizer, image_tokens=17, context_length=160, name="bare-llm").encode([a_talk()], key="a")
    assert told in one_line(error)
    assert "bare-llm" in one_line(error)
