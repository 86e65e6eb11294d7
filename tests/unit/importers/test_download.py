"""Downloads from a real server on this machine, which has every fault that we know of."""

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tuner.errors import ConfigError, FetchError
from tuner.importers.catalogue import PublishedFile, find_published, published_files
from tuner.importers.download import Fetched, fetch, published_size

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
FILE = PublishedFile("small", "A small file.", "small.json", "nobody", "none")


@dataclass
class Server:
    """A server of one file; its fields are its faults."""

    content: bytes = CONTENT
    tag: str | None = '"one"'
    cut_after: int | None = None
    cuts: int = 0
    statuses: list[int] = field(default_factory=list)
    heads: bool = True
    wrong_range: bool = False
    asked: list[str | None] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            if not state.heads:
                self.send_error(501)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(state.content)))
            self.end_headers()

        def do_GET(self) -> None:
            state.asked.append(self.headers.get("Range"))
            status = state.statuses.pop(0) if state.statuses else 200
            if status != 200 or self.path != "/data/small.json":
                self.send_error(status if status != 200 else 404)
                return
            start = 0
            if self.headers.get("Range") and self.headers.get("If-Range") == state.tag:
                start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
                if start >= len(state.content):
                    self.send_error(416)
                    return
                self.send_response(206)
                said = start + 5 if state.wrong_range else start
                total = len(state.content)
                self.send_header("Content-Range", f"bytes {said}-{total - 1}/{total}")
            else:
                self.send_response(200)
            body = state.content[start:]
            self.send_header("Content-Length", str(len(body)))
            if state.tag:
                self.send_header("ETag", state.tag)
            self.end_headers()
            if state.cuts:
                state.cuts -= 1
                body = body[: state.cut_after]
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True).start()
        state.url = f"http://127.0.0.1:{listening.server_port}/data"
        yield state
        listening.shutdown()


def get(server: Server, folder: Path, sha256: str | None = None) -> Fetched:
    return fetch(FILE, folder, mirror=server.url, sha256=sha256, pause_s=0.01)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


def test_a_file_comes_whole_with_its_checksum_beside_it(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    assert published_size(FILE, server.url) == len(CONTENT)
    got = fetch(
        FILE, tmp_path, mirror=server.url, note=lambda here, total: seen.append((here, total))
    )
    assert got == Fetched(
        tmp_path / "small.json", len(CONTENT), SHA256, was_there=False, known=False
    )
    assert got.path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert names(tmp_path) == {"small.json", "small.json.sha256"}
    assert (tmp_path / "small.json.sha256").read_text() == f"{SHA256}  small.json\n"


def test_a_file_that_is_here_is_checked_and_not_asked_for(server: Server, tmp_path: Path) -> None:
    first = get(server, tmp_path)
    again = get(server, tmp_path)
    assert (again.was_there, again.known, again.sha256) == (True, True, first.sha256)
    assert len(server.asked) == 1
    first.path.write_bytes(b"spoilt")
    with pytest.raises(FetchError, match="is not the file it should be"):
        get(server, tmp_path)
    assert first.path.read_bytes() == b"spoilt"


def test_the_first_checksum_guards_the_next_download(server: Server, tmp_path: Path) -> None:
    get(server, tmp_path).path.unlink()
    assert get(server, tmp_path).known
    (tmp_path / "small.json").unlink()
    server.content = b"something else"
    with pytest.raises(FetchError, match="was thrown away"):
        get(server, tmp_path)
    assert names(tmp_path) == {"small.json.sha256"}
    (tmp_path / "small.json.sha256").unlink()
    assert get(server, tmp_path).bytes == len(server.content)


def test_a_checksum_of_the_users_own_is_kept_to(server: Server, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="should be aaaa"):
        get(server, tmp_path, "a" * 64)
    assert names(tmp_path) == set()
    assert get(server, tmp_path, SHA256.upper()).known
    with pytest.raises(ConfigError, match="64 hexadecimal digits"):
        get(server, tmp_path, "abc")


def test_a_cut_connection_is_taken_up_where_it_ended(server: Server, tmp_path: Path) -> None:
    server.cut_after, server.cuts = 300_000, 2
    assert get(server, tmp_path).sha256 == SHA256
    assert server.asked[0] is None
    assert all(asked is not None for asked in server.asked[1:])
    assert names(tmp_path) == {"small.json", "small.json.sha256"}


def test_a_later_command_goes_on_with_what_an_earlier_one_left(
    server: Server, tmp_path: Path
) -> None:
    server.cut_after, server.cuts = 100_000, 4
    with pytest.raises(FetchError, match="Run the command again"):
        get(server, tmp_path)
    assert "small.json" not in names(tmp_path)
    assert get(server, tmp_path).sha256 == SHA256
    assert str(server.asked[-1]).startswith("bytes=")
    assert server.asked[-1] != "bytes=0-"


def test_a_file_that_changed_meanwhile_is_begun_anew(server: Server, tmp_path: Path) -> None:
    server.cut_after, server.cuts = 100_000, 4
    with pytest.raises(FetchError):
        get(server, tmp_path)
    server.tag, server.content = '"two"', CONTENT[::-1]
    assert get(server, tmp_path).path.read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("tag", [None, 'W/"weak"'])
def test_without_a_promise_of_equal_bytes_it_is_begun_anew(
    tag: str | None, server: Server, tmp_path: Path
) -> None:
    server.tag, server.cut_after, server.cuts = tag, 300_000, 1
    assert get(server, tmp_path).sha256 == SHA256
    assert server.asked == [None, None]


def test_a_range_that_was_not_asked_for_is_not_taken(server: Server, tmp_path: Path) -> None:
    server.cut_after, server.cuts, server.wrong_range = 300_000, 1, True
    assert get(server, tmp_path).sha256 == SHA256
    assert server.asked[-1] is None


def test_a_trouble_that_passes_is_waited_for(server: Server, tmp_path: Path) -> None:
    server.statuses = [503, 500]
    assert get(server, tmp_path).sha256 == SHA256


def test_what_is_not_there_is_an_error_and_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.statuses = [404]
    with pytest.raises(FetchError, match=r"small\.json: the server answered 404"):
        get(server, tmp_path)
    assert len(server.asked) == 1
    assert names(tmp_path) == set()


def test_no_server_and_no_address_are_errors(server: Server, tmp_path: Path) -> None:
    server.heads = False
    assert published_size(FILE, server.url) is None
    for ask in (published_size, lambda file, url: fetch(file, tmp_path, mirror=url, pause_s=0.0)):
        with pytest.raises(FetchError, match=r"127\.0\.0\.1:9"):
            ask(FILE, "http://127.0.0.1:9")
        with pytest.raises(ConfigError, match="is not an address"):
            ask(FILE, "ftp://127.0.0.1")
    (tmp_path / "taken").write_text("")
    with pytest.raises(FetchError, match="cannot be written"):
        get(server, tmp_path / "taken")


def test_known_files_have_names_of_their_own_and_no_invented_checksum() -> None:
    files = published_files()
    assert len({file.name for file in files}) == len({file.file_name for file in files})
    assert find_published("zsre").url("http://x/") == "http://x/zsre_mend_eval.json"
    assert {file.sha256 for file in files} == {None}
    with pytest.raises(ConfigError, match="Did you mean 'counterfact'"):
        find_published("counterfacts")
