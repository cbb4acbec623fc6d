"""`preftune push`: an exported artefact to the hub."""

from __future__ import annotations

from collections.abc import Sequence

from preftune.cli.flags.messages import tell
from preftune.cli.flags.plain_parser import PlainParser


def run(argv: Sequence[str]) -> int:
    """Runs `preftune push` and returns its exit code."""
    parser = PlainParser(
        prog="preftune push",
        description="Upload one artefact of preftune export with its card to the Hugging Face hub: the files that its "
        "manifest names, and no others. A new repository is private unless --public is given.",
    )
    parser.add_argument("folder", metavar="ARTEFACT", help="a folder that preftune export has written")
    parser.add_argument("--to", required=True, metavar="OWNER/NAME", help="the repository; it is created if missing")
    parser.add_argument("--public", action="store_true", help="make a new repository public")
    parser.add_argument("--license", metavar="NAME", help="licence for the card, such as apache-2.0")
    asked = parser.read(argv)

    from preftune.deploy import push

    tell(f"Uploaded: {push(asked.folder, asked.to, public=asked.public, licence=asked.license)}")
    return 0
