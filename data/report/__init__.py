"""What a user is told of the data: the accounting, as numbers, words and a picture, and records as they are trained."""
