"""From the JSON of one record to what it says: the only room that knows the shapes of records.

`decode` makes bytes an object, `detect` tells the shape by the keys, `instructions` and `messages` read the shapes,
`fields` reads what they share, and `parse` puts these together: a line in, a Conversation or a Rejection out.
"""
