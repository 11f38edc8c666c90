"""Which images does a query reach, and in which order? Search, trie, ranking and recall."""
