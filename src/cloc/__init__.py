"""CLOC: contrastive localized language-image pre-training, and the pipeline that makes such models.

`from cloc import CLOC` loads a trained model; see `cloc.model.api`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cloc.model.api import CLOC as CLOC

__version__ = "0.1.0"
__all__ = ["CLOC", "__version__"]


def __getattr__(name: str) -> Any:
    """Imports CLOC when it is asked for: the command line must not wait for torch."""
    if name == "CLOC":
        from cloc.model.api import CLOC

        return CLOC
    raise AttributeError(f"module 'cloc' has no attribute {name!r}")
