"""What does a large backbone do on a GPU? Queries, assignment and training, beside the plan."""
