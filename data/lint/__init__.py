"""What you should know about your records before you train on them. Nothing here changes or drops a record."""
