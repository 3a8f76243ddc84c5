"""Tools for developing the project. They are not shipped."""
