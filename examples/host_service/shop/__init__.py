"""A host service: a shop that stores its payments with orchestration, in its own database."""
