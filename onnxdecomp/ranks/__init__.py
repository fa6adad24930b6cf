"""From what the user asks for (`--rank`) to ranks."""
