"""Curves for `dvc plots`, which reads JSON and no JSON lines.

    python -m cloc.pipeline.curves --out work/curves cloc=work/models/cloc/metrics.jsonl clip=...

Writes `<out>/<name>.json` for each.
"""

import argparse
import json
import sys
from pathlib import Path


def write_curves(out: str | Path, sources: dict[str, str]) -> None:
    """Rewrites JSON lines as JSON; a curve has the keys of its last record, and "/" in them becomes "_" for plots."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in sources.items():
        rows = [json.loads(line) for line in Path(source).read_text().splitlines()]
        body = [{key.replace("/", "_"): row[key] for key in rows[-1] if key in row} for row in rows]
        (folder / f"{name}.json").write_text(json.dumps(body, indent=1) + "\n")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Curves for dvc plots.")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("sources", nargs="+", metavar="NAME=FILE", help="metrics.jsonl of a training")
    given = parser.parse_args()
    wrong = [item for item in given.sources if "=" not in item or not Path(item.partition("=")[2]).is_file()]
    if wrong:
        sys.exit(f"error: {wrong[0]}: write it as NAME=FILE, of a file that exists")
    write_curves(given.out, {name: source for name, _, source in (item.partition("=") for item in given.sources)})


if __name__ == "__main__":
    main()
