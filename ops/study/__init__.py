"""The long-run study: what months of arrivals, deletions and shifts do to recall, under several policies of maintenance."""
