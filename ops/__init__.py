"""How do people run it? The composition root: command line, jobs, reports, benchmarks, demo."""
