"""The verbs over the stages: each fills in paths and calls `run_stage`."""

from typing import Any

import click

from cloc.cli.options import resolve, settings_options
from cloc.errors import ConfigError
from cloc.stages import run_stage

_data = click.option("--data", required=True, help="Data set, or collection with splits (folder or s3:// prefix).")
_captions = click.option("--captions", required=True, help="Where the captions tables lie.")
_regions = click.option("--regions", required=True, help="Where the regions tables lie.")
_teachers = click.option("--teachers", default="", help="Where `cloc teachers fit` wrote, for an empty model setting.")
_shards = click.option("--shards", default="", metavar="FIRST:LAST", help="Label only these shards, as in 0:100.")
_worker = click.option("--worker", default="", metavar="I/N", help="Label every N-th of them, from the I-th (from 0).")
_report = click.option("--report", default="", help="Folder of a report on the labels.")
_unfinished = click.option(
    "--unfinished", default="", help="Folder that the run lies in until it is done, if not in train.storage or --out."
)
_result = click.option("--result", "result_dir", help="Folder for stage_result.json and config.yaml, too.")


@click.command()
@_data
@_teachers
@_shards
@_worker
@click.option("--out", required=True, help="Where the captions tables go.")
@_report
@_result
@settings_options
def caption(
    data: str, teachers: str, shards: str, worker: str, out: str, report: str, result_dir: str | None, **settings: Any
) -> None:
    """Caption every image of a data set; what stands already is skipped.

    \b
    cloc caption --data data --out work/captions --preset finetune --report work/reports/captioning
    """
    run_stage(
        "captioning",
        resolve(**settings),
        inputs={"data": data, "teachers": teachers, "shards": shards, "worker": worker},
        outputs={"captions": out, "report": report},
        result_dir=result_dir,
    )


@click.command()
@_data
@_captions
@_teachers
@_shards
@_worker
@click.option("--out", required=True, help="Where the regions tables go.")
@_report
@_result
@settings_options
def ground(
    data: str,
    captions: str,
    teachers: str,
    shards: str,
    worker: str,
    out: str,
    report: str,
    result_dir: str | None,
    **settings: Any,
) -> None:
    """Find boxes for the phrases of the captions; what stands already is skipped.

    \b
    cloc ground --data data --captions work/captions --out work/regions --preset finetune
    """
    run_stage(
        "grounding",
        resolve(**settings),
        inputs={"data": data, "captions": captions, "teachers": teachers, "shards": shards, "worker": worker},
        outputs={"regions": out, "report": report},
        result_dir=result_dir,
    )


@click.group()
def teachers() -> None:
    """Make labelling models of your own from a labelled part of the data.

    \b
    cloc teachers fit --data data --out work/teachers
    """


@teachers.command(short_help="Fit a small captioner and a small open-vocabulary detector.")
@_data
@click.option("--out", required=True, help="Folder of the teachers: captioner and detector.")
@settings_options
def fit(data: str, out: str, **settings: Any) -> None:
    """Fit a small captioner and a small open-vocabulary detector; then label with them.

    \b
    cloc teachers fit --data data --out work/teachers
    cloc caption --data data --teachers work/teachers --out work/captions -S captioning.backend=transformers
    """
    run_stage("teachers", resolve(**settings), inputs={"data": data}, outputs={"teachers": out})


@click.command()
@_data
@_captions
@_regions
@click.option("--out", required=True, help="Folder of the report.")
@click.option("--sums", default="", help="Folder or s3:// prefix that keeps what is done; for --worker, and to go on.")
@click.option("--worker", default="", metavar="I/N", help="Only check a share of the shards, into --sums.")
@settings_options
def validate(data: str, captions: str, regions: str, out: str, sums: str, worker: str, **settings: Any) -> None:
    """Check labels with Great Expectations; exit code 4 when the gate fails.

    \b
    cloc validate --data data --captions work/captions --regions work/regions --out work/validation
    """
    inputs = {"data": data, "captions": captions, "regions": regions, "worker": worker}
    run_stage("validation", resolve(**settings), inputs=inputs, outputs={"report": out, "sums": sums})


@click.command()
@_data
@_captions
@_regions
@click.option("--out", required=True, help="Folder of the model; running again goes on from its last checkpoint.")
@click.option("--objective", type=click.Choice(["cloc", "clip"]), default="cloc", show_default=True)
@click.option("--match-compute-of", default="", help="Train as many processor-seconds as this model took.")
@click.option("--step-cost-of", default="", help="Model of the same objective that tells what a step costs.")
@_unfinished
@click.option("--dry-run", is_flag=True, help="Print what the scheduler would be asked for; start and write nothing.")
@settings_options
def pretrain(
    data: str,
    captions: str,
    regions: str,
    out: str,
    objective: str,
    match_compute_of: str,
    step_cost_of: str,
    unfinished: str,
    dry_run: bool,
    **settings: Any,
) -> None:
    """Train CLOC, or a plain CLIP by the same code, through TorchX.

    Told to stop (SIGTERM, Ctrl-C), it saves and ends with exit code 75 or 130; the same command goes on from there,
    with --unfinished also where --out was emptied in between, as DVC does; when it is done, its folder there goes.

    \b
    cloc pretrain --data data --captions work/captions --regions work/regions --out work/cloc
    cloc pretrain ... -S train.scheduler=kubernetes -S train.kubernetes.image=registry/cloc:1 \\
                      -S train.storage=s3://bucket/runs --dry-run
    """
    inputs = {
        "data": data,
        "captions": captions,
        "regions": regions,
        "objective": objective,
        "match_compute_of": match_compute_of,
        "step_cost_of": step_cost_of,
    }
    config, outputs = resolve(**settings), {"model": out, "unfinished": unfinished}
    if dry_run:
        from cloc.training import stage  # heavy: not for --help

        text = stage.request(config, inputs=stage.Inputs(**inputs), outputs=stage.Outputs(**outputs))
        click.echo(text, nl=False)
        return
    run_stage("pretraining", config, inputs=inputs, outputs=outputs)


_ROW = "A row; repeat. A folder, the hub id of any CLIP or SigLIP, or models:/cloc@champion."


@click.command()
@_data
@click.option("--model", "models", multiple=True, required=True, metavar="NAME=MODEL", help=_ROW)
@click.option("--out", required=True, help="Folder of the report.")
@settings_options
def evaluate(data: str, models: tuple[str, ...], out: str, **settings: Any) -> None:
    """Compare models on the test splits and write a report.

    \b
    cloc evaluate --data data --model CLIP=work/clip --model CLOC=work/cloc --out work/evaluation
    """
    rows: dict[str, str] = {}
    for item in models:
        name, sign, folder = item.partition("=")
        if not sign:
            raise ConfigError(f"--model {item!r}: write it as NAME=FOLDER")
        rows[name] = folder
    run_stage("evaluation", resolve(**settings), inputs={"data": data, "models": rows}, outputs={"report": out})


@click.command()
@click.option("--evaluation", required=True, help="Folder of the evaluation's report.")
@click.option("--model", required=True, help="Folder of the candidate.")
@click.option("--out", required=True, help="Folder of the receipt.")
@settings_options
def register(evaluation: str, model: str, out: str, **settings: Any) -> None:
    """Register a model in MLflow when it passes the gate; exit code 4 when it does not.

    \b
    cloc register --evaluation work/evaluation --model work/cloc --out work/registration
    """
    inputs = {"evaluation": evaluation, "model": model}
    run_stage("registration", resolve(**settings), inputs=inputs, outputs={"receipt": out})


@click.command()
@_data
@_captions
@_regions
@click.option("--encoder", required=True, help="Folder of the vision encoder (CLOC, CLIP or SigLIP).")
@click.option("--out", required=True, help="Folder of the adapter.")
@click.option("--report", default="", help="Folder of the report on its answers; by default report/ of --out.")
@click.option(
    "--region-sampler",
    type=click.Choice(["setting", "none", "roi_align", "prompter"]),
    default="setting",
    help="What embeds the boxes of questions, in place of adapter.region_sampler.",
)
@_unfinished
@click.option("--dry-run", is_flag=True, help="Print what the scheduler would be asked for; start and write nothing.")
@settings_options
def tune(
    data: str,
    captions: str,
    regions: str,
    encoder: str,
    out: str,
    report: str,
    region_sampler: str,
    unfinished: str,
    dry_run: bool,
    **settings: Any,
) -> None:
    """Tune an MLLM adapter on referring and grounding, ask it about test images, and report; through TorchX.

    Told to stop (SIGTERM, Ctrl-C), it saves and ends with exit code 75 or 130; the same command goes on from there,
    with --unfinished also where --out was emptied in between, as DVC does; when it is done, its folder there goes.

    \b
    cloc tune --data data --captions work/captions --regions work/regions --encoder work/cloc --out work/adapter
    """
    inputs = {
        "data": data,
        "captions": captions,
        "regions": regions,
        "encoder": encoder,
        "region_sampler": region_sampler,
    }
    outputs = {"adapter": out, "report": report, "unfinished": unfinished}
    if dry_run:
        from cloc.mllm import stage  # heavy: not for --help

        text = stage.request(resolve(**settings), inputs=stage.Inputs(**inputs), outputs=stage.Outputs(**outputs))
        click.echo(text, nl=False)
        return
    run_stage("adapter_tuning", resolve(**settings), inputs=inputs, outputs=outputs)
