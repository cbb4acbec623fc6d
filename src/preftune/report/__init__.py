"""Pages for people, from the files of run directories: HTML, Markdown and PNG.

Imports neither torch nor training. `write.write_report` is the entry point.

    audit     the page of an audit
    html      skeleton and components of pages
    markdown  a report for a pull request
    png       charts as pictures
    reading   run directories read with suspicion
    run       the page of runs
    write     write_report
"""

__all__ = ["audit", "html", "markdown", "reading", "run", "write"]
