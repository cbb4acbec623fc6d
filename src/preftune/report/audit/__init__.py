"""The page of a data audit, from audit.json.

charts  charts of an audit
page    audit.json -> audit.html
"""

__all__ = ["page"]
