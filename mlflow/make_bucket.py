"""Makes the bucket of MLFLOW_DEFAULT_ARTIFACT_ROOT in the store at MLFLOW_S3_ENDPOINT_URL, unless it is there."""

from __future__ import annotations

import os
import sys

import boto3
from botocore.exceptions import ClientError


def main() -> None:
    """Runs the command."""
    name = os.environ["MLFLOW_DEFAULT_ARTIFACT_ROOT"].removeprefix("s3://").partition("/")[0]
    store = boto3.client("s3", endpoint_url=os.environ.get("MLFLOW_S3_ENDPOINT_URL") or None)
    try:
        store.head_bucket(Bucket=name)
        sys.stdout.write(f"bucket {name} is there\n")
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("404", "NoSuchBucket"):
            raise
        store.create_bucket(Bucket=name)
        sys.stdout.write(f"bucket {name} made\n")


if __name__ == "__main__":
    main()
