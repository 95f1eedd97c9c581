"""An upstream that streams a piece every few milliseconds, and a client of the gateway that tells how late each came.

A program of its own, so that its clock and its loop are nobody else's: ``streamer.py SECONDS`` prints the upstream's port, reads
the gateway's port, target and key from its standard input, and prints the lags in milliseconds, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

EVERY_S = 0.004
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
    await reader.readexactly(length)
    writer.write(HEAD)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        data = b"data: %.6f\n\n" % time.monotonic()
        writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        await asyncio.sleep(EVERY_S)
    writer.write(b"0\r\n\r\n")
    await writer.drain()
    writer.close()


async def listen(port: int, target: str, key: str) -> list[float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = b'{"model":"m","stream":true}'
    head = f"POST {target} HTTP/1.1\r\nHost: localhost\r\nx-api-key: {key}\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    lags: list[float] = []
    rest = b""
    while data := await reader.read(65536):
        now = time.monotonic()
        *lines, rest = (rest + data).split(b"\n")
        lags += [1000 * (now - float(line[6:])) for line in lines if line.startswith(b"data: ")]
        if data.endswith(b"0\r\n\r\n"):
            break
    writer.close()
    return lags


async def main(seconds: float) -> None:
    server = await asyncio.start_server(lambda r, w: stream(r, w, seconds), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        port, target, key = line.split()
        print(json.dumps(await listen(int(port), target, key)), flush=True)
    server.close()


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1])))
