"""Sphinx's settings for the site; tools/build_site.py calls it once for each language."""

import os

project = "cropkit"
author = "cropkit contributors"
copyright = author  # Sphinx asks for this name
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_*"]
templates_path = ["_templates"]

nb_execution_mode = "off"  # the pages show what `make course` computed
nb_ipywidgets_js = {}  # widgets need a kernel, and their script another host
nb_merge_streams = True
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type", "myst.header", "misc.highlighting_failure"]
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

default_role = "code"
autodoc_typehints = "none"  # the signature has them; Args say what they mean
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "sphinx_book_theme"
html_title = "cropkit"
html_static_path = ["_static"]
html_css_files = ["cropkit.css"]
html_show_sourcelink = False
html_copy_source = False
html_last_updated_fmt = None
html_theme_options = {
    "article_header_end": ["language.html", "article-header-buttons.html"],
    "navbar_persistent": [],
    "use_download_button": False,
    "use_fullscreen_button": False,
    "show_toc_level": 2,
}
language = os.environ.get("CROPKIT_LANGUAGE", "en")
if language == "zh_TW":  # jieba must not cut up the glossary's words
    html_search_language = "zh"
    html_search_options = {"dict": os.environ["CROPKIT_WORDS"]}
