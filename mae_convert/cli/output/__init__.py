"""Print results as tables for users, or as one JSON object for programs."""
