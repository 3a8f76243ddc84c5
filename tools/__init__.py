"""What the project runs on itself; not shipped."""
