"""Files and bytes: read in ranges, written atomically, hashed; nothing of what is in them."""
