"""What the rooms hand each other: one noun a file, each with its reading, writing and validation."""
