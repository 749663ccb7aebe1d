"""What to do, and what to leave behind, when a step goes wrong."""
