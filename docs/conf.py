"""The documentation site: the guides of this folder, and the API from the docstrings.

Built by `nox -s site`.  The guides are also read in the repository, so links between them are
ordinary Markdown links to files.
"""

import ast
import importlib
import inspect
import re
import sys
from contextlib import suppress
from dataclasses import Field, fields, is_dataclass
from functools import cache
from typing import get_args, get_type_hints

import msgspec
from docutils import nodes
from pygments.lexers.special import TextLexer
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer

import multichat
import multichat.testing

project = "multichat"
project_copyright = "the multichat authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinxcontrib_trio"]
html_theme = "furo"
html_title = "multichat"
html_show_copyright = False

# Sections of the guides are linked as `page.md#section`.
myst_heading_anchors = 4
myst_enable_extensions = ["attrs_inline"]

# Names in single backticks become links if they are documented, otherwise code.
default_role = "py:obj"
# sphinxcontrib-trio extends these classes; the new ones do not support it for methods.
autodoc_use_legacy_class_based = True
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": True}
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80

PUBLIC = {name: f"multichat.{name}" for name in multichat.__all__}
PUBLIC |= {name: f"multichat.testing.{name}" for name in multichat.testing.__all__}

ANY_EVENT = " | ".join(f"~{each.__module__}.{each.__name__}" for each in get_args(multichat.Event))


@cache
def assignment_docs(module: str) -> dict[str, str]:
    """Map each assigned name of *module*, `Class.field` in a class, to its documentation.

    That is the string after the assignment, or the comment above it.  A comment above several
    assignments belongs to the first.
    """
    source = inspect.getsource(importlib.import_module(module))
    lines, found = source.splitlines(), dict[str, str]()

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node, after in zip(body, [*body[1:], None], strict=True):
            match node:
                case ast.ClassDef(name=name):
                    visit(node.body, f"{prefix}{name}.")
                case (
                    ast.AnnAssign(target=ast.Name(id=name))
                    | ast.Assign(targets=[ast.Name(id=name)])
                ):
                    match after:
                        case ast.Expr(value=ast.Constant(value=str(text))):
                            found[prefix + name] = inspect.cleandoc(text)
                        case _:
                            found[prefix + name] = comment(node)

    def comment(node: ast.stmt) -> str:
        end = start = node.lineno - 1
        while re.match(r"\s*#", lines[start - 1]):
            start -= 1
        above = [re.sub(r"^\s*#:? ?", "", line) for line in lines[start:end]]
        _, hash_, behind = lines[(node.end_lineno or 0) - 1].partition("  # ")
        return "\n".join(above) or (behind if hash_ else "")

    visit(ast.parse(source).body, "")
    return found


def document_fields(_app: Sphinx) -> None:
    """Let autodoc find the comments above the fields of public classes."""
    for name in multichat.__all__:
        value = getattr(multichat, name)
        if inspect.isclass(value):
            analyzer = ModuleAnalyzer.for_module(value.__module__)
            analyzer.analyze()
            for path, text in assignment_docs(value.__module__).items():
                owner, _, field = path.rpartition(".")
                if owner == name and text:
                    analyzer.attr_docs.setdefault((owner, field), [*text.splitlines(), ""])


def document_alias(
    _app: Sphinx, what: str, name: str, _value: object, _options: object, lines: list[str]
) -> None:
    """Document a type alias with the string after it."""
    alias = name.rpartition(".")[2]
    for home in alias_homes(alias) if what == "data" else []:
        if text := assignment_docs(home).get(alias):
            lines[:] = text.splitlines()


def alias_homes(name: str) -> list[str]:
    """List the modules that export the type alias *name*."""
    return [
        module
        for module in sorted(sys.modules)
        if module.startswith("multichat.") and name in getattr(sys.modules[module], "__all__", ())
    ]


def resolve_public(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.reference | None:
    """Link a public name that is written with its module, or documented on another page."""
    if node.get("refdomain") != "py":
        return None
    first, *rest = re.sub(r"^multichat\.(?:[a-z_]+\.)*", "", node["reftarget"]).split(".")
    if first not in PUBLIC:
        return None
    target = ".".join([PUBLIC[first], *rest])
    if target == node["reftarget"]:
        return None
    python = env.domains.python_domain
    resolved: nodes.reference | None = python.resolve_xref(
        env, node["refdoc"], app.builder, "obj", target, node, content
    )
    return resolved


def link_public_names(_app: Sphinx, doctree: nodes.document) -> None:
    """Make a public class in backticks in a guide a link to its page of the API reference.

    Not a function, whose name may also be that of a command, unless it has its module.  The guides
    cannot link to these pages themselves: in the repository they are only directives.
    """
    for literal in list(doctree.findall(nodes.literal)):
        text = literal.astext()
        name = text.removeprefix("multichat.")
        # Not in a link, nor in a title, which the navigation repeats.
        is_text = not isinstance(literal.parent, nodes.reference | nodes.title | pending_xref)
        if is_text and name in multichat.__all__ and (text != name or name[0].isupper()):
            attributes = {"refdomain": "py", "reftype": "obj", "refexplicit": True}
            link = pending_xref("", reftarget=PUBLIC[name], **attributes)
            literal.replace_self(link)
            link += literal


def default_of(field: Field[object]) -> str:
    """Show a field with its default, unless that is long."""
    simple = isinstance(field.default, int | float | str | None)
    return f"{field.name}={field.default!r}" if simple else field.name


def shorten_signature(
    _app: Sphinx,
    _what: str,
    _name: str,
    value: object,
    _options: object,
    given: str | None,
    returned: str | None,
) -> tuple[str, str | None] | None:
    """Show signatures of classes with fields without types, which the fields have."""
    if inspect.isclass(value) and issubclass(value, msgspec.Struct):
        return f"({', '.join(value.__struct_fields__)})", returned
    if inspect.isclass(value) and is_dataclass(value):
        return f"({', '.join(['*', *map(default_of, fields(value))])})", returned
    if given:
        given = re.sub(r"ClientTimeouts\([^)]*\)", "ClientTimeouts()", given)
        return given, returned and returned.replace(ANY_EVENT, "~multichat.Event")
    return None


def drop_limits(_app: Sphinx) -> None:
    """Show types without msgspec's limits, which are in docs/protocol.md."""
    public = {name: getattr(multichat, name) for name in multichat.__all__}
    for value in public.values():
        found = [value, *vars(value).values()] if inspect.isclass(value) else [value]
        for each in found:
            if inspect.isfunction(each) or (each is value and inspect.isclass(each)):
                # What a module imports for the checker only has no limits.
                with suppress(NameError):
                    each.__annotations__ = get_type_hints(each, localns=public)


def setup(app: Sphinx) -> None:
    """Connect the above to Sphinx's events."""
    app.add_lexer("wire", TextLexer)  # the examples of docs/protocol.md
    app.connect("builder-inited", drop_limits)
    app.connect("autodoc-process-signature", shorten_signature)
    app.connect("builder-inited", document_fields)
    app.connect("autodoc-process-docstring", document_alias)
    app.connect("doctree-read", link_public_names)
    app.connect("missing-reference", resolve_public)
