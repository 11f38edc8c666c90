"""Settings: read once, checked at the door, never shown with a password."""

import re

import pytest

from schemas.errors import UsageError
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
        ("SIGMA_SHADOW_SHARE", "1.5"),
        ("SIGMA_KEEP_FALLBACK", "maybe"),
        ("SIGMA_AUTO_PROMOTE", "always"),
        ("SIGMA_TRAINING_IMAGES", "7"),
        ("SIGMA_TRAINING_PROCESSES", "0"),
        ("SIGMA_RETRAIN", "often"),
    ],
)
def test_a_bad_value_names_the_variable_what_was_found_and_what_is_allowed(
    name: str, value: str
) -> None:
    with pytest.raises(UsageError, match=f"{name} is {value!r}, allowed"):
        Settings.from_environment({name: value})


def test_a_password_is_shown_nowhere() -> None:
    found = Settings.from_environment(
        {"SIGMA_DATABASE_URL": "postgresql://me:hunter2@db/sigma?password=hunter3"}
    )
    assert "hunter" not in repr(found)
    with pytest.raises(UsageError) as refused:
        Settings.from_environment({"SIGMA_DATABASE_URL": "mysql://me:hunter2@db/sigma"})
    assert "hunter2" not in str(refused.value)


def test_real_services_are_read_whole_and_their_secrets_stay_hidden() -> None:
    environ = {
        "SIGMA_KAFKA_BOOTSTRAP": "one:9092, two:9092",
        "SIGMA_KAFKA_USERNAME": "me",
        "SIGMA_KAFKA_PASSWORD": "hunter2",
        "SIGMA_S3_ENDPOINT": "http://127.0.0.1:9000",
        "SIGMA_S3_ACCESS_KEY": "hunter3",
        "SIGMA_S3_SECRET_KEY": "hunter4",
        "SIGMA_S3_SOURCE_BUCKETS": "their-images, more-images",
        "SIGMA_HTTPS_HOSTS": "images.example.org,*.example.net",
    }
    found = Settings.from_environment(environ)
    assert found.kafka is not None
    assert found.s3 is not None
    assert (found.kafka.bootstrap, found.kafka.tls, found.kafka.password) == (
        ("one:9092", "two:9092"),
        True,
        "hunter2",
    )
    assert (found.s3.endpoint, found.s3.secure, found.s3.secret_key) == (
        "127.0.0.1:9000",
        False,
        "hunter4",
    )
    assert found.s3.source_buckets == ("their-images", "more-images")
    assert found.https_hosts == ("images.example.org", "*.example.net")
    assert "hunter" not in repr(found)


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({"SIGMA_KAFKA_BOOTSTRAP": "broker"}, "SIGMA_KAFKA_BOOTSTRAP holds 'broker'"),
        ({"SIGMA_KAFKA_BOOTSTRAP": "a:1", "SIGMA_KAFKA_USERNAME": "me"}, "set both or none"),
        ({"SIGMA_S3_ENDPOINT": "127.0.0.1:9000"}, "write https://host:port"),
        ({"SIGMA_S3_ENDPOINT": "http://hunter2@host"}, "write https://host:port"),
        ({"SIGMA_S3_ENDPOINT": "http://host:9000"}, "SIGMA_S3_ACCESS_KEY"),
        ({"SIGMA_HTTPS_HOSTS": "https://x"}, "SIGMA_HTTPS_HOSTS"),
        ({"SIGMA_ENGINE": "jax"}, "allowed are torch, vllm"),
    ],
)
def test_half_configured_services_are_refused_with_the_cure(
    environ: dict[str, str], found: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(found)):
        Settings.from_environment(environ)


def test_schedules_of_jobs_are_read_by_name() -> None:
    found = Settings.from_environment(
        {"SIGMA_SCHEDULE": "retrain=0 3 * * 0; recall-probe = */30 * * * *;prune=off;"}
    )
    assert {name: schedule.text for name, schedule in found.schedules} == {
        "retrain": "0 3 * * 0",
        "recall-probe": "*/30 * * * *",
        "prune": "off",
    }


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("retrain", "no schedule in 'retrain'; write JOB=SCHEDULE"),
        ("=off", "write JOB=SCHEDULE"),
        ("prune=off; prune=off", "a job twice in 'prune=off'"),
        ("retrain=61 * * * *", "SIGMA_SCHEDULE for retrain: '61 * * * *' is no schedule"),
        ("retrain=", "SIGMA_SCHEDULE for retrain: '' is no schedule"),
    ],
)
def test_a_schedule_that_cannot_be_followed_is_refused_at_the_door(value: str, found: str) -> None:
    with pytest.raises(UsageError, match=re.escape(found)):
        Settings.from_environment({"SIGMA_SCHEDULE": value})
