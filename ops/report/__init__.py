"""Reports: what the jobs recorded, as a page for people, a document for programs and a few lines for the terminal."""
