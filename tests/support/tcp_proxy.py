"""A network that can be cut: a TCP proxy on loopback between a client and a server."""

import asyncio
import ctypes
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from typing import Any

# Of Linux, and not in Python's socket module: a packet filter on a socket.
_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
_DROP_ALL = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF: return 0
_CHUNK = 2**16


class Cut(StrEnum):
    """What happens to all connections, old and new, while the network is cut."""

    CLOSED = "closed"  # an orderly end
    RESET = "reset"  # the end that a crash or a firewall makes
    HALF_CLOSED = "half-closed"  # the client reads the end, what it writes vanishes
    SILENT = "silent"  # the other side is alive to TCP, and says nothing
    LOST = "lost"  # no packet arrives: a pulled cable


class TcpProxy:
    """Forwards connections to a port of this machine, until it is told to cut them."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._connections: dict[_Connection, None] = {}  # the oldest first
        self._cut: Cut | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._listener = self._in_loop(self._listen)
        self.port = int(self._listener.sockets[0].getsockname()[1])

    def cut(self, how: Cut) -> None:
        """Cut all connections, and those that are made from now on."""
        self._in_loop(self._apply, how)

    def cut_newest(self, how: Cut) -> None:
        """Cut the connection that was made last, and no other."""
        self._in_loop(self._apply_to_newest, how)

    def mend(self) -> None:
        """Forward again. A connection that was only silent or lost goes on where it was."""
        self._in_loop(self._apply, None)

    def end(self) -> None:
        """Close everything."""
        self._in_loop(self._close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(reader, writer)
        self._connections[connection] = None
        connection.apply(self._cut)
        try:
            await connection.serve(self._target)
        finally:
            del self._connections[connection]

    async def _apply_to_newest(self, how: Cut) -> None:
        list(self._connections)[-1].apply(how)

    async def _apply(self, how: Cut | None) -> None:
        for listening in self._listener.sockets:
            _drop_packets(listening, how is Cut.LOST)
        self._cut = how
        for connection in list(self._connections):
            connection.apply(how)

    async def _close(self) -> None:
        self._listener.close()
        for connection in list(self._connections):
            connection.apply(Cut.RESET)
        await asyncio.sleep(0.1)

    def _in_loop(self, act: Callable[..., Any], *arguments: object) -> Any:
        return asyncio.run_coroutine_threadsafe(act(*arguments), self._loop).result(30)


class _Connection:
    """One client's connection, with its counterpart to the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._client = reader, writer
        self._server: asyncio.StreamWriter | None = None
        self._flows = asyncio.Event()
        self._flows.set()
        self._half_closed = self._ended = False

    async def serve(self, target: int) -> None:
        """Forward both ways until either side ends."""
        try:
            await self._flows.wait()
            if self._ended:
                return
            back, self._server = await asyncio.open_connection("127.0.0.1", target)
            await asyncio.gather(
                self._pump(self._reader, self._server), self._pump(back, self._client)
            )
        except OSError:
            pass  # one of the two has gone, and so does the other
        finally:
            self._end()

    def apply(self, how: Cut | None) -> None:
        """Cut this connection, or let it go on."""
        _drop_packets(self._client.get_extra_info("socket"), how is Cut.LOST)
        match how:
            case None if self._half_closed:
                self._end()
            case None:
                self._flows.set()
            case Cut.SILENT | Cut.LOST:
                self._flows.clear()
            case Cut.CLOSED:
                self._end()
            case Cut.RESET:
                _reset_on_close(self._client.get_extra_info("socket"))
                self._end(abort=True)
            case Cut.HALF_CLOSED:
                self._flows.clear()
                self._half_closed = True
                if not self._client.is_closing():
                    self._client.write_eof()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK):
            await self._flows.wait()
            if self._ended:
                return
            writer.write(data)
            await writer.drain()
        await self._flows.wait()
        self._end()

    def _end(self, *, abort: bool = False) -> None:
        self._ended = True
        self._flows.set()
        for writer in (self._client, self._server):
            if writer is not None and abort:
                writer.transport.abort()
            elif writer is not None:
                writer.close()


def _reset_on_close(holder: Any) -> None:
    """Let a socket end by RST, unless it has ended already."""
    if holder is not None and holder.fileno() >= 0:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _drop_packets(holder: Any, drops: bool) -> None:
    """Let the system drop each packet that comes to a socket, unanswered, or deliver them again."""
    if holder is None or holder.fileno() < 0:
        return
    if drops:
        program = struct.pack("HL", 1, ctypes.addressof(_DROP_ALL))
        holder.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
    else:
        with suppress(FileNotFoundError):  # there was none
            holder.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
