"""The documentation site: `make docs` builds it into build/site, without a network, and a warning is an error.

The pages are README.md, docs/*.md, training's READMEs and the notebook, as they are. docs/api/ says which docstrings
go on which page, and site_pages.py is what this site adds to Sphinx.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from st_prompteol import __version__  # noqa: E402 - of this checkout

project = "st_prompteol"
author = "The st_prompteol authors"
project_copyright = f"2026, {author}"
version = release = __version__

extensions = [
    "sphinx.ext.autodoc",  # docstrings
    "sphinx.ext.napoleon",  # their Args, Returns and Raises
    "sphinx.ext.viewcode",  # the source of what is documented, highlighted
    "myst_nb",  # Markdown and notebooks
    "sphinx_copybutton",  # a button that copies a block
    "site_pages",
]
# The source folder is the repository, so that a link between pages means the same here and on GitHub.
root_doc = "README"
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "docs/*.md",
    "docs/api/*.md",
    "training/**/README.md",
    "training/README.md",
    "examples/*.ipynb",
]
exclude_patterns = [".*", "build"]

nitpicky = True
# Types of other packages in signatures: their pages are in the network, and this site is built without one.
UPSTREAM = ["collections", "huggingface_hub", "numpy", "os", "pathlib", "peft", "sentence_transformers", "tokenizers"]
UPSTREAM += ["torch", "transformers"]
nitpick_ignore_regex = [(r"py:.*", rf"{package}\..*") for package in UPSTREAM]
nitpick_ignore = [
    # what passes between `tokenizer` and decoder inside one call of `encode`: nobody outside makes or reads one
    ("py:class", "st_prompteol.fast.rows.Plan"),
    # a part of `PromptEOLTransformer` in a file of its own: its methods are listed there
    ("py:class", "st_prompteol.llm.body.DecoderTransformer"),
    # inherited from upstream's card data: with a default value, Sphinx splits `list[dict[str, str]]` at the comma
    ("py:class", "list[dict[str"),
]

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True  # as they are written, not what they are in memory
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False  # Google's style only

smartquotes_action = "D"  # dashes only: templates are shown with the quotes that they have
myst_heading_anchors = 4  # links to headings, as GitHub has them
nb_execution_mode = "off"  # the notebook's stored outputs are shown; the tests run it
copybutton_exclude = ".linenos, .gp, .go"  # prompts and outputs are not copied

html_theme = "furo"
html_title = f"st_prompteol {version}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_theme_options = {"top_of_page_buttons": []}  # no link to a source that the site does not hold
