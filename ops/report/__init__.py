"""How do recall and drift develop?

Reports from what the jobs recorded, as a page, JSON or a few lines.
"""
