"""Files of lines of which all but the last are compressed, once nobody writes to them any more.

``NAME`` keeps its last lines, and ``NAME.gz`` has those before: whoever reads the file's end finds it as it was, and
whoever reads all of it reads the other one first.
"""

from __future__ import annotations

import gzip
import shutil
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from liver_slurm.base.files import replacing

KEPT = 1000
"""Lines that stay as they are."""
_CHUNK = 1 << 20


def archive_of(path: Path) -> Path:
    """Return the file that has the lines before those of ``path``, if there are such."""
    return path.with_name(f"{path.name}.gz")


def parts(path: Path) -> Iterator[BinaryIO]:
    """Yield what a file consists of, open to be read, the earlier lines first; the file need not be there."""
    if is_compressed(path):
        with gzip.open(archive_of(path)) as archive:
            yield cast(BinaryIO, archive)
    try:
        with path.open("rb") as stream:
            yield stream
    except FileNotFoundError:
        return


def earlier_lines(path: Path) -> list[bytes]:
    """Return the lines of a file that lie in its archive."""
    if not is_compressed(path):
        return []
    with gzip.open(archive_of(path)) as archive:
        return archive.read().splitlines()


def is_compressed(path: Path) -> bool:
    """Return whether earlier lines of a file lie in its archive."""
    archive = archive_of(path)
    if not archive.exists():
        return False
    if not path.exists():
        return True
    with gzip.open(archive) as old, path.open("rb") as stream:
        return old.readline() != stream.readline()  # else compress() did not come to its end


def compress(path: Path) -> None:
    """Compress all lines of a file but its last ones, once; a file that is shorter stays as it is.

    Nobody may write to it meanwhile. Whoever reads it, also after a crash in the midst of this, finds each line once.

    Raises:
        OSError: there is no room, or the file may not be written to; it is read as before.
    """
    if is_compressed(path):
        return
    with path.open("rb") as stream:
        kept = sum(map(len, deque(stream, maxlen=KEPT)))
        ahead = stream.tell() - kept
    if not ahead:
        return
    with path.open("rb") as stream:
        with replacing(archive_of(path)) as target, gzip.open(target, "wb") as packed:
            while stream.tell() < ahead:
                packed.write(stream.read(min(_CHUNK, ahead - stream.tell())))
        with replacing(path) as target:
            shutil.copyfileobj(stream, target)


def nbytes(path: Path) -> int:
    """Return the bytes that a file of lines takes, archive included."""
    return sum(one.stat().st_size for one in (path, archive_of(path)) if one.exists())
