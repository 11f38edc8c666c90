"""How do events travel? The event log in PostgreSQL or Kafka, topics, offsets, the outbox and dead letters."""
