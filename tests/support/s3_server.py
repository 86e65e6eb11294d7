"""An S3-compatible store on loopback, for what an MLflow server keeps in a bucket."""

import boto3
from moto.server import ThreadedMotoServer


class S3Server:
    """moto's server in a thread of this process, with one bucket."""

    bucket = "runs"

    def __init__(self) -> None:
        self._server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.environment = {
            "MLFLOW_S3_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "drawn",
            "AWS_SECRET_ACCESS_KEY": "for-this-test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self._client().create_bucket(Bucket=self.bucket)

    def keys(self) -> list[str]:
        """The names of all that lies in the bucket."""
        found = self._client().list_objects_v2(Bucket=self.bucket)
        return [one["Key"] for one in found.get("Contents", [])]

    def end(self) -> None:
        """End it."""
        self._server.stop()

    def _client(self):  # type: ignore[no-untyped-def]  # boto3 makes its classes as it runs
        return boto3.client(
            "s3",
            endpoint_url=self.environment["MLFLOW_S3_ENDPOINT_URL"],
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
            region_name=self.environment["AWS_DEFAULT_REGION"],
        )
