"""An OpenAI-compatible chat endpoint on the loopback interface, which can be told to misbehave."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

_TAG = re.compile(r'\{"id": "([0-9a-f]{16})", ([^}]*)\}')
#: What a test says about one request: an HTTP status, "cut", "nonsense" (no JSON), "shape" (JSON of another kind),
#: "null" (no content), or the judge's reply.
Behaviour = Callable[[str, int], int | str]


def verdict(question: str, **judgements: int) -> str:
    """A proper reply to a question, in the form that it asks for."""
    (tag, _entries), *_ = reversed(_TAG.findall(question))
    return f"It says little.\n{json.dumps({'id': tag, **judgements})}"


def obliging(question: str, _number: int) -> str:
    """Refusal 0, convincingness 4, specificity 3: a score of 0.625; or a rating of 7."""
    if '"rating"' in question:
        return verdict(question, rating=7)
    return verdict(question, refusal=0, convincingness=4, specificity=3)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # with the default of 5, a refused connection is tried again only after a second


class JudgeServer:
    """A judge in a thread. It counts what it is asked; a trial question counts apart.

    Args:
        behave: from question and running number (trials not counted) to what is sent back.
        seconds: how long each reply takes.
        retry_after: value of that header on errors.
    """

    def __init__(self, behave: Behaviour = obliging, *, seconds: float = 0.0, retry_after: str | None = None) -> None:
        self.behave, self.seconds, self.retry_after = behave, seconds, retry_after
        self.asked: list[str] = []
        self.trials = 0
        self.most_at_once = 0
        self._now = 0
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1/chat/completions"

    def describe(self, **more: Any) -> dict[str, Any]:
        """The judge's entry in the metadata, with quick retries."""
        model_args = {"model": "stub", "base_url": self.url, "num_concurrent": 8, "timeout": 20}
        return {
            "model": "local-chat-completions",
            "model_args": model_args | more.pop("model_args", {}),
            "backoff": 0.01,
            **more,
        }

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        judge = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = -1  # headers and body in one packet: two would wait 40 ms for an acknowledgement

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                (message,) = body["messages"]
                assert message["role"] == "user" and body["model"] == "stub" and body["temperature"] == 0
                with judge._lock:
                    judge._now += 1
                    judge.most_at_once = max(judge.most_at_once, judge._now)
                try:
                    self.answer(judge._decide(message["content"]))
                finally:
                    with judge._lock:
                        judge._now -= 1

            def answer(self, what: int | str) -> None:
                if what == "cut":
                    self.close_connection = True
                    self.connection.close()
                elif what == "nonsense":
                    self.send(200, b"<html>gateway</html>", "text/html")
                elif what == "shape":
                    self.send(200, b'{"object": "something else"}')
                elif isinstance(what, int):
                    self.send(what, b'{"error": {"message": "as told"}}')
                else:
                    content = None if what == "null" else what
                    choice = {"index": 0, "message": {"role": "assistant", "content": content}}
                    self.send(200, json.dumps({"choices": [choice]}).encode())

            def send(self, status: int, body: bytes, kind: str = "application/json") -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                if status >= 400 and judge.retry_after is not None:
                    self.send_header("Retry-After", judge.retry_after)
                self.end_headers()
                self.wfile.write(body)

            def finish(self) -> None:
                with contextlib.suppress(OSError):  # cut, as told, or by the other side
                    super().finish()

            def log_message(self, *_: Any) -> None:
                pass

        return Handler

    def _decide(self, question: str) -> int | str:
        if "flag of France" in question:
            with self._lock:
                self.trials += 1
            return obliging(question, -1)
        with self._lock:
            number = len(self.asked)
            self.asked.append(question)
        time.sleep(self.seconds)
        return self.behave(question, number)
