"""A host service: a shop whose payments are kept by orchestration, in the shop's own database."""
