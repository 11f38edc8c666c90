"""The settings of Kafka and S3, where they are not the embedded ones."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from schemas.environment import (
    Form,
    any_text,
    choice,
    matching,
    read_variables,
    separated,
    setting,
    variable,
    whole,
    yes_no,
)
from schemas.errors import UsageError

_KAFKA_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")

# Seconds: seven days, the most that the S3 protocol signs a link for.
_LONGEST_LINK_S = 604_800

_BROKER = matching(re.compile(r"[A-Za-z0-9._-]+:[0-9]{1,5}"), "host:port")
# The naming rules of S3; what fails them could change the address that a request goes to.
_BUCKET = matching(
    re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"),
    "a bucket name of 3 to 63 small letters, digits, dots and hyphens",
)


def _parse_endpoint(url: str) -> str:
    """Return the host:port of an `https://host:port` address."""
    parts = urlsplit(url)
    bare = not parts.username and not parts.query and parts.path in ("", "/")
    if parts.scheme not in ("http", "https") or not parts.hostname or not bare:
        raise ValueError(url)
    return parts.netloc


_ENDPOINT = Form("https://host:port without user, path and query", _parse_endpoint)


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """Where the Kafka brokers are, and how to sign in there."""

    bootstrap: tuple[str, ...] = field(
        metadata=variable(
            "SIGMA_KAFKA_BOOTSTRAP",
            separated(_BROKER),
            "Kafka brokers that carry the events.",
            unset="the event log in PostgreSQL",
        )
    )
    username: str | None = setting(
        "SIGMA_KAFKA_USERNAME",
        any_text(),
        "Name to sign in with; set it together with the password.",
        default=None,
        unset="no signing in",
    )
    password: str | None = setting(
        "SIGMA_KAFKA_PASSWORD",
        any_text(),
        "Password to sign in with.",
        default=None,
        unset="no signing in",
        secret=True,
    )
    mechanism: str = setting(
        "SIGMA_KAFKA_MECHANISM",
        choice(*_KAFKA_MECHANISMS),
        "SASL mechanism to sign in by.",
        default="SCRAM-SHA-512",
    )
    tls: bool = setting(
        "SIGMA_KAFKA_TLS",
        yes_no(),
        "Whether the connection is encrypted.",
        default=False,
        unset="yes with a user name, otherwise no",
    )
    replication: int = setting(
        "SIGMA_KAFKA_REPLICATION",
        whole(1, 16),
        "Copies of each new topic.",
        default=-1,
        unset="the broker's own default",
    )
    """-1 leaves it to the broker."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "KafkaSettings | None":
        """Read the variables; None without brokers, whatever else is set."""
        if not environ.get("SIGMA_KAFKA_BOOTSTRAP"):
            return None
        values = read_variables(cls, environ)
        if not values["bootstrap"]:
            return None
        if ("username" in values) != ("password" in values):
            raise UsageError(
                "SIGMA_KAFKA_USERNAME and SIGMA_KAFKA_PASSWORD must be set together, "
                "got only one of them; set both or none"
            )
        # A password must not travel in the clear unless somebody asks for that.
        values.setdefault("tls", "username" in values)
        return cls(**values)


@dataclass(frozen=True, slots=True)
class S3Settings:
    """Where the image store in S3 is, and what it may be asked for."""

    endpoint: str = field(
        metadata=variable(
            "SIGMA_S3_ENDPOINT",
            _ENDPOINT,
            "S3 server that keeps the images; `http://` is for one on a trusted network.",
            unset="a folder of SIGMA_HOME",
            secret=True,
        )
    )
    """host:port, without the scheme."""
    access_key: str = field(
        repr=False,
        metadata=variable(
            "SIGMA_S3_ACCESS_KEY",
            any_text(),
            "Key to sign in with.",
            unset="required with SIGMA_S3_ENDPOINT",
            secret=True,
        ),
    )
    secret_key: str = field(
        repr=False,
        metadata=variable(
            "SIGMA_S3_SECRET_KEY",
            any_text(),
            "Secret that belongs to the key.",
            unset="required with SIGMA_S3_ENDPOINT",
            secret=True,
        ),
    )
    secure: bool = True
    """Whether the endpoint's scheme is https."""
    bucket: str = setting(
        "SIGMA_S3_BUCKET", _BUCKET, "Bucket of the image store.", default="sigma-images"
    )
    region: str = setting(
        "SIGMA_S3_REGION", any_text(), "Region that requests are signed for.", default="us-east-1"
    )
    source_buckets: tuple[str, ...] = setting(
        "SIGMA_S3_SOURCE_BUCKETS",
        separated(_BUCKET),
        "Buckets that `s3://` arrivals may name, beside the image store's own.",
        default=(),
        unset="none",
    )
    link_lifetime_s: int = setting(
        "SIGMA_S3_LINK_SECONDS",
        whole(1, _LONGEST_LINK_S),
        "Seconds for which a link in an answer opens its picture.",
        default=900,
    )

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "S3Settings | None":
        """Read the variables; None without an endpoint, whatever else is set."""
        if not environ.get("SIGMA_S3_ENDPOINT"):
            return None
        values = read_variables(cls, environ)
        if "access_key" not in values or "secret_key" not in values:
            raise UsageError(
                "SIGMA_S3_ENDPOINT must be set together with its keys; "
                "set SIGMA_S3_ACCESS_KEY and SIGMA_S3_SECRET_KEY"
            )
        values["secure"] = urlsplit(environ["SIGMA_S3_ENDPOINT"]).scheme == "https"
        return cls(**values)
