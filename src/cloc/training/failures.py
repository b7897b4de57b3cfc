"""What stopped a rank, in one line that says what to do."""

from cloc.config import Config
from cloc.errors import ClocError


def explained(error: BaseException, config: Config) -> ClocError | None:
    """The failure that a user can act on; None for a defect, which keeps its traceback."""
    return error if isinstance(error, ClocError) else None
