"""Settings: read once, checked at once, documented, and never shown with a password."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import schemas.settings
from schemas.errors import UsageError
from schemas.retrieval_settings import RetrievalSettings
from schemas.settings import Settings, documented_settings

SERVICES = {
    "SIGMA_KAFKA_BOOTSTRAP": "one:9092, two:9092",
    "SIGMA_KAFKA_USERNAME": "me",
    "SIGMA_KAFKA_PASSWORD": "hunter2",
    "SIGMA_S3_ENDPOINT": "http://127.0.0.1:9000",
    "SIGMA_S3_ACCESS_KEY": "hunter3",
    "SIGMA_S3_SECRET_KEY": "hunter4",
    "SIGMA_S3_SOURCE_BUCKETS": "their-images, more-images",
    "SIGMA_HTTPS_HOSTS": "images.example.org,*.example.net",
}


class RecordedEnvironment(Mapping[str, str]):
    """An environment that remembers the variables it was asked for."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.asked.add(name)
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def test_an_empty_environment_gives_the_embedded_defaults() -> None:
    settings = Settings.from_environment({})
    assert settings == Settings()
    assert settings.embedded
    assert settings.http_host == "127.0.0.1"


def test_one_value_says_how_images_are_posted_and_searched() -> None:
    environ = {"SIGMA_BEAMS": "7", "SIGMA_POSTINGS": "2", "SIGMA_FUSION_WEIGHT": "0.5"}
    retrieval = Settings.from_environment(environ).retrieval
    assert retrieval == RetrievalSettings(beams=7, postings=2, fusion_weight=0.5)


def test_an_empty_value_counts_as_unset() -> None:
    empty = {setting.variable: "" for setting in documented_settings()}
    assert Settings.from_environment(empty) == Settings()


def test_every_variable_that_is_read_is_documented_once() -> None:
    environment = RecordedEnvironment(SERVICES)
    Settings.from_environment(environment)
    documented = [setting.variable for setting in documented_settings()]
    assert sorted(documented) == sorted(environment.asked)
    named: set[str] = set()
    for file in Path(schemas.settings.__file__).parent.glob("*settings.py"):
        named |= set(re.findall(r"SIGMA_[A-Z0-9_]+", file.read_text()))
    assert set(documented) == named


def test_the_documentation_says_default_and_meaning_of_each_setting() -> None:
    rows = {setting.variable: setting for setting in documented_settings()}
    assert all(row.default and len(row.description) > 20 for row in rows.values())
    assert rows["SIGMA_BEAMS"].default == "20"
    assert rows["SIGMA_KEEP_FALLBACK"].default == "yes"
    assert rows["SIGMA_DATABASE_URL"].default == "the embedded server"
    assert "Allowed: a whole number from 1 to 1000." in rows["SIGMA_BEAMS"].description


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
def test_a_bad_value_names_the_variable_what_is_allowed_and_what_it_got(
    name: str, value: str
) -> None:
    with pytest.raises(UsageError, match=f"{name} must be .*, got {value!r}"):
        Settings.from_environment({name: value})


def test_a_password_is_shown_nowhere() -> None:
    settings = Settings.from_environment(
        {"SIGMA_DATABASE_URL": "postgresql://me:hunter2@db/sigma?password=hunter3"}
    )
    assert "hunter" not in repr(settings)
    with pytest.raises(UsageError) as refused:
        Settings.from_environment({"SIGMA_DATABASE_URL": "mysql://me:hunter2@db/sigma"})
    assert "hunter2" not in str(refused.value)


def test_real_services_are_read_whole_and_their_secrets_stay_hidden() -> None:
    settings = Settings.from_environment(SERVICES)
    kafka, s3 = settings.kafka, settings.s3
    assert kafka is not None
    assert kafka.bootstrap == ("one:9092", "two:9092")
    assert kafka.tls
    assert kafka.password == "hunter2"
    assert s3 is not None
    assert s3.endpoint == "127.0.0.1:9000"
    assert not s3.secure
    assert s3.secret_key == "hunter4"
    assert s3.source_buckets == ("their-images", "more-images")
    assert settings.https_hosts == ("images.example.org", "*.example.net")
    assert "hunter" not in repr(settings)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (
            {"SIGMA_KAFKA_BOOTSTRAP": "broker"},
            "SIGMA_KAFKA_BOOTSTRAP must be host:port, several separated by commas, got 'broker'",
        ),
        ({"SIGMA_KAFKA_BOOTSTRAP": "a:1", "SIGMA_KAFKA_USERNAME": "me"}, "set both or none"),
        ({"SIGMA_S3_ENDPOINT": "127.0.0.1:9000"}, "SIGMA_S3_ENDPOINT must be https://host:port"),
        (
            {"SIGMA_S3_ENDPOINT": "http://hunter2@host"},
            "SIGMA_S3_ENDPOINT must be https://host:port",
        ),
        ({"SIGMA_S3_ENDPOINT": "http://[hunter2"}, "SIGMA_S3_ENDPOINT must be https://host:port"),
        ({"SIGMA_S3_ENDPOINT": "http://host:9000"}, "SIGMA_S3_ACCESS_KEY"),
        ({"SIGMA_HTTPS_HOSTS": "https://x"}, "SIGMA_HTTPS_HOSTS must be a host name"),
        ({"SIGMA_ENGINE": "jax"}, "SIGMA_ENGINE must be one of torch, vllm"),
    ],
)
def test_half_configured_services_are_refused_with_a_hint(
    environ: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as refused:
        Settings.from_environment(environ)
    assert "hunter2" not in str(refused.value)


def test_schedules_of_jobs_are_read_by_name() -> None:
    settings = Settings.from_environment(
        {"SIGMA_SCHEDULE": "retrain=0 3 * * 0; recall-probe = */30 * * * *;prune=off;"}
    )
    assert {name: schedule.text for name, schedule in settings.schedules} == {
        "retrain": "0 3 * * 0",
        "recall-probe": "*/30 * * * *",
        "prune": "off",
    }


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("retrain", "SIGMA_SCHEDULE must be JOB=SCHEDULE"),
        ("=off", "got '=off'"),
        ("prune=off; prune=off", "must name each job once, got prune twice"),
        ("retrain=61 * * * *", "SIGMA_SCHEDULE for retrain: a schedule must be off"),
        ("retrain=", "UTC), got '': it has 1 fields"),
    ],
)
def test_a_schedule_that_cannot_be_followed_is_refused_at_once(value: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        Settings.from_environment({"SIGMA_SCHEDULE": value})
