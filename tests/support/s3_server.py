"""An S3-compatible store on loopback, for what an MLflow server keeps in a bucket."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import boto3
from botocore.exceptions import BotoCoreError

_UP_WITHIN_S = 60.0


class S3Server:
    """moto's server as one process, with one bucket."""

    bucket = "runs"

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.environment = {
            "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "drawn",
            "AWS_SECRET_ACCESS_KEY": "for-this-test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        with (folder / "s3.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)],
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + _UP_WITHIN_S
        while True:
            try:
                self._client().create_bucket(Bucket=self.bucket)
                return
            except BotoCoreError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    self.end()
                    raise
                time.sleep(0.3)

    def keys(self) -> list[str]:
        """The names of all that lies in the bucket."""
        found = self._client().list_objects_v2(Bucket=self.bucket)
        return [one["Key"] for one in found.get("Contents", [])]

    def end(self) -> None:
        """End it; what it held is gone."""
        self._process.kill()
        self._process.wait(30)

    def _client(self):  # type: ignore[no-untyped-def]  # boto3 makes its classes as it runs
        return boto3.client(
            "s3",
            endpoint_url=self.environment["MLFLOW_S3_ENDPOINT_URL"],
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
            region_name=self.environment["AWS_DEFAULT_REGION"],
        )
