"""Watching a training: what it does (record), how fast (meter), whether it goes wrong (anomalies) or stands still."""
