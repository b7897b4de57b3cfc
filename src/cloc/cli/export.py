"""`cloc export`: a trained model for other programs."""

import click


@click.command()
@click.option("--model", required=True, help="Folder of a trained model (or a hub id).")
@click.option("--format", "target", type=click.Choice(["open_clip", "onnx"]), required=True)
@click.option("--out", required=True, help="New folder.")
def export(model: str, target: str, out: str) -> None:
    """Write a trained model for other programs.

    \b
    open_clip   weights, configuration and tokenizer that open_clip loads; without the region parts
    onnx        graphs for images, texts, regions and grounding, checked in onnxruntime

    \b
    cloc export --model runs/demo/model --format onnx --out runs/demo/onnx
    """
    from cloc.model import factory

    loaded, processor = factory.load(model)
    if target == "open_clip":
        from cloc.model.export.open_clip import to_open_clip

        written = to_open_clip(loaded, processor, out=out)
        click.echo(f"{written.folder}: {written.weights} weights; open_clip.create_model('local-dir:{written.folder}')")
        click.echo(
            f"left out, since open_clip has no place for them: the {len(written.left_out)} weights of the region parts"
        )
        for note in written.notes:
            click.echo(note)
        return
    from cloc.model.export.onnx import to_onnx

    graphs = to_onnx(loaded, processor, out=out)
    for check in graphs.checks:
        click.echo(f"{check.graph.name}.onnx: at most {check.difference:.1e} from the model in onnxruntime")
    click.echo(f"{graphs.folder}: inputs, outputs and preprocessing are in README.md and onnx.json")
