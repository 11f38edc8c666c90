"""A load generator: `python -m tests.load URL CLIENTS SECONDS PAUSE_S` prints what it saw as JSON.

A process of its own, so that its work does not slow down the server that it measures. Every client
has one connection, asks on and on, and pauses after a refusal.
"""

import asyncio
import json
import sys
import time
from urllib.parse import urlsplit


async def main(url: str, clients: int, seconds: float, pause_s: float) -> None:
    """Ask, then print [[status, milliseconds], …]."""
    seen: list[tuple[int, float]] = []
    end_s = time.monotonic() + seconds
    await asyncio.gather(*(ask_on(url, number, end_s, pause_s, seen) for number in range(clients)))
    print(json.dumps(seen))


async def ask_on(
    url: str, number: int, end_s: float, pause_s: float, seen: list[tuple[int, float]]
) -> None:
    """One client."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    # Not all in the same moment.
    await asyncio.sleep(pause_s * (number % 100) / 100)
    turn = 0
    while time.monotonic() < end_s:
        turn += 1
        body = json.dumps({"query": f"query {number} {turn}"}).encode()
        began_s = time.perf_counter()
        writer.write(
            b"POST /v1/query HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n" % len(body) + body
        )
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
        status = int(head.split()[1])
        seen.append((status, (time.perf_counter() - began_s) * 1000))
        if status != 200:
            await asyncio.sleep(pause_s)
    writer.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])))
