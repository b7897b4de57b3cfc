"""Conversations and referring expressions that others wrote, read as they are (LLaVA, Ferret, ViP-LLaVA, RefCOCO).

    for item in read_conversations("llava.json", images="coco/train2017", frame_of=partial(Letterbox, size=336)): ...
    for item in read_referring("refcoco.json", images="coco/train2014", frame_of=..., split="testA"): ...

Each item is an image with its conversations, boxes in the padded network input. Files are read as streams: what they
hold is never in memory as a whole. `ConversationStore` is for training, which takes items in any order.
"""

from cloc.mllm.foreign.boxes import BoxFrame
from cloc.mllm.foreign.conversations import read_conversations
from cloc.mllm.foreign.items import ForeignImage
from cloc.mllm.foreign.referring import read_referring
from cloc.mllm.foreign.store import ConversationStore

__all__ = ["BoxFrame", "ConversationStore", "ForeignImage", "read_conversations", "read_referring"]
