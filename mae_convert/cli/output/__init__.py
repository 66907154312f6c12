"""Print results: for a person as tables, for a program as one JSON object."""
