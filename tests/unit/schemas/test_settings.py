"""Settings: read once, checked at the door, never shown with a password."""

import pytest

from schemas.errors import RefuseToStartError, UsageError
from schemas.settings import Settings


def test_an_empty_environment_gives_the_embedded_defaults() -> None:
    found = Settings.from_environment({})
    assert found == Settings()
    assert found.embedded
    assert found.http_host == "127.0.0.1"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SIGMA_BEAMS", "0"),
        ("SIGMA_BEAMS", "many"),
        ("SIGMA_POSTINGS", "-1"),
        ("SIGMA_HTTP_PORT", "70000"),
        ("SIGMA_FUSION_WEIGHT", "nan"),
        ("SIGMA_LOG_LEVEL", "loud"),
        ("SIGMA_THREADS", "0"),
    ],
)
def test_a_bad_value_names_the_variable_what_was_found_and_what_is_allowed(name: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"{name} is {value!r}, allowed"):
        Settings.from_environment({name: value})


def test_a_password_is_shown_nowhere() -> None:
    found = Settings.from_environment({"SIGMA_DATABASE_URL": "postgresql://me:hunter2@db/sigma?password=hunter3"})
    assert "hunter" not in repr(found)
    with pytest.raises(UsageError) as refused:
        Settings.from_environment({"SIGMA_DATABASE_URL": "mysql://me:hunter2@db/sigma"})
    assert "hunter2" not in str(refused.value)


def test_services_that_this_version_lacks_are_refused_not_ignored() -> None:
    with pytest.raises(RefuseToStartError, match="SIGMA_KAFKA_BOOTSTRAP"):
        Settings.from_environment({"SIGMA_KAFKA_BOOTSTRAP": "broker:9092"})
