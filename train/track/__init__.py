"""Trackers: views of metrics.jsonl that others keep. None of them can stop a run, or is needed to resume one."""
