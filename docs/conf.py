"""Sphinx: the documentation site, built by `make docs`. Notebooks are executed while it is built."""

import os
import sys
from functools import partial
from importlib.metadata import version as installed
from pathlib import Path

from jupyter_cache.executors import utils as execution

project = "cmrcnet"
author = "the cmrcnet developers"
version = release = installed("cmrcnet")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
root_doc = "index"
templates_path = ["_templates"]
exclude_patterns = ["_build", "README.md"]  # README.md is included by index.md

# Notebooks call `cmrcnet` and `python` of the environment that builds the site, each in a folder of its own.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found,ignore::FutureWarning"
nb_execution_in_temp = True

# Docstrings are numpydoc: they state the types themselves.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autosummary_generate = True
napoleon_google_docstring = False
napoleon_use_rtype = False
default_role = "code"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
nb_execution_mode = "force"
nb_execution_timeout = 240
nb_execution_raise_on_error = True
nb_merge_streams = True
# %%bash sends its output in pieces of 100 bytes, and myst-nb would end a line after each; nbclient joins them.
execution.executenb = partial(execution.executenb, coalesce_streams=True)

html_theme = "sphinx_book_theme"
html_title = "cmrcnet"
html_theme_options = {"show_toc_level": 2, "use_download_button": False, "use_fullscreen_button": False}
html_copy_source = False
