"""What does sigma demo do? The whole flow on embedded defaults, and what it tells at its end."""
