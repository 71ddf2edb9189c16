"""Fetch files from the Hugging Face hub by address and revision, and verify them.

The hub's cache names a file by the hash that the server gave: SHA-256 of a large file, git's hash of a small one. The
client does not compare them; this module does, since a file from elsewhere may have no checksum of its own.
"""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path

from lm_eval_cna.errors import InterventionError

logger = logging.getLogger(__name__)

SCHEME = "hf://"
_FORM = "hf://owner/repo/file@revision"
_COMMIT = re.compile(r"[0-9a-f]{40}")
# For the owner, repository, folders, file and parts of the revision, which become names in the cache.
_NAME = re.compile(r"(?!\.\.?$)[\w. +-]{1,200}", re.ASCII)


def fetch(address: str) -> Path:
    """Find a file in the hub's cache, or download it into the cache.

    A branch or a tag may move, so a warning gives the address with the commit instead.

    Args:
        address: `hf://owner/repo/file@revision`; the revision is a commit, a tag or a branch.

    Raises:
        InterventionError: the address has another form, or the file cannot be fetched or does not match its hash.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    location, _, revision = address.removeprefix(SCHEME).partition("@")
    parts = location.split("/")
    if len(parts) < 3 or not all(_NAME.fullmatch(part) for part in (*parts, *revision.split("/"))):
        raise InterventionError("not an address of a file on the hub", got=address, allowed=_FORM)
    try:
        path = Path(hf_hub_download("/".join(parts[:2]), "/".join(parts[2:]), revision=revision))
        _verify(address, path.resolve())
    except (HfHubHTTPError, LocalEntryNotFoundError, ValueError, OSError) as error:
        raise InterventionError(f"cannot fetch {address}: {error}") from error
    commit = next((part for part in reversed(path.parts[:-1]) if _COMMIT.fullmatch(part)), None)
    if commit is not None and commit != revision:
        logger.warning("%s is a name that may move; this was %s%s@%s", address, SCHEME, location, commit)
    return path


def _verify(address: str, blob: Path) -> None:
    """Compare a file with the hash in its name; a cache without symbolic links keeps no hashes."""
    if blob.parent.name != "blobs":
        return
    with blob.open("rb") as file:
        if len(blob.name) == 64:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        elif _COMMIT.fullmatch(blob.name):
            content = file.read()
            found = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        else:
            return
    if found != blob.name:
        raise InterventionError(
            f"{address} is damaged in the hub's cache", got=found, allowed=blob.name, do=f"delete {blob}"
        )
