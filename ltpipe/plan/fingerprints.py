"""Fingerprints of outside data: contents, read once for each state of a file.

A fingerprint is a hash over the names and contents of files. Contents are remembered together
with what the file system says of each file, so that planning only asks for that, and reads what
is new. Files are named relative to their folder: moving or copying it changes no fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import sys
import time
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from ltpipe.utils.errors import DiskError, InputError
from ltpipe.utils.io import atomic_path, open_regular, printable, write_text_atomic
from ltpipe.utils.progress import track

_CACHE_FORMAT = b"ltpipe-hashes/1"
_RECORD_FORMAT = "ltpipe-fingerprint/1"
_DIGEST = re.compile(r"[0-9a-f]{64}")
# Within this time of its last change, a file can change again and show the same times (as with
# git's index): such a file is read anew next time. Times beyond a day ahead were set by hand.
_RACY_NS = 2_000_000_000
_DAY_NS = 86_400_000_000_000
_QUIET_SECONDS = 3.0
_CHUNK = 64
_AGAIN = "plan again: start the run anew"
# Paths are strings below: 100,000 objects of Path would double the time of planning.


@dataclass(frozen=True)
class Fingerprint:
    """What files from outside contain.

    Attributes:
        digest: 64 hex digits over all names and contents.
        files: the SHA-256 of each file, by its name.
    """

    digest: str
    files: Mapping[str, str]


def fingerprint(
    files: Mapping[str, Path | str] | Iterable[tuple[str, Path | str]], cache: Path, title: str
) -> Fingerprint:
    """Return the fingerprint of `files`, given by their relative names.

    Contents are read once for each state of a file and remembered in the file `cache`. `title`
    says in progress and messages whose files they are.

    Raises:
        InputError: a file is missing, not a regular file or can't be read, or is being written;
            or a name is given twice.
    """
    known = _read_cache(cache)
    hashes: dict[str, str] = {}
    folders: dict[str, str] = {}
    unknown: dict[str, tuple[str, str]] = {}
    for name, given in files.items() if isinstance(files, Mapping) else files:
        path = os.fspath(given)
        folder, _, last = path.rpartition("/")
        if folder not in folders:
            # Where a link to a file itself leads is seen by its inode.
            folders[folder] = os.path.realpath(folder or path[: path.startswith("/")] or ".")
        key = f"{folders[folder]}/{last}"
        state, _, digest = known.get(key, "").rpartition(" ")
        if state != _state(path, _status(path)):
            digest = ""
        if name in hashes:
            raise InputError(f"{title}: {printable(name)} is named twice")
        hashes[name] = digest
        if not digest:
            unknown[name] = path, key
    if unknown:
        fresh: dict[str, tuple[str, str | None]] = {}
        try:
            _hash_all([path for path, _ in unknown.values()], title, fresh)
        finally:
            # What was read before an interruption need not be read again.
            _remember(cache, dict(unknown.values()), fresh, set(folders.values()))
        hashes |= {name: fresh[path][0] for name, (path, _) in unknown.items()}
    return _fingerprint(hashes)


def _fingerprint(files: Mapping[str, str]) -> Fingerprint:
    ordered = dict(sorted(files.items()))
    text = "".join([f"{name}\0{digest}\n" for name, digest in ordered.items()])
    return Fingerprint(hashlib.sha256(_bytes(text)).hexdigest(), ordered)


def files_below(root: Path, suffixes: Collection[str] | None = None) -> Iterator[tuple[str, str]]:
    """Yield the files below `root`: name relative to it, and path; in a stable order.

    Links are followed. With `suffixes`, such as `.png`, only files that end in one of them, in
    whatever case, count.

    Raises:
        InputError: a folder can't be read, or a link leads back to a folder that it is in.
    """
    stack: list[tuple[str, str, tuple[tuple[int, int], ...]]] = [(os.fspath(root), "", ())]
    while stack:
        folder, prefix, above = stack.pop()
        try:
            status = os.stat(folder)  # noqa: PTH116
            here = status.st_dev, status.st_ino
            if here in above:
                shown = printable(folder)
                raise InputError(f"{shown}: a link to a folder that it is in; remove the link")
            with os.scandir(folder) as listed:
                entries = sorted([(entry.name, entry.is_dir()) for entry in listed])
        except OSError as error:
            raise _unreadable(folder, error) from None
        inner = []
        for name, is_folder in entries:
            if is_folder:
                inner.append((f"{folder}/{name}", f"{prefix}{name}/", (*above, here)))
            elif suffixes is None or os.path.splitext(name)[1].lower() in suffixes:  # noqa: PTH122
                yield prefix + name, f"{folder}/{name}"
        stack += reversed(inner)


# ---- records ---------------------------------------------------------------------------------


def record(folder: Path, key: str, found: Fingerprint) -> None:
    """Keep a fingerprint in `folder` under `key`: it stands in where the data are absent.

    The hashes of its files are kept under its digest, so that jobs which were planned with an
    earlier one still find theirs.
    """
    listing = _listing(folder, found.digest)
    if not listing.is_file():
        names = zlib.compress(_bytes("\0".join(found.files)))
        header = {"format": _RECORD_FORMAT, "files": len(found.files), "names": len(names)}
        with atomic_path(listing) as temporary, open(temporary, "wb") as handle:
            handle.write(json.dumps(header).encode() + b"\n" + names)
            handle.write(bytes.fromhex("".join(found.files.values())))
    mark = folder / _file_name(key)
    if not mark.is_file() or mark.read_text(encoding="utf-8", errors="replace") != found.digest:
        write_text_atomic(mark, found.digest)


def recorded(folder: Path, key: str) -> Fingerprint | None:
    """Return the fingerprint that was kept under `key`; None if there is none, or it is damaged."""
    mark = folder / _file_name(key)
    try:
        digest = mark.read_text(encoding="utf-8")
        return recorded_files(folder, digest) if _DIGEST.fullmatch(digest) else None
    except (OSError, UnicodeDecodeError, InputError):
        return None


def recorded_files(folder: Path, digest: str) -> Fingerprint:
    """Return the fingerprint of this digest, with the hashes of its files.

    Raises:
        InputError: it was not kept, or is damaged.
    """
    path = _listing(folder, digest)
    try:
        head, _, body = path.read_bytes().partition(b"\n")
        header = json.loads(head)
        names = zlib.decompress(body[: header["names"]]).decode("utf-8", "surrogatepass")
        digits = body[header["names"] :].hex()
        parts = names.split("\0") if header["files"] else []
        files = {name: digits[64 * i : 64 * i + 64] for i, name in enumerate(parts)}
        found = _fingerprint(files)
        if found.digest != digest:
            raise ValueError
    except FileNotFoundError:
        raise InputError(f"{path}: not there; {_AGAIN}") from None
    except (OSError, ValueError, KeyError, TypeError, zlib.error):
        raise InputError(f"{path}: damaged; delete it and {_AGAIN}") from None
    return found


def _listing(folder: Path, digest: str) -> Path:
    return folder / f"{digest[:20]}.files"


def _file_name(key: str) -> str:
    """Return a file's name for a key, which may hold anything."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", key)[:60]
    return f"{plain}-{hashlib.sha256(_bytes(key)).hexdigest()[:8]}.digest"


# ---- reading files ---------------------------------------------------------------------------


def _status(path: str) -> os.stat_result:
    try:
        return os.stat(path)  # noqa: PTH116
    except OSError as error:
        raise _unreadable(path, error) from None


def _state(path: str, status: os.stat_result) -> str:
    """Return what the file system says of a file, all that must be equal for equal contents."""
    if not stat.S_ISREG(status.st_mode):
        raise _irregular(path)
    return f"{status.st_size} {status.st_ino} {status.st_mtime_ns} {status.st_ctime_ns}"


def _hash_all(paths: list[str], title: str, fresh: dict[str, tuple[str, str | None]]) -> None:
    """Add to `fresh` each file's SHA-256 and its state, or None for one that can't be trusted."""
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    started, said = time.monotonic(), sys.stderr.isatty()
    with ThreadPoolExecutor(min(16, (os.cpu_count() or 1) + 1)) as pool:
        try:
            for results in track(pool.map(_hash_some, chunks), f"Reading {title}", len(chunks)):
                fresh |= results
                if not said and time.monotonic() - started > _QUIET_SECONDS:
                    said = True
                    text = f"{title}: reading {len(paths):,} new or changed files to identify them"
                    print(text, file=sys.stderr, flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _hash_some(paths: list[str]) -> dict[str, tuple[str, str | None]]:
    return {path: _hash_one(path) for path in paths}


def _hash_one(path: str) -> tuple[str, str | None]:
    with _opened(path) as handle:
        now = time.time_ns()
        before = os.fstat(handle.fileno())
        state = _state(path, before)
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
        if _state(path, os.fstat(handle.fileno())) != state:
            raise InputError(f"{printable(path)}: changed while it was read; {_AGAIN}")
    racy = any(-_RACY_NS < ns - now < _DAY_NS for ns in (before.st_mtime_ns, before.st_ctime_ns))
    return digest, None if racy else state


@contextmanager
def _opened(path: str | Path) -> Iterator[BufferedReader]:
    """Open a regular file; anything else, such as a pipe that would block, is refused."""
    try:
        with open_regular(path) as handle:
            yield handle
    except OSError as error:
        raise _unreadable(path, error) from None


def _irregular(path: str | Path) -> InputError:
    return InputError(f"{printable(path)}: not a regular file; remove it, or name another")


def _unreadable(path: str | Path, error: OSError) -> InputError:
    return InputError(f"{printable(path)}: can't be read ({error.strerror or error})")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


# ---- the cache -------------------------------------------------------------------------------


def _read_cache(path: Path) -> dict[str, str]:
    """Return state and SHA-256 by path; nothing from a damaged file, which is said."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise _unreadable(path, error) from None
    head, _, body = data.partition(b"\n")
    try:
        name, _, checksum = head.partition(b" ")
        if name != _CACHE_FORMAT or checksum.decode() != hashlib.sha256(body).hexdigest():
            raise ValueError
        parts = body.decode("utf-8", "surrogatepass").split("\0")
    except ValueError:
        print(f"{path}: damaged; made again from the files", file=sys.stderr, flush=True)
        return {}
    return dict(zip(parts[::2], parts[1::2], strict=False))


def _remember(
    cache: Path,
    keys: Mapping[str, str],
    fresh: Mapping[str, tuple[str, str | None]],
    folders: Collection[str],
) -> None:
    """Add what was read to the cache; `keys` are the files' names there."""
    # Another process may have added to it meanwhile.
    known = _read_cache(cache)
    for path, (digest, trusted) in fresh.items():
        known.pop(keys[path], None)
        if trusted is not None:
            known[keys[path]] = f"{trusted} {digest}"
    try:
        _write_cache(cache, known, folders)
    except DiskError as error:
        print(f"{error}; these files are read again next time", file=sys.stderr, flush=True)


def _write_cache(path: Path, entries: Mapping[str, str], folders: Collection[str]) -> None:
    """Write the cache, whole or not at all; forget files that are gone from `folders`."""
    rows = [
        f"{key}\0{entry}"
        for key, entry in entries.items()
        if key.rpartition("/")[0] not in folders or os.path.lexists(key)
    ]
    body = _bytes("\0".join(rows))
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        handle.write(_CACHE_FORMAT + b" " + hashlib.sha256(body).hexdigest().encode() + b"\n")
        handle.write(body)
