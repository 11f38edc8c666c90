"""The named queries: every file is read, and no name stands for two of them."""

from schemas.named_sql import migrations, queries, split_queries


def test_all_query_files_can_be_read_together() -> None:
    assert len(queries()) > 100


def test_a_file_is_split_at_its_names_without_comments_and_final_semicolons() -> None:
    text = "-- preamble\n-- name: one\n-- what it does\nSELECT 1;\n\n-- name: two\nSELECT\n  2;\n"
    assert split_queries(text) == {"one": "SELECT 1", "two": "SELECT\n  2"}


def test_migrations_are_in_the_order_of_their_versions() -> None:
    versions = [migration.version for migration in migrations()]
    assert versions == sorted(set(versions))
    assert migrations()[0].name == "first_light"
