"""From what a user has on disk or on the hub to raw records: every record is handed on or said to be unreadable."""
