"""Builds the site with Sphinx; ``make docs`` calls it."""

import importlib.util
import re
import warnings
from typing import Any

import matplotlib as mpl

import dynloader

mpl.use("agg")
warnings.filterwarnings("ignore", message=".*non-interactive.*")

project = "dynloader"
author = "The dynloader contributors"
copyright = author
version = release = dynloader.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
    "sphinx_copybutton",
]
exclude_patterns = [
    "_build",
    "README.md",
    "tutorials/README.rst",
    "**/sg_execution_times.rst",
    "sg_*.rst",
]

# Markdown
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

# Docstrings
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
_OPTIONAL = ("accelerate", "lightning", "transformers", "streaming", "litdata", "lance")
autodoc_mock_imports = [name for name in _OPTIONAL if importlib.util.find_spec(name) is None]
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

sphinx_gallery_conf = {
    "examples_dirs": "tutorials",
    "gallery_dirs": "gallery",
    "filename_pattern": r".*\.py",
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "min_reported_time": 1e9,
    "abort_on_example_error": True,
    "within_subsection_order": "FileNameSortKey",
    "remove_config_comments": True,
}

# Pages
html_theme = "furo"
html_title = "dynloader"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#3b5bdb", "color-brand-content": "#3b5bdb"},
    "dark_css_variables": {"color-brand-primary": "#91a7ff", "color-brand-content": "#91a7ff"},
}
copybutton_prompt_text = r"\$ |>>> "
copybutton_prompt_is_regexp = True


def link_to_files(app: Any, name: str, source: list[str]) -> None:
    """Make links to Markdown files outside of docs/ downloads; they are no pages of the site."""
    source[0] = re.sub(r"\]\((\.\./[^)#]*\.md)\)", r"](path:\1)", source[0])


def setup(app: Any) -> None:
    """Connect to Sphinx's events."""
    app.connect("source-read", link_to_files)
