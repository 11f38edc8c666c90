"""What does every worker process need? Services, start and stop, logs, metrics, model loading,
the outbox relay."""
