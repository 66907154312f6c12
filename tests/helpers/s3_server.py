"""A real S3 server on the loopback interface (moto's server mode) that fails now and then."""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "nothing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "1",  # errors must reach the program
}


class Failing:
    """A WSGI application that replaces some responses of another one by errors, or truncates them.

    Attributes:
        share: the share of requests for objects that fail.
        failed: the number of requests that failed.
        puts: the keys that were written, in order.
    """

    def __init__(self, application: Any) -> None:
        self._application, self._random = application, random.Random(0)
        self.share, self.failed = 0.0, 0
        self.puts: list[str] = []

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        key = path.strip("/").partition("/")[2]
        if key and method == "PUT":
            self.puts.append(key)
        if not key or self._random.random() >= self.share:
            return self._application(environ, start)
        self.failed += 1
        if method == "GET" and self._random.random() < 0.5:
            return _cut_short(self._application(environ, start))
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start("500 Internal Server Error", [("Content-Type", "application/xml")])
        return [b"<Error><Code>InternalError</Code><Message>try again</Message></Error>"]


def _cut_short(response: Any) -> Iterator[bytes]:
    whole = b"".join(response)
    yield whole[: len(whole) // 2]


@contextmanager
def s3_server() -> Iterator[tuple[str, Failing]]:
    """Run a server; yield its address, and the application that makes requests fail."""
    import threading

    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    application = Failing(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", application
    finally:
        server.shutdown()
        thread.join()


def in_environment(url: str) -> dict[str, str]:
    """Return the environment variables with which clients use the server."""
    return {**os.environ, **ENVIRONMENT, "AWS_ENDPOINT_URL": url, "AWS_ENDPOINT_URL_S3": url}
