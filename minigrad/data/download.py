"""Fetching a file from the network: checksum first, then the file appears whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from minigrad.errors import DataError
from minigrad.interop.safetensors import replacing

_CHUNK = 1 << 18  # bytes
_TIMEOUT = 60  # seconds without a byte


def fetch(urls: Sequence[str], path: Path, *, md5: str, progress: bool = True) -> Path:
    """Make `path` the file with checksum `md5`, downloading it from the first URL that has it.

    A file that is there already is checked and kept.

    Args:
        urls: the same file at several places, tried in order; any scheme urllib knows.
        path: where the file goes; its folder is made when missing.
        md5: hexadecimal digest of the whole file.
        progress: show a bar on standard error.

    Raises:
        DataError: the file (there already, or at every URL) has another checksum.
        OSError: no URL could be read, or `path` not be written.
    """
    if path.exists():
        _check(str(path), _file_md5(path), md5, "Delete the file to download it again.")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    failures: list[Exception] = []
    for url in urls:
        try:
            _download(url, path, md5, progress)
        except (OSError, DataError) as error:
            failures.append(error)
        else:
            return path
    for error in failures:
        if isinstance(error, DataError):
            raise error
    reasons = "; ".join(f"{url}: {error}" for url, error in zip(urls, failures, strict=True))
    raise OSError(
        f"download of {path.name}: expected one of {len(urls)} addresses to work, got {reasons}. "
        f"Check the connection, or put the file at {path} yourself."
    ) from failures[-1]


def _download(url: str, path: Path, md5: str, progress: bool) -> None:
    from http.client import HTTPException
    from urllib.request import urlopen

    from tqdm import tqdm

    digest = _md5()
    try:
        with urlopen(url, timeout=_TIMEOUT) as response, replacing(path) as file:
            total = int(response.headers.get("Content-Length") or 0) or None
            bar = tqdm(total=total, unit="B", unit_scale=True, desc=path.name, disable=not progress)
            with bar:
                while chunk := response.read(_CHUNK):
                    digest.update(chunk)
                    file.write(chunk)
                    bar.update(len(chunk))
            _check(url, digest.hexdigest(), md5, "The download was cut short or altered.")
    except HTTPException as error:
        raise OSError(f"{url}: {type(error).__name__} {error}") from error


def _md5():
    import hashlib

    return hashlib.md5(usedforsecurity=False)


def _file_md5(path: Path) -> str:
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, _md5).hexdigest()


def _check(caller: str, got: str, expected: str, advice: str) -> None:
    if got != expected:
        raise DataError(f"{caller}: expected MD5 {expected}, got {got}. {advice}")
