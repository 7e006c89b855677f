"""Big files of registered versions in an S3 store are sent to it once: an object that equals a file, digest for digest,
is copied within the store in place of an upload. S3 knows no links and stock clients read a version as one folder, so
that each version holds objects of its own there; deleting one leaves the others whole.

The digest is the object's ETag. It is an MD5 of the contents unless the bucket is encrypted with keys of a customer's
or KMS's own; files are then sent like any others.
"""

from __future__ import annotations

import hashlib
import posixpath
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow.store.artifact.artifact_repository_registry import get_registered_artifact_repositories
from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PART_BYTES = 8 * 2**20  # of boto3's uploads; a file of this size and above goes in parts
SMALL_BYTES = 64 * 2**10  # files below are as soon sent as copied
OF_MODELS = 2  # folders above a LoggedModel's artefacts in which its experiment's others are: models/<id>/artifacts


def etags(path: Path) -> set[str]:
    """Returns the ETags that an object with a file's contents may have: its MD5, and the one of an upload in parts.
    Source: Amazon S3 user guide, "Checking object integrity".
    """
    whole, parts = hashlib.md5(usedforsecurity=False), []
    with path.open("rb") as file:
        while part := file.read(PART_BYTES):
            whole.update(part)
            parts.append(hashlib.md5(part, usedforsecurity=False).digest())
    of_parts = hashlib.md5(b"".join(parts), usedforsecurity=False).hexdigest()
    return {whole.hexdigest(), f"{of_parts}-{len(parts)}"}


class SharedObjects(S3ArtifactRepository):  # type: ignore[misc]  # MLflow's class is not typed
    """A folder of an S3 store that takes from its neighbours, and from the folders at the addresses `near`, what they
    hold already. `copied` are the keys that were not sent.
    """

    def __init__(self, artifact_uri: str, *args: Any, near: tuple[str, ...] = (), **settings: Any) -> None:
        super().__init__(artifact_uri, *args, **settings)
        self.near, self.copied = near, list[str]()

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        """Puts a folder's files below `artifact_path`."""
        root = Path(local_dir)
        files = {str(path.relative_to(root)): path for path in sorted(root.rglob("*")) if path.is_file()}
        held = self._held() if any(path.stat().st_size >= SMALL_BYTES for path in files.values()) else {}
        for name, path in files.items():
            place = posixpath.join(artifact_path or "", name)
            if not self._copy(held.get((place, path.stat().st_size), {}), path, place):
                self.log_artifact(str(path), posixpath.dirname(place) or None)

    def _held(self) -> dict[tuple[str, int], dict[str, dict[str, str]]]:
        """Returns the objects of all folders nearby as {(path in the folder, bytes): {ETag: where it is}}."""
        bucket, here = self.parse_s3_compliant_uri(self.artifact_uri)
        models = "/".join(here.split("/")[:-OF_MODELS])
        found: dict[tuple[str, int], dict[str, dict[str, str]]] = {}
        places = [(bucket, f"{models}/", OF_MODELS)] if models.endswith("/models") else []
        for uri in self.near:
            other, key = self.parse_s3_compliant_uri(uri)
            places.append((other, f"{key.rstrip('/')}/", 0))
        for other, prefix, depth in places:
            for item in self._listed(other, prefix):
                path = item["Key"].removeprefix(prefix).split("/", depth)[-1]
                source = {"Bucket": other, "Key": item["Key"]}
                found.setdefault((path, item["Size"]), {})[item["ETag"].strip('"')] = source
        return found

    def _listed(self, bucket: str, prefix: str) -> Iterator[Mapping[str, Any]]:
        from botocore.exceptions import ClientError

        pages = self._get_s3_client().get_paginator("list_objects_v2")
        try:
            for page in pages.paginate(Bucket=bucket, Prefix=prefix, **self._bucket_owner_params):
                yield from page.get("Contents", [])
        except ClientError:  # a user who may not list, or another store's bucket: everything is sent
            return

    def _copy(self, held: Mapping[str, dict[str, str]], path: Path, place: str) -> bool:
        """Tells whether an object that equals the file was copied to its place."""
        from botocore.exceptions import ClientError

        equal = sorted(etags(path) & held.keys()) if held and path.stat().st_size >= SMALL_BYTES else []
        if not equal:
            return False
        bucket, here = self.parse_s3_compliant_uri(self.artifact_uri)
        settings = (self.get_s3_file_upload_extra_args() or {}) | self._bucket_owner_params
        settings |= {"CopySourceIfMatch": f'"{equal[0]}"'}
        key = posixpath.join(here, place)
        try:
            self._get_s3_client().copy(held[equal[0]], bucket, key, ExtraArgs=settings)
        except (ClientError, ValueError):  # gone or changed meanwhile, closed to us, or settings unknown to copies
            return False
        self.copied.append(key)
        return True


@contextmanager
def copies(*near: str) -> Iterator[None]:
    """Makes MLflow use `SharedObjects` for S3 for a while, with the folders `near` of which those of S3 count."""
    known: Any = get_registered_artifact_repositories()
    plain, objects = known["s3"], tuple(uri for uri in near if uri.startswith("s3://"))
    known["s3"] = lambda *words, **settings: SharedObjects(*words, near=objects, **settings)
    try:
        yield
    finally:
        known["s3"] = plain
