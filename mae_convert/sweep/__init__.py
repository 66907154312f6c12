"""Many conversions and verifications by one command, on this machine or on a cluster."""
