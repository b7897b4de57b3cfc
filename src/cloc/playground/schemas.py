"""What requests and answers of the API hold: the schema at /openapi.json is made of these."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from cloc.boxes import problem
from cloc.playground import limits
from cloc.playground.engine import Box, Point

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=limits.TEXT)]
ImageName = Annotated[str, StringConstraints(pattern="^[0-9a-f]{32}$")]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Cosine = Annotated[float, Field(description="Cosine of the two embeddings.")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Region(_Body):
    """A box or a point, in shares of the picture: [0, 0] is its top left, [1, 1] its bottom right."""

    box: tuple[Share, Share, Share, Share] | None = Field(None, description="x1, y1, x2, y2.")
    point: tuple[Share, Share] | None = Field(None, description="x, y.")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.box is None) == (self.point is None):
            raise ValueError("give a box or a point")
        if self.box is not None and (reason := problem(self.box)):
            raise ValueError(f"{reason}: give x1, y1, x2, y2 with x1 < x2 and y1 < y2")
        return self

    @property
    def place(self) -> Box | Point:
        """The one that was given."""
        place = self.box or self.point
        assert place is not None
        return place


Regions = Annotated[list[Region], Field(min_length=1, max_length=limits.REGIONS)]


class _Asked(_Body):
    model: Text = Field(description="Name of a model, as /api/state lists them.")
    image: ImageName = Field(description="Name of a picture, as POST /api/images gives it.")
    reader: Text | None = Field(None, description="How regions are read; the model's default unless given.")


class ClassifyRequest(_Asked):
    """Which label fits each region?"""

    regions: Regions
    labels: Annotated[list[Text], Field(min_length=1, max_length=limits.LABELS)]


class EmbedRequest(_Asked):
    """Embeddings of regions."""

    regions: Regions


class FindRequest(_Asked):
    """Where is what a phrase describes?"""

    phrase: Text


class SearchRequest(_Body):
    """Which regions of the data are like a text, or like a region of a picture?"""

    model: Text
    text: Text | None = None
    image: ImageName | None = None
    region: Region | None = None
    count: Annotated[int, Field(ge=1, le=limits.RESULTS)] = 12

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.text is None) == (self.image is None) or (self.image is None) != (self.region is None):
            raise ValueError("give a text, or an image and a region of it")
        return self


class Failure(BaseModel):
    """Why there is no answer."""

    error: str


class ImageAnswer(BaseModel):
    """A picture that requests can name."""

    image: str
    width: int = Field(description="Of the original as it is seen, pixels.")
    height: int


class Label(BaseModel):
    """A label of a ranking."""

    label: str
    score: float = Field(description="Probability among the labels, by the model's own temperature.")
    cosine: Cosine


class RankedRegion(BaseModel):
    """A region and the labels, best first."""

    box: Box = Field(description="What was read: of a point the box around it, where the model takes no points.")
    ranking: list[Label]


class ClassifyAnswer(BaseModel):
    """A ranking a region."""

    model: str
    reader: str
    regions: list[RankedRegion]


class EmbedAnswer(BaseModel):
    """An embedding of unit length a region."""

    model: str
    reader: str
    embeddings: list[list[float]]


class FindAnswer(BaseModel):
    """Where a phrase is."""

    model: str
    reader: str
    box: Box | None = Field(description="None for a model that was not trained to find boxes.")
    peak: Point = Field(description="Centre of the cell that is most like the phrase.")
    low: Cosine
    high: Cosine
    picture: str = Field(description="The picture under its heat map: a JPEG as a data URL.")


class Hit(BaseModel):
    """A region of the data."""

    sample: int
    box: Box
    text: str = Field(description='What the data says of the region, "" for nothing.')
    score: Cosine


class SearchAnswer(BaseModel):
    """The best region of each of the best images."""

    model: str
    results: list[Hit]


class Sample(BaseModel):
    """An image of the data."""

    sample: int
    key: str
    width: int
    height: int
    caption: str


class SamplesAnswer(BaseModel):
    """Some images of the data, and how many can be listed so far."""

    total: int
    samples: list[Sample]


class ModelState(BaseModel):
    """A model of this server."""

    name: str
    source: str
    readers: list[str]
    reader: str = Field(description="How regions are read unless a request says otherwise.")
    dense_reader: str = Field(description="The same for heat maps and the index.")
    grounds: bool = Field(description="Whether it was trained to find boxes.")
    points: bool = Field(description="Whether it was trained with points.")
    indexed: int = Field(description="Images that its index holds so far.")
    searchable: bool


class DataState(BaseModel):
    """The data behind this server."""

    name: str
    images: int
    total: int
    failure: str


class State(BaseModel):
    """What this server has."""

    version: str
    models: list[ModelState]
    data: DataState | None
