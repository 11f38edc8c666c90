"""How is a query answered?

HTTP, the decode thread, the generations in memory, and what is reported of it.
"""
