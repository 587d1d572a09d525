"""Sphinx configuration: `make docs` builds the pages into site/ and fails on a warning."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sb3_dmamba

if TYPE_CHECKING:
    from docutils.nodes import Element, TextElement
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

HERE = Path(__file__).parent

project = "sb3_dmamba"
author = "sb3_dmamba contributors"
version = release = sb3_dmamba.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
myst_enable_extensions = ["colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks are committed with their outputs, and run by the tests
exclude_patterns = ["README.md", "_build"]

html_theme = "furo"
html_title = f"sb3_dmamba {release}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_copy_source = False
html_show_copyright = False  # the license says it
html_theme_options = {"navigation_with_keys": True}
copybutton_exclude = ".linenos, .gp"

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True  # a default as it is written, not as it prints
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# Names of other packages have no page here. Those of this package must lead somewhere.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:obj", r"typing\.Literal\[.*"),  # a default beside its type is split at the comma
    (r"py:.*", r"(?!sb3_dmamba)[\w.]+(\[\w+)?"),
    (r"py:.*", r"sb3_dmamba\.[\w.]+\.Self"),  # a type variable
]
suppress_warnings = ["ref.python"]  # both APIs have a DecisionMamba, and a bare name matches both


def copy_notebooks(app: Sphinx, config: Any) -> None:
    """Copy the notebooks of examples/ to where Sphinx finds them."""
    target = HERE / "notebooks"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for notebook in sorted((HERE.parent / "examples").glob("*.ipynb")):
        shutil.copy(notebook, target)


def remove_notebooks(app: Sphinx, error: Exception | None) -> None:
    """Remove the copies of the notebooks."""
    shutil.rmtree(HERE / "notebooks", ignore_errors=True)


def escape_shapes(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Keep the star of a shape such as (N, *obs), which is no emphasis."""
    lines[:] = [re.sub(r"(?<=[ (])\*(?=[\w.]+[,)])", r"\\*", line) for line in lines]


def find_documented(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: TextElement
) -> Element | None:
    """Link a name to the page that documents it, whatever module defines it."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not target:
        return None
    python = env.domains.python_domain
    last = target.rpartition(".")[2]
    owner = target.rpartition(".")[0].rpartition(".")[2]
    for name, entry in python.objects.items():
        parts = name.split(".")
        same_owner = not owner[:1].isupper() or parts[-2:-1] == [owner]
        if parts[-1] == last and same_owner and not entry.aliased:
            found = python.resolve_xref(
                env, node["refdoc"], app.builder, "obj", name, node, content
            )
            if found is not None:
                return found
    return None


def setup(app: Sphinx) -> None:
    """Connect these functions to Sphinx."""
    app.connect("autodoc-process-docstring", escape_shapes)
    app.connect("config-inited", copy_notebooks)
    app.connect("build-finished", remove_notebooks)
    app.connect("missing-reference", find_documented)
