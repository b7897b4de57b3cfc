"""What reports and cards share: the template engine, one look, charts and pictures. Pages need no network."""

import jinja2


def environment(package: str) -> jinja2.Environment:
    """Templates of a package (its folder `templates`) and those here: `base.css`, and `macros.html.j2` for charts.

    Text comes from the web: everything is escaped, and a name that is missing is an error and not an empty string.
    """
    return _environment(package, autoescape=True)


def markdown_environment(package: str) -> jinja2.Environment:
    """Templates of a package for Markdown: text of others goes through the filter `plain` (`escape`)."""
    made = _environment(package, autoescape=False)
    made.filters["plain"] = lambda value: escape(str(value))
    return made


def escape(text: str) -> str:
    """Text inside a line of Markdown, with nothing left that formats."""
    return "".join(f"\\{char}" if char in "\\|`*_<>[]" else char for char in " ".join(text.split()))


def _environment(package: str, *, autoescape: bool) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(package), jinja2.PackageLoader("cloc.pages")]),
        autoescape=autoescape,  # noqa: S701 (off for Markdown alone, where the filter `plain` escapes)
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
