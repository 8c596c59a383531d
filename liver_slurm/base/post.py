"""``python -m liver_slurm.base.post``: post a JSON document, in a process that can be ended at any moment.

Stdin has ``{"url", "timeout", "document"}``. Exit code 1: it was not accepted, and stderr says why in one line without
the URL, which is a secret. A redirection is not followed: what is posted must not become a question.
"""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Takes a redirection for an error."""

    def redirect_request(self, *_: Any) -> None:
        """Make no second request."""


def post(url: str, document: dict[str, Any], timeout: float) -> str:
    """Post a document; returns why it was not accepted, empty: it was.

    Args:
        timeout: seconds that each part of the exchange may take.
    """
    headers = {"Content-Type": "application/json", "User-Agent": "liver-slurm"}
    try:
        request = urllib.request.Request(url, json.dumps(document).encode(), headers, method="POST")
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=timeout):
            return ""
    except urllib.error.HTTPError as error:
        return f"HTTP status {error.code}"
    except urllib.error.URLError as error:
        return str(getattr(error.reason, "strerror", None) or type(error.reason).__name__)
    except (OSError, HTTPException, ValueError) as error:
        return type(error).__name__  # its text may have the URL in it


def main() -> int:
    """Post what stdin says."""
    given = json.load(sys.stdin)
    why = post(given["url"], given["document"], given["timeout"])
    if why:
        print(why, file=sys.stderr)
    return 1 if why else 0


if __name__ == "__main__":
    sys.exit(main())
