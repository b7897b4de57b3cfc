"""ONNX graphs of a trained model, each checked in onnxruntime against the model before the folder appears.

    image.onnx    pixel_values (batch, 3, S, S)                      -> image_embeds (batch, E), tokens (batch, N, D)
    text.onnx     input_ids (texts, length)                          -> text_embeds (texts, E)
    regions.onnx  tokens (batch, N, D), boxes (batch, prompts, 4)    -> region_embeds (batch, prompts, E)
    points.onnx   tokens (batch, N, D), points (batch, prompts, 2)   -> region_embeds, of models trained with points
    ground.onnx   tokens (batch, N, D), text_embeds (batch, prompts, E) -> boxes (batch, prompts, 4), with a Prompter

Named axes are free. An image is encoded once and prompted many times: `tokens` go from the first graph to the others.
onnx.json beside them says the rest (preprocessing, scales), README.md says it to people. Needs the extra `export`.
"""

import copy
import importlib
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cloc.errors import ClocError, ConfigError
from cloc.model.export.describe import describe
from cloc.model.export.folder import new_folder
from cloc.model.export.graphs import Graph, GraphCheck, Sizes, example, graphs
from cloc.model.factory import AnyCLOCModel
from cloc.model.processing import CLOCProcessor

OPSET = 18
# A graph may differ from the model by this much, relative to the largest value where that is above 1. Float32 sums in
# another order stay well below.
TOLERANCE = 1e-4
# Values other than 0 and 1 in tracing: those would be taken for constants.
_TRACED = Sizes(batch=2, prompts=3, texts=3, length=5)
_CHECKED = (_TRACED, Sizes(batch=1, prompts=1, texts=1, length=2), Sizes(batch=3, prompts=5, texts=2, length=7))


@dataclass(frozen=True)
class OnnxExport:
    """What was written.

    Attributes:
        folder: where.
        checks: a graph each.
    """

    folder: Path
    checks: tuple[GraphCheck, ...]


def to_onnx(model: AnyCLOCModel, processor: CLOCProcessor, *, out: str | Path) -> OnnxExport:
    """Writes and checks the graphs, onnx.json, README.md and the tokenizer.

    Args:
        model: of either family; exported in float32.
        processor: its processor.
        out: new folder.

    Raises:
        ConfigError: a package of the extra `export` is missing, or `out` is in use.
        ClocError: onnxruntime computes something else than the model.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        _require(package)
    model = copy.deepcopy(model).eval().float().cpu()
    with new_folder(out) as folder:
        checks = []
        for graph in graphs(model):
            path = folder / f"{graph.name}.onnx"
            write_graph(graph, model, path)
            checks.append(check_graph(graph, model, path))
        processor.tokenizer.save_pretrained(str(folder))
        described = describe(model, processor, checks, opset=OPSET)
        (folder / "README.md").write_text(described.page)
        (folder / "onnx.json").write_text(json.dumps(described.facts, indent=2) + "\n")
    return OnnxExport(Path(out), tuple(checks))


class _Module(nn.Module):
    """A graph's computation as a module, which is what can be exported."""

    def __init__(self, graph: Graph, model: AnyCLOCModel) -> None:
        super().__init__()
        self.compute, self.model = graph.compute, model

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.compute(self.model, *inputs)


def write_graph(graph: Graph, model: AnyCLOCModel, path: Path) -> None:
    """Traces a graph and writes it; weights beyond 2 GB go into a file beside it."""
    longest = model.config.text_config.max_position_embeddings
    names = sorted({axis for shape in graph.inputs.values() for axis in shape if isinstance(axis, str)})
    free = {name: torch.export.Dim(name, max=longest if name == "length" else None) for name in names}
    axes = tuple(
        {index: free[axis] for index, axis in enumerate(shape) if isinstance(axis, str)}
        for shape in graph.inputs.values()
    )
    with _quiet(), torch.no_grad():
        # Strict: the model's checks compare sizes with `len`, which plain tracing would take for constants.
        program = torch.export.export(
            _Module(graph, model), example(graph, model, _TRACED), dynamic_shapes=(axes,), strict=True
        )
        written = torch.onnx.export(
            program,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            opset_version=OPSET,
            dynamic_shapes=(axes,),
            verbose=False,
        )
    assert written is not None
    # Every node carries the stack trace of its making, with this machine's paths.
    for node in written.model.graph.all_nodes():
        node.metadata_props.clear()
    written.save(path)


def check_graph(graph: Graph, model: AnyCLOCModel, path: Path) -> GraphCheck:
    """Runs a graph in onnxruntime, at the sizes that it was traced with and at others.

    Raises:
        ClocError: a shape is not what `graph` says, or a value differs from the model's.
    """
    ort = _require("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    largest = 0.0
    for sizes in _CHECKED:
        inputs = example(graph, model, sizes)
        with torch.no_grad():
            expected = graph.compute(model, *inputs)
        feed = {name: value.numpy() for name, value in zip(graph.inputs, inputs, strict=True)}
        for name, ours, theirs in zip(graph.outputs, expected, session.run(list(graph.outputs), feed), strict=True):
            if theirs.shape != tuple(ours.shape):
                raise ClocError(f"{path.name}: {name} is {theirs.shape} in onnxruntime, not {tuple(ours.shape)}")
            difference, peak = float((torch.from_numpy(theirs) - ours).abs().max()), float(ours.abs().max())
            if not difference <= TOLERANCE * max(1.0, peak):  # nor is what is not a number
                raise ClocError(
                    f"{path.name}: {name} in onnxruntime differs from the model's by {difference:.2g} at values up to "
                    f"{peak:.2g} ({TOLERANCE:g} of that is allowed); nothing was written. Try another version of "
                    "onnxruntime"
                )
            largest = max(largest, difference)
    return GraphCheck(graph, largest)


def _require(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(f"the ONNX export needs {package} ({error}); pip install 'cloc[export]'") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps back what the exporter says of packages and internals that are not used here."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")  # torchvision is not installed
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="While compiling, we found certain side effects")
            warnings.filterwarnings("ignore", message="# The axis name: .* shares the same shape constraints")
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)
