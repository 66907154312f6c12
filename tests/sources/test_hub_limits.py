"""Limits for servers: malformed and endless responses, and delays."""

import json
import logging
import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mae_convert.errors import MaeConvertError, MissingRequirementError
from mae_convert.sources import client as our_hub
from mae_convert.sources import limits as hub_limits
from mae_convert.sources.client import (
    account_of,
    client,
    hub_errors_explained,
    wait_after,
    with_retries,
)
from mae_convert.sources.limits import LONGEST_WAIT, seconds_of

TOKEN = "tokenThatIsEchoed"


class RefusalError(Exception):
    """The exception of the client for a response with a status of 400 or more."""

    def __init__(self, headers=None, status=503):
        super().__init__("busy")
        self.response = type("Response", (), {"headers": headers or {}, "status_code": status})


class ConnectError(Exception):
    """Has the name of the client's error for a connection that was not established."""


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("7", 7), (" 7 ", 7), ("-7", None), ("1.5", None), ("", None), ("soon", None),
     ("²", None), ("٣", None), ("9" * 400, None), ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
     ("Wed, 21 Oct 2015 07:28:00 -0000", 0), ("Wed, 99 Oct 2015 07:28:00 GMT", None)],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date(text, seconds):
    assert seconds_of(text) == seconds


def test_retry_after_date_in_the_future_is_waited_for():
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=40), usegmt=True)
    assert 37 < (wait_after(RefusalError({"Retry-After": later}), 0) or 0) <= 40
    too_late = format_datetime(datetime.now(UTC) + timedelta(days=2), usegmt=True)
    assert wait_after(RefusalError({"Retry-After": too_late}), 0) is None


def test_each_kind_of_failure_has_its_own_delays(monkeypatch):
    monkeypatch.setattr(our_hub, "WAITS_FOR_A_CONNECTION", (3, 5))
    assert [wait_after(ConnectError(), n) for n in range(3)] == [3, 5, None]
    assert [wait_after(RefusalError(), n) for n in range(6)] == [1, 2, 4, 8, 8, None]


def test_total_delay_has_a_limit():
    error = RefusalError({"Retry-After": "200"})
    assert wait_after(error, 0) == 200
    assert wait_after(error, 1, waited=200) is None
    assert wait_after(RefusalError(), 1, waited=LONGEST_WAIT) is None


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server with one response for every request of the real client. Yields the response."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    response = {"status": 200, "headers": {}, "body": b"", "forever": False}
    stop = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            if "agent-harnesses" in self.path:  # the client keeps this list in a file of the user
                return self.send_error(404)
            self.send_response(response["status"])
            for name, value in response["headers"].items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(response["body"])
            try:
                while response["forever"] and not stop.wait(0.001):
                    self.wfile.write(response["forever"])
            except OSError:
                pass
            return None

    monkeypatch.setattr(Handler, "protocol_version", "HTTP/1.0")
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{running.server_port}")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    close_session()
    yield response
    stop.set()
    running.shutdown()
    running.server_close()
    close_session()


def ask_who():
    with hub_errors_explained("someone/my-mae"):
        return account_of(client())


@pytest.mark.parametrize(
    "body", ["[]", "null", '"name"', "7", "{}", '{"name": null}', '{"name": ["a"]}', '{"name": ""}',
             "[" * 200_000, "{", "<html>", ""],
)  # fmt: skip
def test_an_account_without_a_name_is_an_error_in_one_sentence(server, body):
    server["body"] = body.encode()
    with pytest.raises(MissingRequirementError, match="sent an unexpected response"):
        ask_who()


@pytest.mark.parametrize("response", [[], None, "x", {"siblings": 7}, {"siblings": [[]]},
                                    {"id": "a/b", "siblings": [{"rfilename": 7}]}])  # fmt: skip
def test_a_repository_of_another_form_is_an_error_in_one_sentence(server, response):
    from mae_convert.sources.snapshot import entries_of

    server["body"] = json.dumps(response).encode()
    with (
        pytest.raises(MissingRequirementError, match="sent an unexpected response"),
        hub_errors_explained("someone/my-mae"),
    ):
        entries_of(client().model_info("someone/my-mae"))


def test_our_own_errors_are_not_reported_as_server_errors():
    with pytest.raises(TypeError), hub_errors_explained("someone/my-mae"):
        len(7)  # type: ignore[arg-type]


@pytest.mark.parametrize(("limit", "value"), [("LONGEST_RESPONSE", 100_000), ("LONGEST_TIME", 0.2)])
@pytest.mark.parametrize("status", [200, 404])
def test_endless_response_is_aborted(server, monkeypatch, limit, value, status):
    monkeypatch.setattr(hub_limits, limit, value)
    server.update(status=status, body=b"[", forever=b" " * 4096)
    with pytest.raises(MissingRequirementError, match="does not end"):
        ask_who()


def test_endless_compressed_response_is_aborted(server, monkeypatch):
    import gzip

    monkeypatch.setattr(hub_limits, "LONGEST_RESPONSE", 1 << 20)
    server.update(headers={"Content-Encoding": "gzip"}, body=gzip.compress(b" " * (8 << 20)))
    with pytest.raises(MissingRequirementError, match="does not end"):
        ask_who()


@pytest.mark.parametrize(
    "headers", [{"Retry-After": "86400"}, {"ratelimit": '"api";r=0;t=86400'}],
)  # fmt: skip
def test_the_client_too_waits_no_longer_than_the_limit(server, headers):
    from huggingface_hub.utils import http_backoff

    server.update(status=429, headers=headers)
    address = f"{client().endpoint}/x"
    with (
        pytest.raises(MissingRequirementError, match="asks to wait"),
        hub_errors_explained("someone/my-mae"),
    ):
        http_backoff("GET", address)


def test_limits_do_not_apply_to_other_users_of_the_client(server, monkeypatch):
    from huggingface_hub import get_session

    monkeypatch.setattr(hub_limits, "LONGEST_RESPONSE", 2)
    server["body"] = b'{"name": "someone"}'
    api = client()
    assert get_session().get(f"{api.endpoint}/api/whoami-v2").json() == {"name": "someone"}
    with pytest.raises(MissingRequirementError, match="does not end"):
        ask_who()
    assert get_session().event_hooks["response"].count(hub_limits.check_response) == 1


@pytest.mark.parametrize(
    "where", [{"headers": {"X-Error-Message": f"you sent {TOKEN}"}},
              {"body": json.dumps({"error": f"Bearer {TOKEN}"}).encode()},
              {"body": json.dumps({"error": "x" * 290 + TOKEN}).encode()},
              {"headers": {"X-Error-Message": f"https://u:{TOKEN}@host/{TOKEN}"}}],
)  # fmt: skip
@pytest.mark.parametrize("status", [400, 401, 403, 429, 503])
def test_token_echoed_by_a_server_is_not_printed(server, caplog, status, where):
    server.update(status=status, **where)
    api = client()
    with (
        caplog.at_level(logging.DEBUG, "mae_convert"),
        pytest.raises(MaeConvertError) as raised,
        hub_errors_explained("someone/my-mae"),
    ):
        with_retries(api.whoami)
    assert TOKEN[:9] not in str(raised.value)
    assert TOKEN not in caplog.text


def test_neither_logs_nor_tracebacks_of_the_command_line_contain_the_token(server, command, capfd):
    """The client's own log and an unexpected error go through the same function."""
    from mae_convert.cli.streams import print_unexpected

    before = logging.getLogRecordFactory()
    try:
        command("layouts")
        handler = logging.StreamHandler()
        log = logging.getLogger("huggingface_hub.of_a_test")
        log.addHandler(handler)
        # The client's own handler writes to the stream that was the standard error at its import.
        log.propagate = False
        try:
            raise ValueError(f"Bearer {TOKEN}")
        except ValueError as error:
            log.warning("sent %s\x1b[2J", TOKEN, exc_info=True)
            try:
                raise RuntimeError(TOKEN) from error
            except RuntimeError as second:
                print_unexpected(second)
    finally:
        logging.setLogRecordFactory(before)
        log.removeHandler(handler)
    captured = capfd.readouterr().err
    assert "RuntimeError" in captured
    assert "ValueError" in captured
    assert TOKEN not in captured
    assert "\x1b" not in captured


def test_a_traceback_shows_no_cause_with_the_token(server):
    import traceback

    server.update(status=400, headers={"X-Error-Message": f"you sent {TOKEN}"})
    with pytest.raises(MaeConvertError) as raised, hub_errors_explained("someone/my-mae"):
        client().whoami()
    shown = "".join(traceback.format_exception(raised.value))
    assert "you sent" in shown
    assert "direct cause" in shown
    assert TOKEN not in shown


def test_an_error_without_secrets_keeps_its_cause(server):
    server.update(status=400, headers={"X-Error-Message": "no"})
    with pytest.raises(MaeConvertError) as raised, hub_errors_explained("someone/my-mae"):
        client().whoami()
    assert our_hub.status_of(raised.value.__cause__) == 400


def test_endless_paginated_listing_is_aborted(server, monkeypatch):
    monkeypatch.setattr(hub_limits, "MOST_RESPONSES", 5)
    api = client()
    address = f"{api.endpoint}/api/models/someone/my-mae/commits/main?p=1"
    server.update(headers={"Link": f'<{address}>; rel="next"'}, body=b"[]")
    with (
        pytest.raises(MissingRequirementError, match="still announces further pages"),
        hub_errors_explained("someone/my-mae"),
    ):
        api.list_repo_commits("someone/my-mae")


@pytest.mark.parametrize(
    "value",
    ["example.org", "ftp://example.org", "http://", "http://[bad", "http://a\x01", "http://a b",
     "http://example.org:x", "http://example.org:99999", "http://exämple.org"],
)  # fmt: skip
def test_invalid_server_address_is_refused_before_it_is_used(monkeypatch, command, value):
    """For some addresses the import of the client fails, for others all its attempts."""
    monkeypatch.setenv("HF_ENDPOINT", value)
    monkeypatch.setenv("MAE_CONVERT_MIRROR", value)
    for arguments, variable in (
        (("inspect", "hf://someone/model"), "HF_ENDPOINT"),
        (("download", "mae_visualize_vit_base"), "MAE_CONVERT_MIRROR"),
    ):
        result = command(*arguments)
        assert (result.status, result.err.count("\n")) == (2, 1)
        assert result.err.startswith(f"mae-convert: {variable}=")
        assert "is not the URL of a server" in result.err
        assert "\x01" not in result.err
    with pytest.raises(MaeConvertError, match="not the URL"):
        client()


def test_an_address_that_is_refused_does_not_show_its_password(monkeypatch):
    monkeypatch.setenv("MAE_CONVERT_MIRROR", "http://user:secret-word@example.org:99999")
    with pytest.raises(MaeConvertError) as refused:
        our_hub.address_in("MAE_CONVERT_MIRROR")
    assert "secret-word" not in str(refused.value)
