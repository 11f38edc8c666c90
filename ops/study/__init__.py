"""What do months of change do to recall? The long-run study of maintenance policies."""
