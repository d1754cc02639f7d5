"""Where data files lie, whether they are whole, and how they get there.

With CODESIGN_DATA set, files are read from that folder, laid out as the public downloads are (`MNIST/raw/*.gz`,
`cifar-10-batches-bin/*.bin`, `weights/*.safetensors`), and nothing is ever written there. Without it a folder in the
user's cache is used, filled on demand. Every file has a size and a SHA-256, checked once a process before it is
read and, for a download, before it is moved into place: a cut connection leaves nothing behind.
"""

from __future__ import annotations

import functools
import hashlib
import http.client
import os
import sys
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from workloads.errors import DataError

VARIABLE = "CODESIGN_DATA"
CHUNK_BYTES = 1 << 20
TIMEOUT_S = 30


@dataclass(frozen=True)
class DataFile:
    """One published file.

    Attributes:
        path: where it lies below the data folder, and its name inside the archive where there is one.
        size_bytes, sha256: of the file.
        url: where it can be had; "" where it cannot be downloaded by a program.
        archive_md5: published MD5 sum of the tar archive behind `url`; "" where `url` is the file itself.
    """

    path: str
    size_bytes: int
    sha256: str
    url: str = ""
    archive_md5: str = ""


def data_root() -> Path:
    """The folder of all data: CODESIGN_DATA, or `codesign` in the user's cache (XDG_CACHE_HOME, ~/.cache).

    Raises:
        DataError: CODESIGN_DATA is set to something that is not a folder.
    """
    if given := os.environ.get(VARIABLE):
        root = Path(given).expanduser()
        if not root.is_dir():
            raise DataError(f"{VARIABLE}={given} is not a folder; set it to the folder of your data sets, or unset it")
        return root
    return cache_folder()


def cache_folder() -> Path:
    """`codesign` in the user's cache (XDG_CACHE_HOME, ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "codesign"


def locate(name: str, needed: Sequence[DataFile], known: Sequence[DataFile], root: Path | None = None) -> Path:
    """Make sure that the needed files of a data set are there and whole.

    Args:
        name: of the data set, for messages.
        needed: the files that are about to be read.
        known: all files of the data set; those that share an archive with a missing one are unpacked with it.
        root: read from here and never download; by default `data_root()`, filled by a download when it is the cache.

    Returns:
        The folder that the paths of the files are relative to.

    Raises:
        DataError: a file is missing, truncated or altered, or the download failed.
    """
    may_download = root is None and not os.environ.get(VARIABLE)
    root = data_root() if root is None else root
    missing = [file for file in needed if not (root / file.path).is_file()]
    if missing and not may_download:
        raise DataError(_missing_message(name, missing[0], root))
    for url in dict.fromkeys(file.url for file in missing):
        if not url:
            raise DataError(f"{name} cannot be downloaded; set {VARIABLE} to a folder that holds {missing[0].path}")
        download(url, [file for file in known if file.url == url], root)
    for file in needed:
        check_file(root / file.path, file)
    return root


def check_file(path: Path, file: DataFile, label: str = "") -> None:
    """Compare a file with its published size and SHA-256; DataError if it differs."""
    label = label or str(path)
    try:
        status = path.stat()
        if status.st_size != file.size_bytes:
            found = f"{status.st_size:,} of {file.size_bytes:,} bytes"
            raise DataError(f"{label}: {found}, so it is truncated or another file; download it again")
        if _sha256(path, status.st_size, status.st_mtime_ns) != file.sha256:
            raise DataError(f"{label}: SHA-256 differs from the published file; download it again")
    except OSError as error:
        raise DataError(f"{label}: cannot be read ({error.strerror or error})") from error


def download(url: str, files: Sequence[DataFile], root: Path) -> None:
    """Fetch one address and move the files that it holds below `root`, all of them checked first.

    Args:
        url: the file itself, or a tar archive when the files have an `archive_md5`.
        files: what to keep.
        root: made if missing.

    Raises:
        DataError: no connection, a wrong checksum or no right to write. Nothing is left behind.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as folder:
            fetched = Path(folder) / "download"
            _retrieve(url, fetched)
            parts = _unpack(url, fetched, files) if files[0].archive_md5 else [fetched]
            for part, file in zip(parts, files, strict=True):
                check_file(part, file, label=f"{url}: {Path(file.path).name}")
            for part, file in zip(parts, files, strict=True):
                (root / file.path).parent.mkdir(parents=True, exist_ok=True)
                part.replace(root / file.path)
    except (OSError, EOFError, http.client.HTTPException, tarfile.TarError, zlib.error) as error:
        hint = f"fetch it by other means, lay the files out below one folder and set {VARIABLE} to it"
        reason = " ".join(str(error).split())
        raise DataError(f"{url} could not be stored below {root} ({reason}); {hint}") from error


def _missing_message(name: str, file: DataFile, root: Path) -> str:
    empty = " (the folder is empty)" if root.is_dir() and not any(root.iterdir()) else ""
    hint = f"; put it there, or let it be downloaded with {VARIABLE} unset" if file.url else "; put it there"
    return f"{name}: {root / file.path} does not exist{empty}{hint}"


@functools.lru_cache(maxsize=64)
def _sha256(path: Path, size_bytes: int, modified_ns: int) -> str:
    """Hex digest; size and time are only there so that a changed file is read again."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _retrieve(url: str, target: Path) -> None:
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response, target.open("wb") as out:
        length = response.headers.get("Content-Length")
        for chunk in _with_progress(response, url, int(length) if length else None):
            out.write(chunk)


def _with_progress(response: BinaryIO, url: str, total_bytes: int | None) -> Iterable[bytes]:
    """The chunks of a response, with a bar on standard error when that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(url.rsplit("/", 1)[-1], total=total_bytes)
        while chunk := response.read(CHUNK_BYTES):
            progress.advance(task, len(chunk))
            yield chunk


def _unpack(url: str, archive: Path, files: Sequence[DataFile]) -> list[Path]:
    """The named members only, each read no further than its published size: a tar archive may hold anything."""
    with archive.open("rb") as stream:
        if hashlib.file_digest(stream, "md5").hexdigest() != files[0].archive_md5:
            raise DataError(f"{url}: MD5 differs from the published archive; try again later or another mirror")
    parts = []
    with tarfile.open(archive) as tar:
        for number, file in enumerate(files):
            try:
                member = tar.extractfile(file.path)
            except KeyError:
                member = None
            if member is None:
                raise DataError(f"{url}: the archive has no file {file.path}")
            parts.append(archive.with_name(f"member-{number}"))
            parts[-1].write_bytes(member.read(file.size_bytes + 1))
    return parts
