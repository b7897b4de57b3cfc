"""Memory of a GPU in training, by part.

Weights, gradients and optimiser are counted exactly. Activations are what autograd keeps for backward: each layer's
terms stand below with what keeps them, and a test compares them with what torch really keeps. `parallel.py` says what
FSDP2 shares, and `tiled.py` what the losses hold.

Shapes: B images of a micro-batch, N spatial tokens, D and W widths of the towers, L tokens of a text, M regions an
image, E embedding width, A rows of all processes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from cloc.config import Config
from cloc.training.plan.figures import Figures
from cloc.training.plan.sizes import Sizes, Tower
from cloc.training.task import Objective

GIB = 1 << 30
_FLOAT = 4
# Rows of a tile squared, times the buffers of a pass, in float32, and one of booleans (benchmarks/loss.py: 20.8 MiB).
_TILES = 1024 * 1024 * (5 * _FLOAT + 1)


@dataclass(frozen=True)
class Setting:
    """What an estimate of memory is for.

    Attributes:
        config: all settings.
        objective: "cloc" or "clip".
        ranks: processes.
        bfloat16: whether the model computes in it.
        eager: whether attention keeps its weights (the kernel that processors take in bfloat16).
        processors: whether there are no GPUs, so that the model and the loader share cores.
    """

    config: Config
    objective: Objective
    ranks: int
    bfloat16: bool
    eager: bool = False
    processors: bool = False

    @property
    def local(self) -> int:
        """Images of a process a step."""
        return -(-self.config.train.batch_size // self.ranks)

    @property
    def micro(self) -> int:
        """Images of a process that are in the model at once."""
        return min(self.config.train.micro_batch or self.local, self.local)

    @property
    def kinds(self) -> int:
        """Kinds of prompts of an image: boxes, points, texts."""
        loss = self.config.loss
        prompter = self.config.model.prompter.kind == "transformer"
        return 1 + bool(loss.point_share) + (loss.grounding != "none" and prompter)


@dataclass(frozen=True)
class Memory:
    """Memory of a GPU, bytes.

    Attributes:
        parts: by name; they add up.
        image: of `parts`, what an image of a micro-batch takes.
        limit: what there is, less the reserve.
        micro: images of a micro-batch.
        largest: the largest micro-batch that fits; 0 when none does.
    """

    parts: Mapping[str, float]
    image: float
    limit: float
    micro: int
    largest: int

    @property
    def total(self) -> float:
        """All parts."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether it fits."""
        return self.total <= self.limit


def memory(sizes: Sizes, setting: Setting, figures: Figures) -> Memory:
    """Estimates the memory of a GPU at the peak of a step (where backward begins)."""
    parts = dict(_state(sizes, setting))
    if setting.bfloat16:
        parts["bfloat16 copies of weights"] = 2.0 * _copied(sizes, setting)
    parts["losses"] = losses(sizes, setting)
    parts["batch"] = _batch(sizes, setting, figures)
    parts["context"] = figures("context") * GIB
    image = activations(sizes, setting, figures)
    fixed = sum(parts.values())
    parts["activations"] = image * setting.micro
    limit = figures("gpu_memory") * GIB * (1 - figures("reserve"))
    largest = max(0, min(setting.local, int((limit - fixed) // image)))
    return Memory(parts, image=image, limit=limit, micro=setting.micro, largest=largest)


def state_bytes(sizes: Sizes, config: Config) -> dict[str, float]:
    """Bytes of what a run goes on from, and a checkpoint holds: weights, optimiser, moving average."""
    adamw = sizes.trained - sizes.muon
    return {
        "weights": _FLOAT * float(sizes.parameters),
        "optimiser": _FLOAT * (2.0 * adamw + sizes.muon),
        "moving average": _FLOAT * float(sizes.trained) if config.train.ema else 0.0,
    }


def _state(sizes: Sizes, setting: Setting) -> dict[str, float]:
    state = state_bytes(sizes, setting.config)
    parts = {
        "weights": state["weights"],
        "gradients": _FLOAT * float(sizes.trained),
        "optimiser": state["optimiser"],
        "moving average": state["moving average"],
    }
    if setting.config.train.strategy == "fsdp2" and setting.ranks > 1:
        parts = {name: value / setting.ranks for name, value in parts.items()}
        # What lies outside the towers' layers is whole, and so are the layer that is computed and the one that is
        # fetched meanwhile; with their gradients.
        widest = max(sizes.vision.parameters, sizes.text.parameters)
        parts["whole layers"] = (sizes.outside + 2.0 * widest) * 2 * _FLOAT
    return {name: value for name, value in parts.items() if value}


def _copied(sizes: Sizes, setting: Setting) -> float:
    """Weights of which backward has a copy in bfloat16: all, or with checkpointing those outside the towers' layers."""
    if not setting.config.train.gradient_checkpointing:
        return sizes.linear
    layers = sizes.parameters - sizes.outside
    return max(0, sizes.linear - layers) + max(sizes.vision.parameters, sizes.text.parameters)


def losses(sizes: Sizes, setting: Setting) -> float:
    """Embeddings of this process and of all, their gradients, and the tiles: bytes, float32."""
    rows = setting.local * _FLOAT * sizes.embed_dim
    every = setting.ranks * rows if setting.ranks > 1 else 0
    regions = setting.config.loss.max_regions if setting.objective == "cloc" else 0
    # Both sides and their gradients; gathered texts are kept till backward, which sums the gradients of one loss.
    own, gathered = 4.0 * rows * (1 + regions), every * (1.0 + regions) + every * max(1, regions)
    return own + gathered + _TILES


def _batch(sizes: Sizes, setting: Setting, figures: Figures) -> float:
    """The batch itself: pixels (uint8), token ids (int64); two of them, as one is copied while one is worked on."""
    ids = min(figures("caption_tokens"), sizes.text.tokens)
    if setting.objective == "cloc":
        ids += setting.config.loss.max_regions * min(figures("region_tokens"), sizes.text.tokens)
    return 2.0 * setting.local * (3 * sizes.image_size**2 + 8 * ids)


def activations(sizes: Sizes, setting: Setting, figures: Figures) -> float:
    """What backward needs of an image with its texts and regions, bytes, and its largest temporaries."""
    found = held(sizes, setting, figures)
    return found.kept + found.again + temporary(sizes, setting)


@dataclass(frozen=True)
class Held:
    """Bytes that backward needs of an image.

    Attributes:
        kept: from forward on.
        again: made again by the layer that checkpointing computes twice; one at a time.
    """

    kept: float
    again: float = 0.0

    def __add__(self, other: "Held") -> "Held":
        return Held(self.kept + other.kept, max(self.again, other.again))


def held(sizes: Sizes, setting: Setting, figures: Figures) -> Held:
    """What autograd keeps of an image with its texts and regions."""
    padded = sizes.text.tokens if sizes.family == "siglip" else 0
    tokens = padded or min(figures("caption_tokens"), sizes.text.tokens)
    found = _image(sizes, setting) + _tower(sizes.text, tokens, 1, sizes, setting)
    if setting.objective == "cloc":
        length = padded or min(figures("region_tokens"), sizes.text.tokens)
        found += _tower(sizes.text, length, setting.config.loss.max_regions, sizes, setting)
        found += _regions(sizes, setting)
    return found


def temporary(sizes: Sizes, setting: Setting) -> float:
    """Of an image, bytes: gradients of the largest hidden layer before and behind its non-linearity."""
    hidden = sizes.vision.tokens * sizes.vision.mlp
    if setting.objective == "cloc" and _image_layers(setting):
        hidden = max(hidden, setting.config.loss.max_regions * sizes.vision.tokens * 4 * sizes.vision.width)
    return 2.0 * hidden * _width(setting)


def _width(setting: Setting) -> int:
    """Bytes of what linear layers read and give."""
    return 2 if setting.bfloat16 else _FLOAT


def _image(sizes: Sizes, setting: Setting) -> Held:
    """The image encoder: the patch layer's pixels, CLIP's first normalisation, the layers."""
    tower, width = sizes.vision, _width(setting)
    pixels = 3 * sizes.image_size**2 * width
    ends = tower.tokens * tower.width * _FLOAT
    if sizes.family == "siglip":  # attention pooling: the last normalisation's input, then keys and values of all
        ends += tower.tokens * tower.width * (2 * width + width)
    frozen = setting.config.train.lock == "image"
    return Held(ends) if frozen else Held(pixels + ends) + _tower(tower, tower.tokens, 1, sizes, setting)


def _tower(tower: Tower, tokens: float, sequences: int, sizes: Sizes, setting: Setting) -> Held:
    """A tower's layers for sequences of so many tokens."""
    locked = {"image": sizes.vision, "text": sizes.text}.get(setting.config.train.lock)
    if tower is locked:
        return Held(0.0)
    layer = sequences * (tokens * _layer(tower, sizes, setting) + _attention(tower, tokens, setting))
    stream = sequences * tokens * tower.width * _FLOAT
    if setting.config.train.gradient_checkpointing:
        return Held(stream * (1 + tower.layers), again=layer)
    return Held(stream + tower.layers * layer)


def _layer(tower: Tower, sizes: Sizes, setting: Setting) -> float:
    """Bytes a token that a pre-norm layer keeps, but for attention's weights."""
    width = _width(setting)
    # The stream is float32: two normalisations read it. In bfloat16 queries, keys and values each cast what they read.
    stream = 2 * _FLOAT + (3 + 1 if setting.bfloat16 else 2) * width
    heads = 4 * width  # queries, keys, values, and what attention gives, which the output projection reads
    hidden = (3 if sizes.activation == "quick_gelu" else 2) * width
    return tower.width * (stream + heads) + tower.mlp * hidden


def _attention(tower: Tower, tokens: float, setting: Setting) -> float:
    """Attention's own: a log-sum-exp a row; eagerly the weights, in float32 and in bfloat16."""
    if setting.eager:
        return tower.heads * tokens * tokens * (_FLOAT + (2 if setting.bfloat16 else 0))
    return tower.heads * tokens * _FLOAT


def _image_layers(setting: Setting) -> int:
    """Layers of the Prompter that give image tokens of each prompt's own."""
    prompter = setting.config.model.prompter
    return 0 if prompter.kind == "roi_align" else prompter.layers - (prompter.pool == "prompt")


def _regions(sizes: Sizes, setting: Setting) -> Held:
    """Region parts: keys and values of the image once, then each prompt; with image outputs a whole layer a prompt."""
    prompter, width = setting.config.model.prompter, _width(setting)
    tokens, dim = sizes.vision.tokens, sizes.vision.width
    prompts = setting.config.loss.max_regions * setting.kinds
    if prompter.kind == "roi_align":
        return Held(prompts * dim * (7 * 7 * width + 3 * _FLOAT))
    shared = tokens * dim * (_FLOAT + 3 * width)
    if prompter.spatial_bias == "box":
        # Tokens with their positions, and by token the projection to the embedding space with its normalisation.
        shared += tokens * (dim * _FLOAT + sizes.embed_dim * (width + 2 * _FLOAT))
    own = prompts * 2 * (dim * (2 * _FLOAT + 8 * width) + 4 * dim * 2 * width)
    own += prompts * prompter.heads * 2 * tokens * (_FLOAT + width)
    if layers := _image_layers(setting):
        # Of every image token: queries, attended, normed; the stream; the MLP's hidden layer twice. Several heads are
        # folded into rows by a copy.
        copied = width if prompter.heads > 1 else 0
        each = dim * (3 * width + copied + _FLOAT) + 4 * dim * 2 * width
        weights = prompter.heads * tokens * (_FLOAT + (2 if setting.bfloat16 else 0) + copied)
        own += layers * prompts * tokens * (each + weights)
        shared += tokens * dim * width
    # A layer above the first reads image tokens that differ between prompts: stream, normed, keys, values.
    between = (prompter.layers - 1) * prompts * tokens * dim
    own += between * (_FLOAT + 3 * width)
    if setting.config.train.gradient_checkpointing:
        return Held(shared + between * _FLOAT, again=own / prompter.layers / setting.kinds)
    return Held(shared + own)
