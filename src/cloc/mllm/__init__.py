"""Adapter tuning: the encoder in a language model that refers to and grounds regions (METHOD, Evaluation, MLLM).

`from cloc.mllm import Chat, load_adapter` asks and loads a tuned one; see `cloc.mllm.api` and `cloc.mllm.saving`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cloc.mllm.api import Answer as Answer
    from cloc.mllm.api import Chat as Chat
    from cloc.mllm.saving import load_adapter as load_adapter

__all__ = ["Answer", "Chat", "load_adapter"]


def __getattr__(name: str) -> Any:
    """Imports what is asked for: the stage's pure modules must not wait for torch."""
    if name in ("Answer", "Chat"):
        from cloc.mllm import api

        return getattr(api, name)
    if name == "load_adapter":
        from cloc.mllm.saving import load_adapter

        return load_adapter
    raise AttributeError(f"module 'cloc.mllm' has no attribute {name!r}")
