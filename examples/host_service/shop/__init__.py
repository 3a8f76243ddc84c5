"""A host service: a shop that keeps its payments with orchestration, in the shop's database."""
