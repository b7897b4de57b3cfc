"""The headline in words and tables: what is called better, and all figures as Markdown, CSV and JSON."""

import csv
import io
import json

from rich.console import Console

from cloc.evaluation import summary, tables
from cloc.pages import escape
from tests.evaluation_data import CLOC, COMPUTE, PUBLIC, STEPS, block, make_metrics


def _row(metrics, label):
    return next(row for row in summary.headline(metrics).rows if row.label == label)


def _terminal(metrics):
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(summary.headline_table(metrics))
    return console.export_text()


class TestHeadline:
    def test_the_best_reader_of_each_model_is_shown(self):
        assert [(cell.text, cell.note) for cell in _row(make_metrics(), "region mAcc").cells] == [
            ("12.0", "RoIAlign"),
            ("19.0", "crop"),
            ("42.0", "crop"),
            ("70.0", "Prompter"),
        ]

    def test_rows_are_the_figures_that_there_are(self):
        metrics = make_metrics()
        labels = [row.label for row in summary.headline(metrics).rows]
        assert labels[-2:] == ["region mAcc, unseen pairs", "classification top-1, things"]
        metrics["classification"] = {}
        for split in metrics["splits"].values():
            del split["coherence"]
            for row in split["rows"]:
                del row["attributes"]
        gone = {"attributes, one swapped", "coherence AUC", "classification top-1, things"}
        assert [row.label for row in summary.headline(metrics).rows] == [x for x in labels if x not in gone]

    def test_a_model_of_others_has_no_steps(self):
        assert [cell.text for cell in _row(make_metrics(), "training steps").cells] == [
            "600",
            "1,200",
            summary.DASH,
            "600",
        ]

    def test_only_what_the_paired_interval_says_is_best(self):
        metrics = make_metrics()
        assert [cell.best for cell in _row(metrics, "region mAcc").cells] == [False, False, False, True]
        assert [cell.best for cell in _row(metrics, "image→text R@1").cells] == [False, True, True, False]
        # The highest of its row, but the differences do not say so.
        assert [cell.best for cell in _row(metrics, "coherence AUC").cells] == [False] * 4
        assert [cell.best for cell in _row(metrics, "text→region R@1").cells] == [False] * 4

    def test_classified_images_are_compared_as_pairs(self):
        metrics = make_metrics()
        row = "classification top-1, things"
        assert not any(cell.best or cell.difference for cell in _row(metrics, row).cells)
        metrics["classification"]["things"]["differences"] = [
            {
                "figure": f"{way}/top1",
                "a": {"model": CLOC, "reader": ""},
                "b": {"model": name, "reader": ""},
                "value": -0.1,
                "interval": [-0.2, -0.05],
                "better": "b" if way == "templates" else "a",
            }
            for name in (STEPS, COMPUTE, PUBLIC)
            for way in ("plain", "templates")
        ]
        cells = _row(metrics, row).cells
        assert [cell.best for cell in cells] == [True, True, True, False]
        assert {cell.note for cell in cells} == {"with templates"}
        assert any(f"loses to {STEPS} on {row}" in sentence for sentence in summary.sentences(metrics))

    def test_the_candidate_is_best_only_against_all(self):
        metrics = make_metrics()
        for item in metrics["splits"]["test"]["differences"]:
            if item["figure"] == "region/mAcc" and item["b"]["model"] == PUBLIC:
                item["better"] = ""
        assert not any(cell.best for cell in _row(metrics, "region mAcc").cells)

    def test_figures_of_no_items_are_none(self):
        metrics = make_metrics()
        metrics["splits"]["test"]["grounding"][CLOC] = block(n=0, **{"acc@0.5": 0.0, "mean_iou": 0.0})
        assert "grounding acc@0.5" not in [row.label for row in summary.headline(metrics).rows]
        names = [sheet.rows for sheet in tables.sheets(metrics) if sheet.name == "grounding"]
        assert names[0][0].values[0] == tables.Value(summary.DASH)


class TestSentences:
    def test_it_says_what_is_better_and_where_cloc_loses(self):
        found = summary.sentences(make_metrics())
        assert "5.8 times the 12.0 of CLIP (equal steps) (RoIAlign); CLOC is better: +58.0 points" in found[0]
        assert "(95 % interval +54.0 to +62.0)" in found[0]
        lost = [sentence for sentence in found if "loses" in sentence]
        assert len(lost) == 4
        assert lost[0] == (
            f"CLOC loses to {COMPUTE} on image→text R@1: 25.0 against 33.0, {summary.MINUS}8.0 points "
            f"(95 % interval {summary.MINUS}12.0 to {summary.MINUS}4.0)."
        )
        assert found[-1] == f"Between CLOC and {STEPS}, {COMPUTE}, {PUBLIC} no difference is shown on coherence AUC."

    def test_a_difference_that_is_not_shown_is_no_gain(self):
        metrics = make_metrics()
        for item in metrics["splits"]["test"]["differences"]:
            item["better"] = ""
        found = summary.sentences(metrics)
        assert "no difference is shown: +58.0 points" in found[0]
        assert not any("better: " in sentence or "loses" in sentence for sentence in found)
        assert f"No plain CLIP is shown to be better than {CLOC}" in " ".join(found)

    def test_without_differences_nothing_is_claimed(self):
        metrics = make_metrics()
        for split in metrics["splits"].values():
            del split["differences"]
        assert summary.UNPAIRED in summary.sentences(metrics)
        assert not any(cell.best for row in summary.headline(metrics).rows for cell in row.cells)

    def test_the_line_for_the_log_counts_losses(self):
        line = summary.brief(make_metrics())
        assert line.endswith("It is below a plain CLIP on 4 figures; the report names each.")
        assert "3.7 times the 19.0" in line
        assert "\n" not in line

    def test_a_baseline_at_zero_gives_no_ratio(self):
        metrics = make_metrics()
        for row in metrics["splits"]["test"]["rows"]:
            if row["model"] == STEPS:
                row["region"]["mAcc"] = 0.0
        assert "times" not in summary.sentences(metrics)[0]

    def test_no_candidate_and_no_baseline(self):
        metrics = make_metrics()
        metrics["headline"]["baselines"] = []
        assert "no plain CLIP" in summary.brief(metrics)
        metrics["headline"]["candidate"] = ""
        assert "no CLOC model" in summary.brief(metrics)
        assert "12.0" in _terminal(metrics)


class TestTables:
    def test_terminal_and_markdown_show_the_same_figures(self):
        metrics = make_metrics()
        for text in (_terminal(metrics), summary.headline_markdown(metrics)):
            for figure in ("70.0", "19.0", "72.0", "1,200", "450", COMPUTE):
                assert figure in text
        assert "**70.0** (Prompter" in summary.headline_markdown(metrics)

    def test_names_cannot_break_the_tables(self):
        metrics = json.loads(json.dumps(make_metrics()).replace(STEPS, "[red]a|b"))
        assert "[red]a|b" in _terminal(metrics)
        for text in (summary.headline_markdown(metrics), tables.markdown(tables.sheets(metrics))):
            assert r"\[red\]a\|b" in text
            assert "[red]" not in text
        assert escape("a\n| b") == r"a \| b"

    def test_every_protocol_has_a_table(self):
        found = {sheet.name: sheet for sheet in tables.sheets(make_metrics())}
        assert list(found) == [
            "region_recognition",
            "region_sizes",
            "region_retrieval",
            "attributes",
            "linear_probe",
            "retrieval",
            "grounding",
            "coherence",
            "classification",
            "differences",
        ]
        sizes = found["region_sizes"]
        assert sizes.figures[0] == "small/mAcc"
        assert sizes.rows[0].labels == ("test", STEPS, "crop")
        assert sizes.rows[0].values[0].text == "2.5"
        assert found["attributes"].heads == tuple(f"{n} swapped: accuracy" for n in ("three", "two", "one"))
        assert found["retrieval"].heads[:2] == ("image→text R@1", "image→text R@5")
        assert found["differences"].rows[0].labels[-1] == CLOC

    def test_a_protocol_without_figures_has_none(self):
        metrics = make_metrics()
        for split in metrics["splits"].values():
            split["grounding"], split["retrieval"] = {}, {}
        names = {sheet.name for sheet in tables.sheets(metrics)}
        assert not names & {"grounding", "retrieval"}

    def test_the_short_table_is_of_one_split_and_the_best_readers(self):
        sheet = next(sheet for sheet in tables.sheets(make_metrics()) if sheet.name == "region_retrieval")
        rows = tables.brief(sheet, "test").rows
        assert [row.labels[1:] for row in rows] == [
            (STEPS, "RoIAlign"),
            (COMPUTE, "crop"),
            (PUBLIC, "crop"),
            (CLOC, "Prompter"),
        ]

    def test_csv_and_json_hold_shares_and_intervals(self):
        sheet = next(sheet for sheet in tables.sheets(make_metrics()) if sheet.name == "grounding")
        rows = list(csv.DictReader(io.StringIO(tables.as_csv(sheet))))
        assert float(rows[0]["acc@0.5"]) == 0.72
        assert float(rows[0]["mean_iou_high"]) == 0.64
        body = json.loads(tables.as_json(sheet))
        assert body["columns"] == list(rows[0])
        assert [str(item) for item in body["data"][0]] == list(rows[0].values())

    def test_cosines_may_be_negative_and_zero_has_no_sign(self):
        found = tables.value({"gap": -0.0004, "n": 3, "interval": {"gap": [-0.12, 0.2]}}, "gap")
        assert (found.text, found.range) == ("0.000", f"{summary.MINUS}0.120 to 0.200")

    def test_no_cell_of_a_csv_is_a_formula(self):
        metrics = json.loads(json.dumps(make_metrics()).replace(STEPS, "=HYPERLINK(1)"))
        rows = list(csv.DictReader(io.StringIO(tables.as_csv(tables.sheets(metrics)[0]))))
        assert rows[0]["model"] == "'=HYPERLINK(1)"
