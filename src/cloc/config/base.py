"""The base of all settings sections: frozen, strict, unknown keys refused."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A section of the settings. Every field has a docstring, which is its help text everywhere."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )
