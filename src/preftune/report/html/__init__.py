"""The skeleton of every page, and the pieces of markup that sections share.

All text from data is escaped here.

    components  markup that sections share
    document    the skeleton of a page
    templates   Jinja2 with autoescape, and its filters
    vega_lite   charts in Vega-Lite's grammar
"""

__all__ = ["components", "document", "templates", "vega_lite"]
