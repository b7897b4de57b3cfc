"""The picture of the pipeline: it is the committed one, and shows every task and what each waits for."""

import re
import xml.etree.ElementTree as ET

from pipelines.cloc_pipeline import cloc_pipeline
from pipelines.graph import PICTURE, draw

_SVG = "{http://www.w3.org/2000/svg}"


def test_the_committed_picture_is_of_this_pipeline() -> None:
    assert PICTURE.read_text() == draw(cloc_pipeline.pipeline_spec), (
        "docs/images/pipeline.svg is not what the source draws; `.venv/bin/python -m pipelines.graph` draws it anew"
    )


def test_tasks_stand_below_what_they_wait_for() -> None:
    picture = ET.fromstring(draw(cloc_pipeline.pipeline_spec))
    tops = {
        group.findtext(f"{_SVG}text"): float(group.find(f"{_SVG}rect").get("y"))  # type: ignore[union-attr,arg-type]  # drawn so
        for group in picture.iter(f"{_SVG}g")
    }
    assert len(tops) == 20  # two of them loops
    assert tops["Settings"] < tops["Data"] < tops["Captioning, in parts"] < tops["Captioning"] < tops["Grounding"]
    assert tops["Grounding"] < tops["Validation (gate)"] < tops["Pre-training: CLOC"] < tops["Evaluation"]
    assert max(tops, key=lambda title: tops[str(title)]) == "Outcome, whatever happened"
    for edge in picture.iter(f"{_SVG}path"):
        down = [float(value) for value in re.findall(r"[V ]([-\d.]+)", str(edge.get("d")))]
        assert down == sorted(down)
    gates = [group.findtext(f"{_SVG}text") for group in picture.iter(f"{_SVG}g") if group.get("class") == "gate"]
    assert gates == ["Registration (gate)", "Validation (gate)"]
