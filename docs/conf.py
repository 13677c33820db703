"""The documentation site: `make docs`. Nothing is fetched from the network, neither here nor by a reader."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the tree that is documented, whatever else is installed
os.environ.setdefault("MUJOCO_GL", "egl")  # nothing is rendered; importing MuJoCo wants a name

project = "torchrl_vip"
author = "torchrl_vip contributors"
copyright = f"2026, {author}"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
templates_path: list[str] = []

# Pages
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4  # links to headings are checked
suppress_warnings = ["toc.empty_glob"]

# API reference: the docstrings say what the signatures leave open; what TorchRL's own docstrings say is not
# repeated.
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_inherit_docstrings = False
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_mock_imports = ["lerobot"]  # its 0.6 wants another Python and PyTorch than the rest
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_param = False  # "a, b: ..." stays one line
napoleon_use_keyword = False
napoleon_use_rtype = False
napoleon_use_ivar = True

# A name of this package that leads nowhere is an error. Other packages' names are not looked up: that would
# take their sites.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!torchrl_vip\.).*")]

html_theme = "furo"
html_title = "torchrl_vip"
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}


def skip_generated(app, what, name, obj, skip, options):
    """Leave out the docstrings that Python writes for the fields of a NamedTuple; the class lists them."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field") else None


def link_outside(app, docname, source):
    """Markdown files outside of docs/ are no pages of the site: a link to one opens the file itself."""
    folder = (Path(app.srcdir) / docname).parent

    def mark(link: re.Match) -> str:
        inside = (folder / link[1]).resolve().is_relative_to(app.srcdir)
        return link[0] if inside else f"](path:{link[1]})"

    source[0] = re.sub(r"\]\((\.\./[^)#\s]+\.md)(?:#[^)\s]*)?\)", mark, source[0])


def find_by_last_name(app, env, node, contnode):
    """A docstring names things by where they are defined, a page by where they are imported from."""
    if node.get("refdomain") != "py":
        return None
    domain, name = env.get_domain("py"), node["reftarget"].split(".")[-1]
    found = [full for full in domain.objects if full.split(".")[-1] == name]
    if len(found) != 1:
        return None
    return domain.resolve_xref(
        env, node["refdoc"], app.builder, node["reftype"], found[0], node, contnode
    )


def setup(app):
    app.connect("source-read", link_outside)
    app.connect("missing-reference", find_by_last_name)
    app.connect("autodoc-skip-member", skip_generated)
