"""The GenEval suite: objects, counts, colours and positions in images of short prompts."""
