"""What a large backbone does on a GPU: queries, assignment and training, beside the plan."""
