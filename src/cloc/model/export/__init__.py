"""Trained models for other programs: `open_clip` checkpoints (and back), ONNX graphs.

    to_open_clip(*factory.load("runs/demo/model"), out="runs/demo/open_clip")
    to_onnx(*factory.load("runs/demo/model"), out="runs/demo/onnx")
    clip = from_open_clip("downloads/ViT-B-16")   # a transformers CLIPModel, to start training from

On the command line: `cloc export`.
"""

from cloc.model.export.onnx import OnnxExport, to_onnx
from cloc.model.export.open_clip import OpenClipExport, from_open_clip, to_open_clip

__all__ = ["OnnxExport", "OpenClipExport", "from_open_clip", "to_onnx", "to_open_clip"]
