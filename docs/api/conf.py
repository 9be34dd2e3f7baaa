"""Settings of Sphinx for the API page: `make docs` builds it from the docstrings, and every warning is an error."""

from typing import Any

import deepclust_ext

project = "deepclust_ext"
version = release = deepclust_ext.__version__
copyright = "the authors of deepclust_ext, Apache-2.0"
extensions = ["sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]
autodoc_default_options = {
    "members": True,
    "show-inheritance": True,
    "exclude-members": "set_fit_request, set_partial_fit_request, set_score_request",  # scikit-learn's own text
}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# A reference to something of ours that is not on the page is an error. What torch and Python have is not looked up.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!deepclust_ext\.).*")]

html_theme = "alabaster"
html_theme_options = {"description": "Deep clustering of images in PyTorch", "page_width": "70rem"}
html_copy_source = False
html_show_sphinx = False


def setup(app: Any) -> None:
    """Leave out what Python says of the fields of named tuples: their docstrings tell more."""
    app.connect(
        "autodoc-skip-member",
        lambda app, what, name, member, skip, options: (member.__doc__ or "").startswith("Alias for field") or None,
    )
