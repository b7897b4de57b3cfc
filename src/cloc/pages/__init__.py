"""What the stages' reports share: the template engine, one look, charts and pictures. Pages need no network."""

import jinja2


def environment(package: str) -> jinja2.Environment:
    """Templates of a package (its folder `templates`) and those here: `base.css`, and `macros.html.j2` for charts.

    Text comes from the web: everything is escaped, and a name that is missing is an error and not an empty string.
    """
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(package), jinja2.PackageLoader("cloc.pages")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
