"""How does it get to other machines? The files of containers and Kubernetes, and their export."""
