"""The vocabulary: records, events, SQL, settings and errors. Imports nothing of the project."""
