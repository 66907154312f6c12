"""Print results as tables for people, or as one JSON object for programs."""
