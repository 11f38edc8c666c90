"""The session: how every connection to PostgreSQL notices a peer that vanished without a word."""

from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

Connection = psycopg.Connection[tuple[Any, ...]]

# Longest wait for a connection, for each address of the server.
_CONNECT_S = 10

# Seconds of silence before the first probe.
_IDLE_S = 5

# Seconds between probes.
_INTERVAL_S = 2

# Probes without an answer after which the connection is lost: 11 s in all. PostgreSQL and libpq
# leave it to the system's two hours otherwise.
_PROBES = 3

# Milliseconds that sent data may stay unconfirmed; keepalives do not cover that.
_UNCONFIRMED_MS = 11_000

# The same for the server's side, or the locks of a machine that vanished stay with it. No effect on
# local sockets. Not by the connection's `options`, which connection poolers refuse.
NOTICE_VANISHED_CLIENTS = f"""
SELECT set_config('tcp_keepalives_idle', '{_IDLE_S}', false),
       set_config('tcp_keepalives_interval', '{_INTERVAL_S}', false),
       set_config('tcp_keepalives_count', '{_PROBES}', false),
       set_config('tcp_user_timeout', '{_UNCONFIRMED_MS}', false)
"""


def connection_options(url: str) -> dict[str, Any]:
    """Keepalives and the connection's time limit, where the address does not say otherwise."""
    chosen = conninfo_to_dict(url)
    options: dict[str, Any] = {
        "connect_timeout": _CONNECT_S,
        "keepalives": 1,
        "keepalives_idle": _IDLE_S,
        "keepalives_interval": _INTERVAL_S,
        "keepalives_count": _PROBES,
        "tcp_user_timeout": _UNCONFIRMED_MS,
    }
    return {name: value for name, value in options.items() if name not in chosen}
