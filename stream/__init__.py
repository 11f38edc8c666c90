"""Transport: the event log, topics, manifests, the image store and the validation of arrivals."""
