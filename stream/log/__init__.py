"""How do events travel? The log in PostgreSQL or Kafka, topics, offsets, outbox, dead letters."""
