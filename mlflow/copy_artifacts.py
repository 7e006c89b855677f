"""Copies a tree of artefacts, byte for byte, between folders and s3:// addresses:

    python mlflow/copy_artifacts.py s3://sana-sprint/mlflow /backup/artifacts

Every file is read back from where it went and its sha256 compared. What lies at the target already is overwritten where
the names are the same. The store is MLFLOW_S3_ENDPOINT_URL with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from typing import IO, TYPE_CHECKING, Any

import fsspec
from botocore.exceptions import BotoCoreError, ClientError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

BLOCK = 1 << 20  # bytes
FAULTS = (ValueError, OSError, BotoCoreError, ClientError)  # told in one line


def place(address: str) -> tuple[AbstractFileSystem, str]:
    """Returns the file system of an address, and its path in it without a slash at the end."""
    options: dict[str, Any] = {}
    if address.startswith("s3://"):
        options["endpoint_url"] = os.environ.get("MLFLOW_S3_ENDPOINT_URL") or None
    system, path = fsspec.core.url_to_fs(address, **options)
    return system, path.rstrip("/")


def files(system: AbstractFileSystem, root: str) -> list[str]:
    """Returns the paths of all files below `root`, relative to it. Raises ValueError when there is nothing."""
    if not system.exists(root):
        raise ValueError(f"{root}: there is nothing")
    return sorted(path.removeprefix(root).lstrip("/") for path in system.find(root))


def digest_while(source: IO[bytes], target: IO[bytes] | None = None) -> str:
    """Returns the sha256 of what is left of `source`, which goes to `target` meanwhile."""
    digest = hashlib.sha256()
    while block := source.read(BLOCK):
        digest.update(block)
        if target is not None:
            target.write(block)
    return digest.hexdigest()


def copy(source: str, target: str) -> dict[str, str]:
    """Copies all files of one address to another and returns their sha256 by relative path. Raises ValueError when a
    file reads otherwise from where it went.
    """
    there, origin = place(source)
    here, goal = place(target)
    digests = {}
    for name in files(there, origin):
        here.makedirs(f"{goal}/{name}".rpartition("/")[0], exist_ok=True)
        with there.open(f"{origin}/{name}", "rb") as reader, here.open(f"{goal}/{name}", "wb") as writer:
            digests[name] = digest_while(reader, writer)
        with here.open(f"{goal}/{name}", "rb") as reader:
            if digest_while(reader) != digests[name]:
                raise ValueError(f"{target}/{name}: reads otherwise than {source}/{name}")
    return digests


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("target")
    chosen = parser.parse_args()
    try:
        copied = copy(chosen.source, chosen.target)
    except FAULTS as error:
        parser.exit(1, f"error: {' '.join(str(error).split()):.500}\n")
    sys.stdout.write(f"{len(copied)} files copied and read back: {chosen.source} -> {chosen.target}\n")


if __name__ == "__main__":
    main()
