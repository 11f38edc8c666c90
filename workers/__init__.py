"""Processes: intake, index worker, query worker, trainer, and the Postgres repository they share."""
