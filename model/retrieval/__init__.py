"""Which images does a query reach, and in which order? The trie, the ranking inside its leaves, and recall."""
