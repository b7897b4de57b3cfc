"""Brings the compiled pipeline to a server, once for each content."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import kfp_server_api

import cloc
from cloc.tracking import REVISION, git
from pipelines.cloc_pipeline import NAME
from pipelines.server import Server, ServerError, display_name_filter

_CHECKOUT = Path(__file__).parents[1]
_SOURCES = ("pipelines", "components", "src", "params.yaml")  # what the compiled pipeline is made from


@dataclass(frozen=True)
class Version:
    """A version of the pipeline on a server.

    Attributes:
        name: release, git commit and hash of the content.
        new: whether it was uploaded now.
    """

    pipeline_id: str
    version_id: str
    name: str
    new: bool


def upload(server: Server, package: Path) -> Version:
    """Uploads a compiled pipeline, unless the server has one of the same content.

    Args:
        server: where to.
        package: the compiled pipeline, its name ending in .yaml.

    Raises:
        ServerError: the server refuses.
    """
    content = hashlib.sha256(package.read_bytes()).hexdigest()[:12]
    pipeline = find_pipeline(server) or _create_pipeline(server)
    if found := _find_version(server, pipeline, content):
        return found
    name = f"{version_prefix()}-{content}"
    try:
        made = server.ask(
            server.client.pipeline_uploads.upload_pipeline_version,
            str(package),
            name=name,
            pipelineid=pipeline,
            description=f"cloc {cloc.__version__}, content {content}",
        )
    except ServerError as error:
        if error.status == 409 and (found := _find_version(server, pipeline, content)):
            return found  # another one uploaded it meanwhile
        raise
    if not made.pipeline_version_id:
        raise ServerError(f"{server.where} took the pipeline, but gave no version back")
    return Version(pipeline, made.pipeline_version_id, made.display_name or name, new=True)


def find_pipeline(server: Server) -> str | None:
    """Id of the pipeline on the server, by its name; None for none."""
    found = server.ask(
        server.client.pipelines.pipeline_service_list_pipelines,
        filter=display_name_filter("EQUALS", NAME),
        namespace=server.namespace,
    )
    return found.pipelines[0].pipeline_id if found.pipelines else None


def version_prefix() -> str:
    """Release and git commit of this checkout: "0.1.0-7de8406d", with "-dirty" where the pipeline's sources differ."""
    commit = git("rev-parse", "--short=8", "HEAD", folder=_CHECKOUT)
    if not commit:
        return f"{cloc.__version__}-{os.environ.get(REVISION, '')[:8] or 'nogit'}"
    changed = git("status", "--porcelain", "--", *_SOURCES, folder=_CHECKOUT)
    return f"{cloc.__version__}-{commit}{'-dirty' if changed else ''}"


def _create_pipeline(server: Server) -> str:
    wanted = kfp_server_api.V2beta1Pipeline(
        display_name=NAME,
        description="CLOC: a CLIP encoder that understands regions",
        namespace=server.namespace,
    )
    try:
        made = server.ask(server.client.pipelines.pipeline_service_create_pipeline, wanted)
    except ServerError as error:
        if error.status == 409 and (found := find_pipeline(server)):
            return found
        raise
    return str(made.pipeline_id)


def _find_version(server: Server, pipeline: str, content: str) -> Version | None:
    """The version of this content: every version's name ends in its content's hash."""
    found = server.ask(
        server.client.pipelines.pipeline_service_list_pipeline_versions,
        pipeline,
        filter=display_name_filter("IS_SUBSTRING", content),
    )
    for item in found.pipeline_versions or ():
        return Version(pipeline, item.pipeline_version_id, item.display_name, new=False)
    return None
