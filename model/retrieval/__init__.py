"""Which images does a query reach, and in which order?

Search, the trie, the ranking inside its leaves, and recall.
"""
