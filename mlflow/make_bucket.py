"""Makes the bucket of MLFLOW_DEFAULT_ARTIFACT_ROOT in the store at MLFLOW_S3_ENDPOINT_URL, unless it is there."""

from __future__ import annotations

import os
import sys

import boto3
from botocore.exceptions import BotoCoreError, ClientError


def made(address: str) -> str:
    """Returns what was done for the bucket of an s3:// address. Raises ValueError where it names none."""
    name = address.removeprefix("s3://").partition("/")[0]
    if not name or not address.startswith("s3://"):
        raise ValueError(f"MLFLOW_DEFAULT_ARTIFACT_ROOT is {address!r}, not s3://BUCKET/PATH")
    store = boto3.client("s3", endpoint_url=os.environ.get("MLFLOW_S3_ENDPOINT_URL") or None)
    try:
        store.head_bucket(Bucket=name)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("404", "NoSuchBucket"):
            raise
        store.create_bucket(Bucket=name)
        return f"bucket {name} made"
    return f"bucket {name} is there"


def main() -> None:
    """Runs the command."""
    try:
        told = made(os.environ.get("MLFLOW_DEFAULT_ARTIFACT_ROOT", ""))
    except (ValueError, BotoCoreError, ClientError) as error:
        sys.exit(f"error: {' '.join(str(error).split()):.500}")
    sys.stdout.write(f"{told}\n")


if __name__ == "__main__":
    main()
