"""Configuration of Sphinx: `make docs`. The site reads no address outside of itself."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import docs.manuals  # noqa: E402
import docs.pages  # noqa: E402
import docs.reference  # noqa: E402
import docs.tables  # noqa: E402
from docs.markdown import relocate, write_pages  # noqa: E402

project = "hpenv"
author = "the authors of hpenv"
project_copyright = "the authors of hpenv"
html_title = "hpenv"

extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
nitpicky = True

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
# The theme's own fonts are those of the reader's system.
html_theme_options = {"sidebar_hide_name": False, "navigation_with_keys": True}

GENERATED = HERE / "generated"
write_pages(
    GENERATED,
    docs.tables.tables() | docs.manuals.manuals() | docs.reference.reference() | docs.pages.pages(),
)


def _relocate_links(app, docname, source):
    """Rewrites links to files that are not on the site."""
    if not docname.startswith("generated/"):
        source[0] = relocate(source[0], (HERE / docname).parent, (HERE / docname).parent)


def setup(app):
    """Connects the events of Sphinx."""
    app.connect("source-read", _relocate_links)
