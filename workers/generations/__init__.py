"""How does a generation grow, go live and end? Assignment and appending, switching, retiring."""
